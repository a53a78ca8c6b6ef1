"""The chips that a plan knows: how fast they compute, and how much they hold and move."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device, by what its maker says of it."""

    kind: str
    """As jax names it."""
    peak: float
    """FLOP/s of products of bfloat16."""
    memory: float
    """Bytes that a program may use of its memory."""
    bandwidth: float
    """Bytes/s between the chip and its memory."""
    links: float
    """Bytes/s to other chips of the slice, all links and both directions together."""


CHIPS = {
    "v5e": Chip("TPU v5 lite", 197e12, 15.75 * GIB, 819e9, 400e9),
    "v5p": Chip("TPU v5", 459e12, 95.74 * GIB, 2765e9, 1200e9),
    "v6e": Chip("TPU v6 lite", 918e12, 31.25 * GIB, 1638e9, 800e9),
}
"""Peak, bandwidth and links are those of cloud.google.com/tpu/docs/v5e, /v5p and /v6e, read in November 2026; memory
is what the compiler (libtpu 0.0.42) says is available when a program does not fit: 16, 95 and 32 GB are sold."""

GPUS = (
    Chip("NVIDIA H100 80GB HBM3", 989e12, 80e9, 3350e9, 900e9),
    Chip("NVIDIA A100-SXM4-80GB", 312e12, 80e9, 2039e9, 600e9),
    Chip("NVIDIA A100-SXM4-40GB", 312e12, 40e9, 1555e9, 600e9),
    Chip("NVIDIA L4", 121e12, 24e9, 300e9, 64e9),
    Chip("Tesla T4", 65e12, 16e9, 320e9, 32e9),
)
"""Of NVIDIA's data sheets, without sparsity; the T4's peak is that of float16, links of the last two are PCIe. How
much a program may use is asked of the device itself."""

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SLICES = {
    "v5e": _FLAT,
    "v6e": _FLAT,
    "v5p": ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
}
"""Slices that can be had (v5p: and larger ones, each side a multiple of 4; a single v5p is not sold)."""
