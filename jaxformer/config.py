"""The architecture of a model as data: frozen dataclasses, hashable and checked as a whole."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxformer.parts import (
    Activation,
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    DynamicScaling,
    ExpertsConfig,
    ExtraHeadConfig,
    HeadConfig,
    InputConfig,
    LearnedConfig,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    MlpConfig,
    NormConfig,
    RelativeConfig,
    RopeConfig,
    Scaling,
    SinusoidConfig,
    StackConfig,
    TransformConfig,
    YarnScaling,
)

__all__ = [
    "Activation",
    "AlibiConfig",
    "AttentionConfig",
    "BlockConfig",
    "Card",
    "DynamicScaling",
    "ExpertsConfig",
    "ExtraHeadConfig",
    "HeadConfig",
    "InputConfig",
    "LearnedConfig",
    "LinearScaling",
    "Llama3Scaling",
    "LongScaling",
    "MlpConfig",
    "ModelConfig",
    "NormConfig",
    "RelativeConfig",
    "RopeConfig",
    "Scaling",
    "Sentences",
    "SinusoidConfig",
    "StackConfig",
    "TransformConfig",
    "YarnScaling",
    "problems",
]


@dataclass(frozen=True)
class ModelConfig:
    """A whole Transformer: an encoder, a decoder, or both, over one vocabulary."""

    vocab: int
    width: int
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    head: HeadConfig | None = HeadConfig()
    """None where there are no logits over the vocabulary."""
    embedding_width: int | None = None
    """Width of the token embedding and all that is added to it; None is the model's."""
    pooler: Activation | None = None
    """A dense layer with this activation over the first token's hidden vector (BERT's is tanh)."""
    extra: tuple[ExtraHeadConfig, ...] = ()

    def validate(self) -> "ModelConfig":
        """Return self, or raise one ValueError that lists every problem and what to change."""
        found = problems(self)
        if found:
            raise ValueError("this model cannot be built:\n" + "\n".join(f"  - {line}" for line in found))
        return self

    @property
    def main(self) -> Literal["encoder", "decoder"]:
        """The stack whose hidden vectors reach the head."""
        return "decoder" if self.decoder is not None else "encoder"


@dataclass(frozen=True)
class Sentences:
    """How a text becomes a vector: the pooling of the hidden vectors of its tokens, padding left out."""

    pooling: Literal["mean", "first", "last", "max"] = "mean"
    """Their mean, the first, the last, or the largest number in each dimension."""
    normalize: bool = False
    """The vector is divided by its Euclidean length."""
    length: int | None = None
    """Texts are cut to so many tokens, special ones included; None is the model's own limit."""
    lowercase: bool = False
    """Texts are lowercased before the tokenizer."""
    about: dict[str, Any] = field(default_factory=dict, hash=False)
    """Prompts, similarity and versions: config_sentence_transformers.json as it was read."""


@dataclass(frozen=True)
class Card:
    """What is published beside the architecture: labels, special ids, generation defaults, attributes.

    It travels with a model, outside its hash and equality, and goes back out as it was read.
    """

    model_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """config.json as it was read."""
    generation: dict[str, Any] = field(default_factory=dict)
    """generation_config.json as it was read."""
    sentences: Sentences | None = None
    """How the published folder makes a vector of a text; None where it does not say."""

    def special(self, name: str) -> tuple[int, ...]:
        """Ids of a special token, such as "eos": generation_config.json first, then config.json; () if none."""
        for source in (self.generation, self.config):
            value = source.get(f"{name}_token_id")
            if value is not None:
                return tuple(value) if isinstance(value, list | tuple) else (value,)
        return ()


def problems(config: ModelConfig) -> list[str]:
    """Every reason why a model of this architecture cannot be built, each with its path and a remedy."""
    found = _not_positive(config, "")
    if config.encoder is None and config.decoder is None:
        found.append("encoder and decoder are both None: give at least one stack")
    for name in ("encoder", "decoder"):
        stack: StackConfig | None = getattr(config, name)
        if stack is not None:
            found += _stack_problems(stack, name, config, crosses=name == "decoder" and bool(config.encoder))
    if config.decoder is not None and not config.decoder.causal:
        found.append("decoder.causal is False: a stack that sees what comes later is an encoder")
    return found + _head_problems(config)


def _stack_problems(stack: StackConfig, name: str, config: ModelConfig, crosses: bool) -> list[str]:
    found = [] if stack.pattern else [f"{name}.pattern is empty: give at least one block"]
    for i, block in enumerate(stack.pattern):
        found += _block_problems(block, f"{name}.pattern[{i}]", crosses)
        if _shape_of(block) != _shape_of(stack.pattern[0]):
            found.append(f"{name}.pattern[{i}] differs from pattern[0] in a shape: only settings may differ")
    if stack.groups is not None and stack.groups > 0 and (stack.layers % stack.groups or len(stack.pattern) > 1):
        found.append(
            f"{name}.groups is {stack.groups}: it must divide the {stack.layers} layers, of one pattern block"
        )
    positions, width = stack.input.positions, config.embedding_width or config.width
    width = config.width if stack.input.projection_first else width
    if isinstance(positions, SinusoidConfig) and width % 2:
        found.append(f"width is {width}: the {name}'s sinusoid positions need an even width")
    for path, value in (("positions.offset", getattr(positions, "offset", 0)), ("segments", stack.input.segments)):
        if value < 0:
            found.append(f"{name}.input.{path} is {value}: it must be at least zero")
    if isinstance(stack.bias, RelativeConfig) and not 4 <= stack.bias.buckets < 2 * stack.bias.distance:
        found.append(
            f"{name}.bias.buckets is {stack.bias.buckets}: give at least 4, and less than twice the distance"
        )
    return found + _dropout_problems(stack.input.dropout, f"{name}.input")


