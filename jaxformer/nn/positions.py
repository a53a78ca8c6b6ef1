"""Where a token stands, and four ways to say so. B batch, T queries, S keys, D width, H heads, C head dim."""

import math

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from jaxformer.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RelativeConfig,
    RopeConfig,
    SinusoidConfig,
    YarnScaling,
)


@struct.dataclass
class Rotation:
    """By what `rotate` turns each pair of a head's dimensions: float32 [B, T, 1, pairs]."""

    cos: Array
    sin: Array
    interleaved: bool = struct.field(pytree_node=False, default=False)
    """Pairs are neighbours (2i, 2i + 1); else (i, i + pairs)."""


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
    angles = _angles(positions_BT, _frequencies(width, config.base))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotation(positions_BT: Array, head_dim: int, config: RopeConfig) -> Rotation:
    """Cosines and sines of each position's angles: made once, used by every layer.

    Dynamic and long scaling look at the longest text of the batch: another one may turn all of them otherwise.
    """
    dim = head_dim if config.dim is None else config.dim
    angles = _angles(positions_BT, _scaled(dim, config, jnp.max(positions_BT) + 1))[:, :, None]
    factor = getattr(config.scaling, "attention_factor", 1.0)
    return Rotation(jnp.cos(angles) * factor, jnp.sin(angles) * factor, config.interleaved)


def rotate(x_BTHC: Array, rotation: Rotation) -> Array:
    """Turn each pair by its position's angle (Su et al., 2021, equation 34); dimensions past the pairs stay."""
    cos, sin = (jnp.broadcast_to(p, (*x_BTHC.shape[:3], p.shape[-1])) for p in (rotation.cos, rotation.sin))
    dim = 2 * cos.shape[-1]
    turning, still = x_BTHC[..., :dim].astype(jnp.float32), x_BTHC[..., dim:]
    a, b = (turning[..., ::2], turning[..., 1::2]) if rotation.interleaved else jnp.split(turning, 2, axis=-1)
    pair = (a * cos - b * sin, b * cos + a * sin)
    if rotation.interleaved:
        turned = jnp.stack(pair, axis=-1).reshape(turning.shape)
    else:
        turned = jnp.concatenate(pair, axis=-1)
    return jnp.concatenate([turned.astype(x_BTHC.dtype), still], axis=-1)


def relative_bias(
    table: Array, queries: int, keys: int, start: Array | int, causal: bool, config: RelativeConfig
) -> Array:
    """What distances add to the scores, float32 [H, T, S]: learned, `table` is [buckets, H].

    Query t stands at slot start + t of the keys' slots, which begin at 0.
    """
    bucket_TS = buckets(_difference(queries, keys, start), config, causal)
    return jnp.moveaxis(table.astype(jnp.float32)[bucket_TS], -1, 0)


def buckets(difference: Array, config: RelativeConfig, causal: bool) -> Array:
    """The bucket, int32, of each difference, the query's slot less the key's (Raffel et al., 2020, section 2.1).

    Small distances have a bucket each, larger ones share one with those of about the same logarithm.
    """
    sided = config.buckets if causal else config.buckets // 2
    exact = sided // 2
    # Looked up, not computed from the difference: where a logarithm falls on an edge, devices would disagree.
    distances = np.arange(config.distance + 1)
    octaves = np.log(np.maximum(distances, exact) / exact) / math.log(config.distance / exact)
    shared = np.minimum(exact + octaves * (sided - exact), sided - 1)
    found = np.where(distances < exact, distances, shared).astype(np.int32)
    distance = jnp.maximum(difference, 0) if causal else jnp.abs(difference)
    bucket = jnp.asarray(found)[jnp.minimum(distance, config.distance)]
    return bucket if causal else bucket + sided * (difference < 0)


def alibi(heads: int, queries: int, keys: int, start: Array | int) -> Array:
    """What distances add to the scores, float32 [H, T, S]: a slope for each head (Press et al., 2022, section 3).

    Query t stands at slot start + t of the keys' slots, which begin at 0. A key after its query, which a causal
    mask hides, gets a bias above 0.
    """
    power = 2 ** (heads.bit_length() - 1)
    # Heads beyond a power of two take every other slope of the next power's.
    exponents = [8 / power * np.arange(1, power + 1), 4 / power * np.arange(1, 2 * (heads - power), 2)]
    slopes = jnp.asarray(2.0 ** -np.concatenate(exponents), jnp.float32)
    return -slopes[:, None, None] * _difference(queries, keys, start)[None].astype(jnp.float32)


def _difference(queries: int, keys: int, start: Array | int) -> Array:
    """The query's slot less the key's: int32 [T, S]."""
    return start + jnp.arange(queries)[:, None] - jnp.arange(keys)[None, :]


def _angles(positions_BT: Array, frequencies: Array | np.ndarray) -> Array:
    """Position x frequency: float32 [B, T, pairs]."""
    return positions_BT[..., None].astype(jnp.float32) * frequencies[None, None]


def _frequencies(dim: int, base: float) -> np.ndarray:
    """1 / base ** (2i / dim) for i below dim / 2, float32."""
    # Rounded after each step, as published models were trained: far out a last bit is an angle that shows.
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return 1 / (float(base) ** exponents.astype(np.float64)).astype(np.float32)


def _scaled(dim: int, config: RopeConfig, longest: Array) -> Array | np.ndarray:
    """Frequencies of rotary positions, float32 [dim / 2], where the longest text has so many tokens."""
    frequencies = _frequencies(dim, config.base)
    match config.scaling:
        case LinearScaling(factor):
            return frequencies / np.float32(factor)
        case DynamicScaling(factor, length):
            # base * stretch ** (dim / (dim - 2)), so written that texts up to `length` keep their last bit
            stretch = 1 + factor * jnp.maximum(longest - length, 0) / length
            return frequencies * stretch ** -np.linspace(0, 1, dim // 2, dtype=np.float32)
        case LongScaling(short, long, length):
            divisors = [jnp.asarray(each, jnp.float32) for each in (long, short)]
            return frequencies / jnp.where(longest > length, *divisors)
        case YarnScaling() as scaling:
            return _blend(frequencies, scaling.factor, _yarn(dim, config.base, scaling))
        case Llama3Scaling() as scaling:
            turns = scaling.length * frequencies / (2 * math.pi)
            return _blend(frequencies, scaling.factor, (turns - scaling.low) / (scaling.high - scaling.low))
    return frequencies


def _blend(frequencies: np.ndarray, factor: float, kept: np.ndarray) -> np.ndarray:
    """Frequencies divided by `factor`, but for the share of each that is kept, cut to 0..1."""
    kept = np.clip(kept, 0, 1)
    return frequencies * (kept + (1 - kept) / factor).astype(np.float32)


def _yarn(dim: int, base: float, scaling: YarnScaling) -> np.ndarray:
    """The share that each pair keeps of its frequency, by its place on a ramp (Peng et al., 2023, section 3.2)."""

    def pair(turns: float) -> float:
        """The place of the pair that turns so often in `length` tokens."""
        return dim * math.log(scaling.length / (2 * math.pi * turns)) / (2 * math.log(base))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    return 1 - (np.arange(dim // 2) - first) / ((last - first) or 0.001)
