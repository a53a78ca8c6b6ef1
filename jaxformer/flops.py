"""How much a step computes, from the architecture alone: a multiplication and an addition are two FLOPs.

Matrix products count, and nothing else: norms, softmax, activations, rotations, the optimizer and the look-up of an
embedding are left out, as in the usual 6N + 12LDT a token (Chowdhery et al., 2022, appendix B), which this equals.
"""

from dataclasses import dataclass
from typing import Literal

from jaxformer.config import AttentionConfig, BlockConfig, ExpertsConfig, ExtraHeadConfig, ModelConfig, StackConfig

BACKWARD = 2
"""A product's two gradients, one for each of its factors, over the product itself."""


@dataclass(frozen=True)
class Flops:
    """FLOPs by where they fall."""

    blocks: float = 0.0
    """Products with the parameters of blocks; of a mixture those of the experts that a token takes."""
    attention: float = 0.0
    """Scores and weighted values."""
    head: float = 0.0
    """The output matrix, and all other products outside of blocks."""

    @property
    def total(self) -> float:
        """All together."""
        return self.blocks + self.attention + self.head

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.blocks + other.blocks, self.attention + other.attention, self.head + other.head)

    def __mul__(self, factor: float) -> "Flops":
        return Flops(self.blocks * factor, self.attention * factor, self.head * factor)


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a training step."""

    forward: Flops
    recomputed: Flops
    """What the backward pass computes a second time instead of keeping it."""

    @property
    def model(self) -> float:
        """Forward and backward pass, what is recomputed left out: what model FLOPs utilization (MFU) counts."""
        return (1 + BACKWARD) * self.forward.total

    @property
    def hardware(self) -> float:
        """All that the device does. A kernel that computes scores anew by itself does more."""
        return self.model + self.recomputed.total


def step_flops(
    config: ModelConfig,
    rows: int,
    length: int,
    targets: int | None = None,
    *,
    predicted: int | None = None,
    remat: Literal["none", "dots", "full"] = "none",
    causal: Literal["whole", "half"] = "whole",
) -> StepFlops:
    """FLOPs of a step on `rows` rows of `length` tokens; `targets` are those of a decoder behind an encoder.

    `predicted`: places of a row that the head over the vocabulary sees; None is all of them. `causal`: "whole"
    counts every pair of query and key, as MFU is mostly reported; "half" those that a causal mask or a window lets
    through, which is what a kernel that skips the others computes.
    """
    decoder_length = length if targets is None else targets
    lengths = {"encoder": (length, length), "decoder": (decoder_length, length)}
    forward, again = Flops(), Flops()
    for name, (own, looked_at) in lengths.items():
        stack: StackConfig | None = getattr(config, name)
        if stack is None:
            continue
        for index in range(stack.layers):
            block = stack.pattern[index % len(stack.pattern)]
            one = _block(block, config.width, own, looked_at, stack.causal and causal == "half")
            forward, again = forward + one, again + _again(block, one, config.width, own, remat)
        forward += Flops(head=_projected(config, own))
    last = length if config.decoder is None else decoder_length
    forward += Flops(head=_heads(config, last, last if predicted is None else predicted))
    return StepFlops(forward * rows, again * rows)


def _block(block: BlockConfig, width: int, length: int, looked_at: int, skips: bool) -> Flops:
    a = block.attention
    found = Flops(_projections(a, width, length, length), _scores(a, length, _seen(a, length) if skips else length))
    if block.cross is not None:
        c = block.cross
        found += Flops(_projections(c, width, length, looked_at), _scores(c, length, looked_at))
    mlp = block.mlp
    if isinstance(mlp, ExpertsConfig):
        return found + Flops(2 * length * width * (mlp.experts + 3 * mlp.top_k * mlp.width))
    return found + Flops(2 * length * width * mlp.width * (3 if mlp.gated else 2))


def _again(block: BlockConfig, one: Flops, width: int, length: int, remat: str) -> Flops:
    """What `remat` computes anew of a block: "dots" keeps the products with parameters, but for those of experts."""
    mlp = block.mlp
    experts = 6 * length * width * mlp.width * mlp.top_k if isinstance(mlp, ExpertsConfig) else 0
    if remat == "none":
        return Flops()
    if remat == "dots":
        return Flops(blocks=experts, attention=one.attention)
    # Of what is merely added to the residual stream nothing asks again, but for the weights of experts.
    last = 0 if block.norms != "pre" or experts else 2 * length * width * mlp.width
    if block.parallel:
        last += 2 * length * width * block.attention.heads * block.attention.head_dim
    return Flops(one.blocks - last, one.attention)


def _projections(a: AttentionConfig, width: int, length: int, looked_at: int) -> float:
    return 2 * width * a.head_dim * (2 * a.heads * length + 2 * a.kv_heads * looked_at)


def _scores(a: AttentionConfig, length: int, keys: float) -> float:
    return 4 * a.heads * a.head_dim * length * keys


def _seen(a: AttentionConfig, length: int) -> float:
    """Keys that a query sees under a causal mask, on the mean."""
    window = min(a.window or length, length)
    return (window * (window + 1) / 2 + (length - window) * window) / length


def _projected(config: ModelConfig, length: int) -> float:
    """From the embedding's width to the model's, at the input of a stack."""
    width = config.embedding_width or config.width
    return 0 if width == config.width else 2 * length * width * config.width


def _heads(config: ModelConfig, length: int, predicted: int) -> float:
    width, total = config.width, 0
    if config.head is not None:
        inner = width if config.head.transform is None else config.embedding_width or width
        total += 2 * predicted * (inner * config.vocab + (0 if config.head.transform is None else width * inner))
    if config.pooler is not None:
        total += 2 * width * width
    return total + sum(_extra(head, width, length) for head in config.extra)


def _extra(head: ExtraHeadConfig, width: int, length: int) -> int:
    places = length if head.reads == "tokens" else 1
    return 2 * places * width * (head.outputs + (0 if head.hidden is None else width))
