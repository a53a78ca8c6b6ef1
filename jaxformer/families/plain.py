"""What the older decoders share, whose feed-forward is not gated and whose norms have biases."""

from collections.abc import Mapping
from typing import Literal

from jaxformer.config import MlpConfig, ModelConfig, StackConfig
from jaxformer.families import heads
from jaxformer.names import Row, linear, norm, table


def stack_of(config: ModelConfig) -> StackConfig:
    """The decoder. Raises ValueError for a model that is none of these."""
    stack = config.decoder
    if stack is None or config.encoder is not None:
        raise ValueError("it is one decoder")
    if any(not isinstance(block.mlp, MlpConfig) or block.mlp.gated for block in stack.pattern):
        raise ValueError("it is one decoder with a feed-forward that is not gated")
    return stack


def rows(
    config: ModelConfig, names: Mapping[str, str], layout: Literal["in_out", "out_in"] = "out_in"
) -> tuple[Row, ...]:
    """The rows of `names`, {our path: the published name}, and those of the head.

    A path ends with the name of a norm, of a table (embed, position) or of a projection of the blocks, whose
    kernels are published in this `layout`.
    """
    block, head = stack_of(config).pattern[0], config.head
    assert isinstance(block.mlp, MlpConfig)
    found: tuple[Row, ...] = ()
    for path, published in names.items():
        part = path.split("/")[-1]
        if part.endswith("norm"):
            found += norm(path, published, bias=True)
        elif part in ("embed", "position"):
            tied = part == "embed" and head is not None and head.tied
            found += table(path, published, also=("lm_head.weight",) if tied else ())
        else:
            bias = part in block.attention.bias if "/attention/" in path else block.mlp.bias
            found += linear(path, published, inputs=2 if part == "out" else 1, bias=bias, layout=layout)
    return found + heads.rows(config)
