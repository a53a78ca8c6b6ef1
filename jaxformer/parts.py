"""The vocabulary of an architecture: the parts that a model is put together of, as frozen dataclasses."""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh"]


@dataclass(frozen=True)
class NormConfig:
    """Layer normalisation (Ba et al., 2016) or root-mean-square normalisation (Zhang & Sennrich, 2019)."""

    kind: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5
    offset: float = 0.0
    """Added to the learned scale, which then begins at 1 - offset (1 in Gemma)."""


@dataclass(frozen=True)
class LinearScaling:
    """Every rotary angle divided by `factor` (Chen et al., 2023, arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """The rotary base grows with a text that is longer than `length` tokens (NTK-aware, dynamic)."""

    factor: float
    length: int


@dataclass(frozen=True)
class YarnScaling:
    """Low frequencies divided by `factor`, high ones kept, a ramp between (Peng et al., 2023, arXiv:2309.00071)."""

    factor: float
    length: int
    """Tokens of a text before it was stretched."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Factor on cosines and sines."""
    truncate: bool = True
    """Round the ends of the ramp to whole dimensions."""


@dataclass(frozen=True)
class Llama3Scaling:
    """Wavelengths beyond length / low are stretched, those below length / high kept (LLaMA 3.1)."""

    factor: float
    low: float
    high: float
    length: int


@dataclass(frozen=True)
class LongScaling:
    """A divisor for each frequency: `short` up to `length` tokens, `long` beyond (Ding et al., 2024, LongRoPE)."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    length: int
    attention_factor: float = 1.0
    """Factor on cosines and sines."""


Scaling = LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongScaling


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al., 2021, section 3.2.2)."""

    base: float = 10_000.0
    dim: int | None = None
    """How many of a head's dimensions turn, the first ones; None is all of them."""
    interleaved: bool = False
    """Rotated pairs are neighbours (2i, 2i + 1); else they stand half of `dim` apart."""
    scaling: Scaling | None = None


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
    qk_norm: NormConfig | None = None
    """Normalise each head's query and key before they turn (Dehghani et al., 2023, section 2)."""
    softcap: float | None = None
    """Scores become softcap * tanh(scores / softcap)."""


@dataclass(frozen=True)
class MlpConfig:
    """Position-wise feed-forward (Vaswani et al., 2017, section 3.3), or its gated form (Shazeer, 2020)."""

    width: int
    activation: Activation = "gelu"
    gated: bool = False
    bias: bool = True


@dataclass(frozen=True)
class ExpertsConfig:
    """Of `experts` gated feed-forwards each token takes the `top_k` that a router ranks highest (Shazeer, 2017)."""

    width: int
    """Inner width of one expert."""
    experts: int
    top_k: int
    activation: Activation = "silu"
    normalize: bool = True
    """The weights of the experts taken sum to one; else they are those of the softmax over all."""


@dataclass(frozen=True)
class BlockConfig:
    """One layer: attention, cross attention where `cross` is given, feed-forward."""

    attention: AttentionConfig
    mlp: MlpConfig | ExpertsConfig
    norm: NormConfig = NormConfig()
    norms: Literal["pre", "post", "sandwich", "branch"] = "pre"
    """Where norms stand: before each sublayer; after its residual sum; before it and on its output (Gemma 2);
    on its output alone (OLMo 2)."""
    parallel: bool = False
    """Attention and feed-forward read the same norm and are added together (GPT-J)."""
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
class RelativeConfig:
    """A learned bias on the scores for each head and bucket of distances (Raffel et al., 2020, section 2.1).

    In a causal stack all buckets count distances back; else half of them count back and half ahead.
    """

    buckets: int = 32
    distance: int = 128
    """Distances from here on share one bucket."""


@dataclass(frozen=True)
class AlibiConfig:
    """A bias on the scores that falls with the distance, at a slope of its own in each head (Press et al., 2022)."""


@dataclass(frozen=True)
class InputConfig:
    """What is done to the embedded tokens before the first block: scale, positions, segments, norm, projection."""

    positions: LearnedConfig | SinusoidConfig | None = None
    norm: NormConfig | None = None
    dropout: float = 0.0
    scale: float = 1.0
    """Factor on the embedded tokens."""
    segments: int = 0
    """Kinds of token, each with a trained vector that is added (BERT); 0 for none."""
    projection_bias: bool = True
    """Where the embedding has a width of its own: whether its projection to the model's adds a bias."""
    projection_first: bool = False
    """The projection comes before all that is added, whose width then is the model's (OPT)."""


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
    bias: RelativeConfig | AlibiConfig | None = None
    """What distances add to the scores of self attention, the same in every layer."""
    groups: int | None = None
    """How many layers have parameters of their own, each shared by layers / groups in a row (ALBERT); None is all."""

    @property
    def leading(self) -> int:
        """First axis of the blocks' parameters."""
        return self.layers if self.groups is None else self.groups


@dataclass(frozen=True)
class TransformConfig:
    """A dense layer before the output matrix, to the embedding's width; then an activation and a norm."""

    activation: Activation | None = None
    norm: NormConfig | None = None
    bias: bool = True


@dataclass(frozen=True)
class HeadConfig:
    """From the last hidden vectors to logits over the vocabulary."""

    tied: bool = True
    """Use the token embedding as the output matrix."""
    bias: bool = False
    scale: float = 1.0
    """Factor on the hidden vectors."""
    transform: TransformConfig | None = None
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""


@dataclass(frozen=True)
class ExtraHeadConfig:
    """A head beside or in place of that over the vocabulary: `outputs` numbers of each token, or of each row."""

    name: str
    """Its parameters lie at heads/<name>."""
    outputs: int
    reads: Literal["tokens", "first", "last", "pooled"] = "tokens"
    """Every token; the row's first; its last that is not padding; what the pooler gives."""
    hidden: Activation | None = None
    """A dense layer of the model's width with this activation comes first."""
    bias: bool = True
