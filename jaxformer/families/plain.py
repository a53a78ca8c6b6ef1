"""What decoders share whose feed-forward is not gated and whose norms have biases: their heads, and their rows."""

from collections.abc import Mapping
from typing import Any, Literal

from jaxformer.config import ExtraHeadConfig, HeadConfig, MlpConfig, ModelConfig, StackConfig
from jaxformer.families.heads import COUNTED, kind, labels
from jaxformer.names import Row, linear, norm, table

EVERY: tuple[Literal["query", "key", "value", "out"], ...] = ("query", "key", "value", "out")
HEADS = {
    "classify": ExtraHeadConfig("classify", 2, "last", bias=False),
    "tag": ExtraHeadConfig("tag", 2),
    "answer": ExtraHeadConfig("answer", 2),
}
PUBLISHED = {"classify": "score", "tag": "classifier", "answer": "qa_outputs"}
"""Kind of head -> the name of its layer."""


def heads(hf: Mapping[str, Any], classes: Mapping[str, str], head: HeadConfig) -> dict[str, Any]:
    """`head` and `extra` of the ModelConfig that config.json asks for; `head` is the one over the vocabulary."""
    name = kind(hf, classes)
    if name not in HEADS:
        return {"head": head if name == "lm" else None}
    outputs = labels(hf) if name in COUNTED else 2
    extra = HEADS[name]
    return {"head": None, "extra": (ExtraHeadConfig(name, outputs, extra.reads, bias=extra.bias),)}


def stack_of(config: ModelConfig) -> StackConfig:
    """The decoder. Raises ValueError for a model that is none of these."""
    stack = config.decoder
    if stack is None or config.encoder is not None:
        raise ValueError("it is one decoder")
    if any(not isinstance(block.mlp, MlpConfig) or block.mlp.gated for block in stack.pattern):
        raise ValueError("it is one decoder with a feed-forward that is not gated")
    return stack


def written(config: ModelConfig, model_type: str, classes: Mapping[str, str]) -> dict[str, Any]:
    """The attributes that speak of the vocabulary and the head. ValueError for a head that the family lacks."""
    name = "lm" if config.head is not None else next((extra.name for extra in config.extra), "embed")
    if name not in classes:
        raise ValueError(f"it has no head called {name}")
    outputs = next((extra.outputs for extra in config.extra), 2)
    return {
        "architectures": [classes[name]],
        "model_type": model_type,
        "vocab_size": config.vocab,
        **({} if config.head is None else {"tie_word_embeddings": config.head.tied}),
        **({} if outputs == 2 else {"num_labels": outputs}),
    }


def rows(config: ModelConfig, names: Mapping[str, str]) -> tuple[Row, ...]:
    """The rows of `names`, {our path: the published name}, and those of the head.

    A path ends with the name of a norm, of a table (embed, position) or of a projection of the blocks.
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
            found += linear(path, published, inputs=2 if part == "out" else 1, bias=bias)
    if head is not None and not head.tied:
        found += linear("heads/lm", "lm_head")
    if head is not None and head.bias:
        found += (Row("heads/lm/bias", "lm_head.bias"),)
    for extra in config.extra:
        found += linear(f"heads/{extra.name}/output", PUBLISHED[extra.name], bias=extra.bias)
    return found
