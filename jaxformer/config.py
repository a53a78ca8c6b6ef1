"""The architecture of a model as data: frozen dataclasses, hashable and checked as a whole."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class NormConfig:
    """Layer normalisation (Ba et al., 2016) or root-mean-square normalisation (Zhang & Sennrich, 2019)."""

    kind: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al., 2021, section 3.2.2); the two halves of a head are the rotated pairs."""

    base: float = 10_000.0


@dataclass(frozen=True)
class AttentionConfig:
    """Scaled dot-product attention (Vaswani et al., 2017, section 3.2), with grouped key heads."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float | None = None
    """Factor on the scores; None is head_dim ** -0.5."""
    bias: tuple[Literal["query", "key", "value", "out"], ...] = ()
    """The projections that add a bias."""
    rope: RopeConfig | None = None
    window: int | None = None
    """How many positions back a query sees, its own included; None is all of them."""


@dataclass(frozen=True)
class MlpConfig:
    """Position-wise feed-forward (Vaswani et al., 2017, section 3.3), or its gated form (Shazeer, 2020)."""

    width: int
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu"
    gated: bool = False
    bias: bool = True


@dataclass(frozen=True)
class BlockConfig:
    """One layer: attention, cross attention where `cross` is given, feed-forward."""

    attention: AttentionConfig
    mlp: MlpConfig
    norm: NormConfig = NormConfig()
    norms: Literal["pre", "post"] = "pre"
    """Where norms stand: before each sublayer, or after its residual sum."""
    cross: AttentionConfig | None = None
    dropout: float = 0.0
    """Probability of dropping an element of a sublayer's output while training."""


@dataclass(frozen=True)
class LearnedConfig:
    """A trained vector for each position; the table's row is position + offset."""

    length: int
    offset: int = 0


@dataclass(frozen=True)
class SinusoidConfig:
    """Fixed sines and cosines (Vaswani et al., 2017, section 3.5), sines in the first half of the width."""

    base: float = 10_000.0


@dataclass(frozen=True)
class InputConfig:
    """What is done to the embedded tokens before the first block."""

    positions: LearnedConfig | SinusoidConfig | None = None
    norm: NormConfig | None = None
    dropout: float = 0.0


@dataclass(frozen=True)
class StackConfig:
    """`layers` blocks, walking through `pattern` again and again.

    Blocks of a pattern differ in settings (a window, the base of their rotary positions), never in shapes.
    """

    pattern: tuple[BlockConfig, ...]
    layers: int
    causal: bool
    input: InputConfig = InputConfig()
    final_norm: NormConfig | None = None


@dataclass(frozen=True)
class HeadConfig:
    """From the last hidden vectors to logits over the vocabulary."""

    tied: bool = True
    """Use the token embedding as the output matrix."""
    scale: float = 1.0
    """Factor on the hidden vectors."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""


@dataclass(frozen=True)
class ModelConfig:
    """A whole Transformer: an encoder, a decoder, or both, over one vocabulary."""

    vocab: int
    width: int
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    head: HeadConfig = HeadConfig()

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
class Card:
    """What is published beside the architecture: labels, special ids, generation defaults, attributes.

    It travels with a model, outside its hash and equality, and goes back out as it was read.
    """

    model_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """config.json as it was read."""
    generation: dict[str, Any] = field(default_factory=dict)
    """generation_config.json as it was read."""

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
        if stack is None:
            continue
        if not stack.pattern:
            found.append(f"{name}.pattern is empty: give at least one block")
        elif stack.layers % len(stack.pattern):
            found.append(f"{name}.layers is {stack.layers}, no multiple of the pattern's {len(stack.pattern)} blocks")
        for i, block in enumerate(stack.pattern):
            found += _block_problems(
                block, f"{name}.pattern[{i}]", crosses=name == "decoder" and bool(config.encoder)
            )
            if _shape_of(block) != _shape_of(stack.pattern[0]):
                found.append(f"{name}.pattern[{i}] differs from pattern[0] in a shape: only settings may differ")
        positions = stack.input.positions
        if isinstance(positions, SinusoidConfig) and config.width % 2:
            found.append(f"width is {config.width}: the {name}'s sinusoid positions need an even width")
        if isinstance(positions, LearnedConfig) and positions.offset < 0:
            found.append(f"{name}.input.positions.offset is {positions.offset}: it must be at least zero")
        found += _dropout_problems(stack.input.dropout, f"{name}.input")
    if config.decoder is not None and not config.decoder.causal:
        found.append("decoder.causal is False: a stack that sees what comes later is an encoder")
    return found


def _block_problems(block: BlockConfig, at: str, crosses: bool) -> list[str]:
    found = []
    if crosses and block.cross is None:
        found.append(f"{at}.cross is None, but the model has an encoder for the decoder to look at")
    if block.cross is not None and not crosses:
        found.append(f"{at}.cross is set, but there is no encoder to look at: set it to None")
    for name in ("attention", "cross"):
        attention: AttentionConfig | None = getattr(block, name)
        if attention is None or attention.kv_heads <= 0:
            continue
        if attention.heads % attention.kv_heads:
            found.append(f"{at}.{name}.heads is {attention.heads}, no multiple of kv_heads {attention.kv_heads}")
        if attention.rope is not None and attention.head_dim % 2:
            found.append(f"{at}.{name}.head_dim is {attention.head_dim}: rotary positions need an even one")
    for name in ("rope", "window"):
        if block.cross is not None and getattr(block.cross, name) is not None:
            found.append(f"{at}.cross.{name} is set: cross attention sees all of the encoder, wherever it stands")
    return found + _dropout_problems(block.dropout, at)


def _dropout_problems(rate: float, at: str) -> list[str]:
    return [] if 0 <= rate < 1 else [f"{at}.dropout is {rate}: give a probability, at least 0 and below 1"]


def _shape_of(block: BlockConfig) -> BlockConfig:
    """The block with every setting that changes no parameter's shape taken out."""

    def plain(attention: AttentionConfig | None) -> AttentionConfig | None:
        return attention and dataclasses.replace(attention, scale=None, rope=None, window=None)

    attention = plain(block.attention)
    assert attention is not None
    return dataclasses.replace(block, attention=attention, cross=plain(block.cross))


_POSITIVE = {
    "vocab",
    "width",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "length",
    "eps",
    "base",
    "window",
    "softcap",
}


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
