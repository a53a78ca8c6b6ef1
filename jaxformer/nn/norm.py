"""Normalisation over the width, in float32 whatever the dtype of x."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxformer.config import NormConfig


def layer(x: Array, eps: float) -> Array:
    """Zero mean and unit variance (Ba et al., 2016, equation 3)."""
    centered = x - x.mean(-1, keepdims=True)
    return centered * lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + eps)


def rms(x: Array, eps: float) -> Array:
    """Unit mean square (Zhang & Sennrich, 2019, equation 4)."""
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


NORMS = {"layer": layer, "rms": rms}
SHIFTED = {"layer"}
"""The kinds that also learn a bias."""


class Norm(nn.Module):
    """Normalise, then rescale by a learned vector, and shift by one where the kind has it."""

    config: NormConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D], normalised and rescaled by learned vectors [D]."""
        shape = x.shape[-1:]
        y = NORMS[self.config.kind](x.astype(jnp.float32), self.config.eps)
        scale = self.param("scale", nn.initializers.constant(1 - self.config.offset), shape).astype(jnp.float32)
        y *= jnp.broadcast_to(scale + self.config.offset, y.shape)
        if self.config.kind in SHIFTED:
            y += jnp.broadcast_to(self.param("bias", nn.initializers.zeros, shape).astype(jnp.float32), y.shape)
        return y.astype(x.dtype)
