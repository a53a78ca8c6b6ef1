"""What the kin of BERT have in common: attributes, a stack of post-norm blocks, the heads on it, and their rows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxformer.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    ExtraHeadConfig,
    HeadConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    StackConfig,
    TransformConfig,
)
from jaxformer.families.attributes import ACTIVATIONS, EVERY, PUBLISHED, Attributes
from jaxformer.names import Row, linear, table

READS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}
"""Attributes and defaults of those who name them as BERT does."""
MUST_BE = {"is_decoder": False, "position_embedding_type": "absolute"}
# The first drops attention weights, in training alone: there is no such dropout here. The reference passes over the
# others.
MAY_BE = (
    *("attention_probs_dropout_prob", "directionality", "pooler_fc_size", "pooler_num_attention_heads"),
    *("pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
)
WORDPIECE: dict[str, Any] = {
    "kind": "wordpiece",
    "special": {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    "template": ("{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1"),
}
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
BLOCK = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
"""Our name of a block's part -> the published one."""


@dataclass(frozen=True)
class Extra:
    """A head of a few outputs, and the published names of its layers."""

    name: str
    output: str
    outputs: int | None = None
    """None: as many as config.json has labels."""
    reads: Literal["tokens", "first", "pooled"] = "tokens"
    dense: str | None = None
    hidden: Activation | Literal["own"] | None = None
    """The activation after `dense`; "own" is that of the blocks."""


POOLED = Extra("classify", "classifier", reads="pooled")
TAG = Extra("tag", "classifier")
ANSWER = Extra("answer", "qa_outputs", outputs=2)


@dataclass(frozen=True)
class Kind:
    """What one published class puts on the encoder."""

    published: str
    extra: Extra | None = None
    lm: bool = False
    pooler: bool = False


@dataclass(frozen=True)
class Names:
    """How a model type calls what all of them have; `prefix` begins the names of all but the heads."""

    prefix: str
    transform: str
    norm: str
    output: str
    bias: str | None = None
    """None is that of `output`."""
    layer: str = "encoder.layer.{layer}"
    block: Mapping[str, str] | None = None
    """None is BLOCK."""
    pooler: str = "pooler.dense"
    projection: str = "embeddings_project"


def architectures(kinds: Mapping[str, Kind]) -> dict[str, str]:
    """{kind: published class}."""
    return {name: kind.published for name, kind in kinds.items()}


def renamed(kinds: Mapping[str, Kind], theirs: str, own: str) -> dict[str, Kind]:
    """The kinds of another model type, the names of whose classes begin otherwise."""
    return {name: replace(kind, published=own + kind.published.removeprefix(theirs)) for name, kind in kinds.items()}


def ignored(names: Names, *pretraining: str) -> tuple[str, ...]:
    """Patterns of buffers, of a pooler that no head reads, and of the heads of pretraining."""
    own = (*BUFFERS, f"{names.pooler}.*")
    return (*(names.prefix + each for each in own), *pretraining)


def check(
    a: Attributes,
    kind: Kind,
    width: str = "hidden_size",
    count: str = "num_attention_heads",
    activation: str = "hidden_act",
    untied: bool = False,
) -> None:
    """Raises a ValueError that lists all that cannot be read.

    Without `untied` a head of its own output matrix is refused: its files hold a second bias, which does nothing.
    """
    a.activation(activation)
    a.head_dim(width, count)
    if kind.lm and not a["tie_word_embeddings"] and not untied:
        a.refuse("tie_word_embeddings", False)
    a.check()


