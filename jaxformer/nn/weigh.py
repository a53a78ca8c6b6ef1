# B batch, T query length, S key length, H heads, K key heads, G = H/K, C head dim
"""The two halves of attention, spelled out (Vaswani et al. 2017, section 3.2.1): weights of keys, values weighted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxformer.nn.visibility import Visibility


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
    matrix products. The transposes of keys that lie as [B, K, S, C] already, as a cache may have them, cancel. The
    length stands first in N = T * G: where it is split over devices, so is N.
    """
    visibility, scale, softcap, bias_HTS = terms
    B, T, H, C = q_BTHC.shape
    S, K = k_BSKC.shape[1:3]
    G = H // K
    q_BKNC = (
        (q_BTHC * jnp.asarray(scale, q_BTHC.dtype))
        .reshape(B, T, K, G, C)
        .transpose(0, 2, 1, 3, 4)
        .reshape(B, K, T * G, C)
    )
    k_BKSC = k_BSKC.transpose(0, 2, 1, 3)
    scores_BKNS = jnp.einsum("BKNC,BKSC->BKNS", q_BKNC, k_BKSC, preferred_element_type=jnp.float32)
    scores_BKTGS = scores_BKNS.reshape(B, K, T, G, S)
    if softcap is not None:
        scores_BKTGS = softcap * jnp.tanh(scores_BKTGS / softcap)
    if bias_HTS is not None:
        scores_BKTGS += bias_HTS.astype(jnp.float32).reshape(1, K, G, T, S).swapaxes(2, 3)
    if not visibility.sees_all:
        # The least finite number rather than -inf: a row of them has a softmax, and a gradient.
        seen_BTS = visibility.dense(T, S)
        scores_BKTGS = jnp.where(seen_BTS[:, None, :, None], scores_BKTGS, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores_BKTGS, axis=-1)


def zero_the_blind(out_BTHC: Array, visibility: Visibility, keys: int) -> Array:
    """Zeros where a query sees nothing: a kernel leaves the mean of the values there."""
    sighted_BT = visibility.sighted(out_BTHC.shape[1], keys)
    return (
        out_BTHC
        if sighted_BT is None
        else jnp.where(sighted_BT[:, :, None, None], out_BTHC, jnp.zeros_like(out_BTHC))
    )
