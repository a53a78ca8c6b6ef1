"""Losses of a policy on answers that it, or its near past, has drawn. B answers, A tokens.

Log-probabilities [B, A] are of tokens, in nats; `written` bool [B, A] says where there is one. Each loss is given for
every token [B, A], 0 where nothing is written; `reduced` says what they are divided by.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array, lax

Reduction = Literal["token", "answer", "constant"]


def log_ratios(new: Array, old: Array, written: Array, *, whole: bool = False) -> Array:
    """Log p - log p_old of each token [B, A]; `whole`: the mean over the answer, with the gradient of each token by
    itself (GSPO-token: Zheng et al., 2025, section 4.3).
    """
    apart = jnp.where(written, new - old, 0.0)
    if not whole:
        return apart
    mean = apart.sum(1, keepdims=True) / jnp.maximum(written.sum(1, keepdims=True), 1)
    return jnp.where(written, lax.stop_gradient(mean) + apart - lax.stop_gradient(apart), 0.0)


def clipped(
    log_ratio: Array, advantages: Array, written: Array, *, low: float = 0.2, high: float = 0.2
) -> tuple[Array, Array]:
    """(the loss of each token, whether it was clipped), each [B, A] (PPO: Schulman et al., 2017, equation 7).

    advantages [B, A], or [B, 1] for whole answers. Ratios count from 1 - low to 1 + high; a higher `high` leaves
    unlikely tokens room to rise (clip-higher: Yu et al., 2025, section 3.1).
    """
    ratio = jnp.exp(log_ratio)
    bounded = jnp.clip(ratio, 1 - low, 1 + high)
    plain, held = -advantages * ratio, -advantages * bounded
    loss = jnp.where(written, jnp.maximum(plain, held), 0.0)
    return loss, written & (held > plain)


def value_loss(values: Array, old: Array, returns: Array, written: Array, *, clip: float | None = 0.2) -> Array:
    """Half the squared error of each token's value [B, A]; with `clip` the larger one of the value and of the value
    held within `clip` of the old one (as in the program of Schulman et al., 2017; Huang et al., 2022, detail 9).
    """
    error = jnp.square(values - returns)
    if clip is not None:
        held = old + jnp.clip(values - old, -clip, clip)
        error = jnp.maximum(error, jnp.square(held - returns))
    return jnp.where(written, error / 2, 0.0)


def reduced(losses: Array, written: Array, weights: Array, how: Reduction) -> tuple[Array, Array]:
    """(the sum, its weight) of losses [B, A], weights [B]; the loss is the one over the other.

    "token": each token counts alike (Yu et al., 2025, section 3.3); "answer": each answer does, its tokens sharing
    (GRPO: Shao et al., 2024, equation 3); "constant": answers do, each divided by A whatever its length, so that
    none gains by being long or short (Dr. GRPO: Liu et al., 2025, section 3.1).
    """
    there = written * weights[:, None]
    total = losses * weights[:, None]
    if how == "token":
        return total.sum(), there.sum()
    size = jnp.maximum(written.sum(1), 1) if how == "answer" else jnp.float32(losses.shape[1])
    return (total.sum(1) / size).sum(), weights.sum()