def model(
    given: Mapping[str, Any],
    kind: Kind,
    labels: int,
    *,
    offset: int = 0,
    transform: Activation | None = None,
    groups: int | None = None,
) -> ModelConfig:
    """The architecture; `given` are attributes as READS names them. `transform` None is the blocks' activation."""
    width, count = given["hidden_size"], given["num_attention_heads"]
    activation = ACTIVATIONS[given["hidden_act"]]
    norm, embedding = NormConfig("layer", given["layer_norm_eps"]), given.get("embedding_size", width)
    extra: tuple[ExtraHeadConfig, ...] = ()
    if kind.extra is not None:
        hidden = activation if kind.extra.hidden == "own" else kind.extra.hidden
        extra = (ExtraHeadConfig(kind.extra.name, kind.extra.outputs or labels, kind.extra.reads, hidden),)
    block = BlockConfig(
        AttentionConfig(count, count, width // count, bias=EVERY),
        MlpConfig(given["intermediate_size"], activation),
        norm,
        norms="post",
        dropout=given["hidden_dropout_prob"],
    )
    return ModelConfig(
        given["vocab_size"],
        width,
        encoder=StackConfig(
            (block,),
            given["num_hidden_layers"],
            causal=False,
            input=InputConfig(
                LearnedConfig(given["max_position_embeddings"] - offset, offset),
                norm,
                given["hidden_dropout_prob"],
                segments=given["type_vocab_size"],
            ),
            groups=groups,
        ),
        head=HeadConfig(given["tie_word_embeddings"], True, transform=TransformConfig(transform or activation, norm))
        if kind.lm
        else None,
        embedding_width=None if embedding == width else embedding,
        pooler="tanh" if kind.pooler and (extra or given.get("add_pooling_layer", True)) else None,
        extra=extra,
    ).validate()


def attributes(config: ModelConfig, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """config.json as READS names its attributes, without a model_type."""
    stack = config.encoder
    if stack is None or config.decoder is not None or not isinstance(stack.input.positions, LearnedConfig):
        raise ValueError("it is one encoder with learned positions")
    kind, block = _kind(config, kinds), stack.pattern[0]
    written = {
        "architectures": [kind.published],
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": block.attention.heads,
        "intermediate_size": block.mlp.width,
        "hidden_act": PUBLISHED.get(block.mlp.activation),
        "hidden_dropout_prob": block.dropout,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": stack.input.positions.length + stack.input.positions.offset,
        "type_vocab_size": stack.input.segments,
        "layer_norm_eps": block.norm.eps,
        "tie_word_embeddings": config.head is None or config.head.tied,
    }
    if kind.extra is not None and kind.extra.outputs is None and config.extra[0].outputs != 2:
        written["num_labels"] = config.extra[0].outputs
    if kind.pooler and config.pooler is None:
        written["add_pooling_layer"] = False
    return written


def _kind(config: ModelConfig, kinds: Mapping[str, Kind]) -> Kind:
    """The class with this model's heads; the encoder alone may lack its pooler."""
    names = [extra.name for extra in config.extra]
    for kind in kinds.values():
        bare = not kind.lm and kind.extra is None and config.pooler is None
        same = kind.lm == (config.head is not None) and names == ([kind.extra.name] if kind.extra else [])
        if same and (bare or kind.pooler == (config.pooler is not None)):
            return kind
    raise ValueError(f"its heads are those of one class: {', '.join(kind.published for kind in kinds.values())}")


def rows(config: ModelConfig, kinds: Mapping[str, Kind], names: Names) -> tuple[Row, ...]:
    """Where each parameter is published."""
    kind, prefix = _kind(config, kinds), names.prefix
    tied = config.head is not None and config.head.tied
    found = table("embed", f"{prefix}embeddings.word_embeddings", also=(f"{names.output}.weight",) if tied else ())
    found += table("encoder/position", f"{prefix}embeddings.position_embeddings")
    if config.encoder is not None and config.encoder.input.segments:
        found += table("encoder/segment", f"{prefix}embeddings.token_type_embeddings")
    found += _norm("encoder/input_norm", f"{prefix}embeddings.LayerNorm")
    if config.embedding_width is not None:
        found += linear("encoder/input_projection", prefix + names.projection, bias=True)
    for part, published in (names.block or BLOCK).items():
        path, name = f"encoder/blocks/{part}", f"{prefix}{names.layer}.{published}"
        inputs = 2 if part.endswith("/out") else 1
        found += _norm(path, name) if part.endswith("norm") else linear(path, name, inputs=inputs, bias=True)
    if config.pooler is not None:
        found += linear("heads/pooler", prefix + names.pooler, bias=True)
    if kind.lm:
        found += linear("heads/lm/transform", names.transform, bias=True) + _norm("heads/lm/norm", names.norm)
        found += () if tied else (Row("heads/lm/kernel", f"{names.output}.weight", "out_in", 1),)
        own = f"{names.output}.bias"
        found += (Row("heads/lm/bias", names.bias or own, also=(own,) if names.bias else ()),)
    if kind.extra is not None and kind.extra.dense is not None:
        found += linear(f"heads/{kind.extra.name}/dense", kind.extra.dense, bias=True)
    if kind.extra is not None:
        found += linear(f"heads/{kind.extra.name}/output", kind.extra.output, bias=True)
    return found


def _norm(path: str, published: str) -> tuple[Row, ...]:
    """The rows of a norm: files of the first checkpoints call its bias beta and its scale gamma."""
    return (
        Row(f"{path}/scale", f"{published}.weight", also=(f"{published}.gamma",)),
        Row(f"{path}/bias", f"{published}.bias", also=(f"{published}.beta",)),
    )
