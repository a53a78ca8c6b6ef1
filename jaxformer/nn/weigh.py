# B batch, T query length, S key length, H heads, K key heads, G = H/K, C head dim
"""The two halves of attention, spelled out (Vaswani et al. 2017, section 3.2.1): weights of keys, values weighted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxformer.nn.visibility import Visibility

HIDDEN = float(jnp.finfo(jnp.float32).min)
"""The score of a key that is not seen: the least number rather than -inf, so that a row of them has a gradient."""


class Terms(NamedTuple):
    """All that shapes the scores besides queries and keys: the further arguments of `attend`."""

    visibility: Visibility
    scale: float
    softcap: float | None = None
    bias_HTS: Array | None = None


def probabilities(
    q_BTHC: Array,
    k_BSKC: Array,
    visibility: Visibility,
    *,
    scale: float,
    softcap: float | None = None,
    bias_HTS: Array | None = None,
) -> Array:
    """The weights that `attend` weighs values by, float32 [B, H, T, S]; zeros for a query that sees nothing."""
    (B, T, H, _), S = q_BTHC.shape, k_BSKC.shape[1]
    weights_BKTGS = softmax(q_BTHC, k_BSKC, Terms(visibility, scale, softcap, bias_HTS))
    return zero_the_blind(weights_BKTGS.transpose(0, 2, 1, 3, 4).reshape(B, T, H, S), visibility, S).swapaxes(1, 2)


def weighted(weights_BHTS: Array, v_BSKC: Array) -> Array:
    """Values weighted by [B, H, T, S], [B, T, H, C] in the dtype of the values: the second half of `attend`."""
    (B, H, T, S), K = weights_BHTS.shape, v_BSKC.shape[2]
    weights_BKGTS = weights_BHTS.astype(v_BSKC.dtype).reshape(B, K, H // K, T, S)
    return jnp.einsum("BKGTS,BSKC->BTKGC", weights_BKGTS, v_BSKC).reshape(B, T, H, -1)


def softmax(q_BTHC: Array, k_BSKC: Array, terms: Terms) -> Array:
    """The weights, float32 [B, K, T, G, S]; for a query that sees nothing all are even.

    Heads come first, and the G queries of a key head side by side: both products of attention are plain batched
    matrix products. The transposes of keys that lie as [B, K, S, C] already, as a cache may have them, cancel.
    """
    T, K = q_BTHC.shape[1], k_BSKC.shape[2]
    q_BKNC = heads_first(q_BTHC * jnp.asarray(terms.scale, q_BTHC.dtype), K)
    k_BKSC = k_BSKC.transpose(0, 2, 1, 3)
    scores_BKNS = jnp.einsum("BKNC,BKSC->BKNS", q_BKNC, k_BKSC, preferred_element_type=jnp.float32)
    return jax.nn.softmax(shaped(scores_BKNS.reshape(*q_BKNC.shape[:2], T, -1, k_BKSC.shape[2]), terms), axis=-1)


def shaped(scores_BKTGS: Array, terms: Terms) -> Array:
    """Scaled products of queries and keys as the softmax takes them: capped, biased, hidden keys at HIDDEN."""
    visibility, _, softcap, bias_HTS = terms
    K, T, G, S = scores_BKTGS.shape[1:]
    if softcap is not None:
        scores_BKTGS = softcap * jnp.tanh(scores_BKTGS / softcap)
    if bias_HTS is not None:
        scores_BKTGS += bias_HTS.astype(jnp.float32).reshape(1, K, G, T, S).swapaxes(2, 3)
    if not visibility.sees_all:
        scores_BKTGS = jnp.where(visibility.dense(T, S)[:, None, :, None], scores_BKTGS, HIDDEN)
    return scores_BKTGS


def heads_first(x_BTHC: Array, key_heads: int) -> Array:
    """[B, K, N, C]. The length stands first in N = T * G: where it is split over devices, so is N."""
    B, T, H, C = x_BTHC.shape
    return x_BTHC.reshape(B, T, key_heads, H // key_heads, C).transpose(0, 2, 1, 3, 4).reshape(B, key_heads, -1, C)


def heads_last(x_BKNC: Array, queries: int) -> Array:
    """The inverse of `heads_first`, of so many queries."""
    B, K, _, C = x_BKNC.shape
    return x_BKNC.reshape(B, K, queries, -1, C).transpose(0, 2, 1, 3, 4).reshape(B, queries, -1, C)


def zero_the_blind(out_BTHC: Array, visibility: Visibility, keys: int) -> Array:
    """Zeros where a query sees nothing: a kernel leaves the mean of the values there."""
    sighted_BT = visibility.sighted(out_BTHC.shape[1], keys)
    return (
        out_BTHC
        if sighted_BT is None
        else jnp.where(sighted_BT[:, :, None, None], out_BTHC, jnp.zeros_like(out_BTHC))
    )