def _block_problems(block: BlockConfig, at: str, crosses: bool) -> list[str]:
    found = []
    if crosses and block.cross is None:
        found.append(f"{at}.cross is None, but the model has an encoder for the decoder to look at")
    if block.cross is not None and not crosses:
        found.append(f"{at}.cross is set, but there is no encoder to look at: set it to None")
    for name in ("attention", "cross"):
        attention: AttentionConfig | None = getattr(block, name)
        if attention is not None and attention.kv_heads > 0:
            found += _attention_problems(attention, f"{at}.{name}")
    for name in ("rope", "window"):
        if block.cross is not None and getattr(block.cross, name) is not None:
            found.append(f"{at}.cross.{name} is set: cross attention sees all of the encoder, wherever it stands")
    if block.parallel and (block.cross is not None or block.norms != "pre"):
        found.append(f"{at}.parallel is set: it goes with pre norms and without cross attention")
    if isinstance(block.mlp, ExpertsConfig) and block.mlp.top_k > block.mlp.experts:
        found.append(f"{at}.mlp.top_k is {block.mlp.top_k}, more than its {block.mlp.experts} experts")
    return found + _dropout_problems(block.dropout, at)


def _attention_problems(attention: AttentionConfig, at: str) -> list[str]:
    found, rope = [], attention.rope
    if attention.heads % attention.kv_heads:
        found.append(f"{at}.heads is {attention.heads}, no multiple of kv_heads {attention.kv_heads}")
    if rope is None:
        return found
    dim = attention.head_dim if rope.dim is None else rope.dim
    if dim % 2 or dim > attention.head_dim:
        where = f"{at}.head_dim" if rope.dim is None else f"{at}.rope.dim"
        found.append(f"{where} is {dim}: rotary positions need an even one, at most head_dim")
    if isinstance(rope.scaling, Llama3Scaling) and not 0 < rope.scaling.low < rope.scaling.high:
        found.append(f"{at}.rope.scaling: low is {rope.scaling.low}, high {rope.scaling.high}: give 0 < low < high")
    if isinstance(rope.scaling, YarnScaling) and not 0 < rope.scaling.beta_slow <= rope.scaling.beta_fast:
        found.append(f"{at}.rope.scaling: give 0 < beta_slow <= beta_fast")
    if isinstance(rope.scaling, LongScaling) and min(*rope.scaling.short, *rope.scaling.long) <= 0:
        found.append(f"{at}.rope.scaling: short and long divide: they must be above zero")
    if isinstance(rope.scaling, LongScaling) and {2 * len(rope.scaling.short), 2 * len(rope.scaling.long)} != {dim}:
        found.append(f"{at}.rope.scaling: short and long need {dim // 2} divisors each, one for each pair")
    return found


def _head_problems(config: ModelConfig) -> list[str]:
    found, head, width = [], config.head, config.embedding_width
    if head is not None and head.tied and head.transform is None and width not in (None, config.width):
        found.append(
            f"head.transform is None: a tied head must come from width {config.width} to the embedding's {width}"
        )
    names = [extra.name for extra in config.extra]
    if len(names) != len({*names, "lm", "pooler"}) - 2:
        found.append(f"extra heads are called {', '.join(names)}: give each a name of its own, not lm or pooler")
    if config.pooler is None and any(extra.reads == "pooled" for extra in config.extra):
        found.append("pooler is None, but an extra head reads it: give it an activation")
    return found


def _dropout_problems(rate: float, at: str) -> list[str]:
    return [] if 0 <= rate < 1 else [f"{at}.dropout is {rate}: give a probability, at least 0 and below 1"]


def _shape_of(block: BlockConfig) -> BlockConfig:
    """The block with every setting that changes no parameter's shape taken out."""

    def plain(attention: AttentionConfig | None) -> AttentionConfig | None:
        return attention and dataclasses.replace(attention, scale=None, rope=None, window=None, softcap=None)

    attention = plain(block.attention)
    assert attention is not None
    return dataclasses.replace(block, attention=attention, cross=plain(block.cross))


_SIZES = """
    vocab width layers heads kv_heads head_dim length eps base dim window softcap groups experts top_k outputs
    embedding_width factor buckets distance
"""
_POSITIVE = frozenset(_SIZES.split())


def _not_positive(config: Any, at: str) -> list[str]:
    """Sizes that are zero or negative, anywhere in a nest of dataclasses and tuples."""
    if isinstance(config, tuple):
        return [line for i, item in enumerate(config) for line in _not_positive(item, f"{at}[{i}]")]
    if not dataclasses.is_dataclass(config):
        return []
    found = []
    for item in dataclasses.fields(config):
        value, path = getattr(config, item.name), f"{at}.{item.name}".lstrip(".")
        if item.name in _POSITIVE and value is not None and value <= 0:
            found.append(f"{path} is {value}: it must be above zero")
        found += _not_positive(value, path)
    return found
