"""Where a token stands, and three ways to say so. B batch, T length, D width, H heads, C head dim."""

import jax.numpy as jnp
from jax import Array, lax

from jaxformer.config import RopeConfig, SinusoidConfig


def count(shape: tuple[int, int], mask: Array | None = None, segments: Array | None = None) -> Array:
    """Positions int32 [B, T], from 0: masked tokens do not count, and each segment starts anew."""
    if mask is not None:
        seen = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
    else:
        seen = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None], shape)
    if segments is not None:
        first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        seen -= lax.cummax(jnp.where(first, seen, 0), axis=1)
    return jnp.maximum(seen, 0)


def sinusoid(positions_BT: Array, width: int, config: SinusoidConfig) -> Array:
    """Sines, then cosines, of geometrically spaced frequencies (Vaswani et al., 2017, section 3.5): [B, T, D]."""
    angles = _angles(positions_BT, width, config.base)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotation(positions_BT: Array, head_dim: int, config: RopeConfig) -> tuple[Array, Array]:
    """Cosines and sines [B, T, 1, C / 2] by which `rotate` turns each pair: made once, used by every layer."""
    angles = _angles(positions_BT, head_dim, config.base)[:, :, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTHC: Array, rotation: tuple[Array, Array]) -> Array:
    """Turn the pair (i, i + C / 2) of each head by its position's angle (Su et al., 2021, equation 34)."""
    cos, sin = (jnp.broadcast_to(part, (*x_BTHC.shape[:3], part.shape[-1])) for part in rotation)
    a, b = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHC.dtype)


def _angles(positions_BT: Array, width: int, base: float) -> Array:
    """Position / base ** (2i / width) for i below width / 2: float32 [B, T, width / 2]."""
    frequencies = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    return positions_BT[..., None].astype(jnp.float32) * frequencies[None, None]
