"""What decoders like LLaMA share where experts stand in place of the feed-forward."""

from collections.abc import Mapping
from dataclasses import replace

from jaxformer.config import BlockConfig, ExpertsConfig, MlpConfig, ModelConfig
from jaxformer.families import decoder_rows
from jaxformer.names import Row

# output_router_logits and router_aux_loss_coef are about the loss in training, router_jitter_noise is a noise there:
# there is no such noise here, and a loss weighs what the model gives beside its logits.
MAY_BE = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")


def layer(dense: BlockConfig, width: int, experts: int, top_k: int, normalize: bool = True) -> BlockConfig:
    """The layer with experts of this width in place of its feed-forward."""
    return replace(dense, mlp=ExpertsConfig(width, experts, top_k, dense.mlp.activation, normalize))


def dense(config: ModelConfig) -> tuple[ModelConfig, ExpertsConfig]:
    """(the model with a feed-forward of one expert's width instead, the experts). ValueError for one without."""
    stack = config.decoder
    experts = None if stack is None else stack.pattern[0].mlp
    if stack is None or not isinstance(experts, ExpertsConfig):
        raise ValueError("it is one decoder with experts")
    mlp = MlpConfig(experts.width, experts.activation, gated=True, bias=False)
    pattern = tuple(replace(block, mlp=mlp) for block in stack.pattern)
    return replace(config, decoder=replace(stack, pattern=pattern)), experts


def decoder(config: ModelConfig, names: Mapping[str, str], answers: str = decoder_rows.PREFIX) -> tuple[Row, ...]:
    """All rows. `names`: {our path below mlp: the published name below the layer}; `answers` as in `decoder_rows`."""
    found: tuple[Row, ...] = ()
    for row in decoder_rows.decoder(dense(config)[0], answers=answers):
        if "/mlp/" not in row.path:
            found += (row,)
        elif "/gate/" in row.path:
            found += tuple(_at(row, ours, theirs) for ours, theirs in names.items())
    return found


def _at(gate: Row, ours: str, theirs: str) -> Row:
    """The row of the gate's kernel, turned into that of another kernel with one input and one output axis."""
    path = gate.path.replace("/mlp/gate/", f"/mlp/{ours}/")
    published, *also = (name.replace("mlp.gate_proj", theirs) for name in (gate.published, *gate.also))
    return replace(gate, path=path, published=published, also=tuple(also))
