"""Losses on preferences, of each pair by itself. B pairs.

Log-probabilities are those of whole answers: the sum over their tokens, in nats, or where a loss says so their mean.
`margin` is how much more the policy has come to prefer the chosen answer than its reference does:
(log p(chosen) - log ref(chosen)) - (log p(rejected) - log ref(rejected)).
"""

import jax
import jax.numpy as jnp
from jax import Array


def sigmoid(margin: Array, beta: float, label_smoothing: float = 0.0) -> Array:
    """Direct preference optimisation [B] (DPO: Rafailov et al., 2023, equation 7).

    `label_smoothing` is the share of pairs whose labels are wrong (conservative DPO: Mitchell, 2023).
    """
    scaled = beta * margin
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(scaled) - label_smoothing * jax.nn.log_sigmoid(-scaled)


def ipo(margin: Array, beta: float) -> Array:
    """Identity preference optimisation [B]: the margin is drawn to 1 / (2 beta), and no further (IPO: Azar et al.,
    2023, equation 17).
    """
    return jnp.square(margin - 1 / (2 * beta))


def hinge(margin: Array, beta: float) -> Array:
    """[B]: nothing is left to learn of a pair whose margin is 1 / beta (SLiC: Zhao et al., 2023, section 2.2; as
    Liu et al., 2024, table 1, have it).
    """
    return jnp.maximum(0.0, 1 - beta * margin)


def simpo(chosen: Array, rejected: Array, beta: float, gamma: float) -> Array:
    """[B], without a reference: means over tokens, apart by gamma / beta at least (SimPO: Meng et al., 2024,
    equation 6).
    """
    return -jax.nn.log_sigmoid(beta * (chosen - rejected) - gamma)


def odds_ratio(chosen: Array, rejected: Array) -> Array:
    """-log sigmoid of the log odds ratio [B], without a reference, of means over tokens (ORPO: Hong et al., 2024,
    equation 7). The whole loss adds it, times lambda, to the negative log-likelihood of the chosen answer.
    """
    log_odds = (chosen - _log1mexp(chosen)) - (rejected - _log1mexp(rejected))
    return -jax.nn.log_sigmoid(log_odds)


def kto(
    log_ratio: Array, desirable: Array, baseline: Array, beta: float, weights: tuple[float, float] = (1.0, 1.0)
) -> Array:
    """[B] of single answers, each good or bad (KTO: Ethayarajh et al., 2024, equation 8).

    log_ratio: log p - log ref of each answer; `desirable` bool; `baseline` []: how far the policy is from the
    reference, in nats, see `kto_baseline`; `weights` of good answers and of bad ones.
    """
    gain = jax.nn.sigmoid(beta * (log_ratio - baseline))
    loss = jax.nn.sigmoid(beta * (baseline - log_ratio))
    good, bad = weights
    return jnp.where(desirable, good * (1 - gain), bad * (1 - loss))


def kto_baseline(mismatched: Array, weights: Array) -> Array:
    """The baseline [] from the log ratios [B] of answers to other prompts than their own; it has no gradient."""
    total = (mismatched * weights).sum() / jnp.maximum(weights.sum(), 1e-9)
    return jax.lax.stop_gradient(jnp.maximum(0.0, total))


def bradley_terry(chosen: Array, rejected: Array, margin: Array | float = 0.0, label_smoothing: float = 0.0) -> Array:
    """Negative log-likelihood [B] that the chosen of two rewards [B] wins by `margin` (Ouyang et al., 2022, section
    3.5; the margin: Touvron et al., 2023, section 3.2.2).
    """
    ahead = chosen - rejected
    wins, loses = jax.nn.log_sigmoid(ahead - margin), jax.nn.log_sigmoid(-ahead)
    return -(1 - label_smoothing) * wins - label_smoothing * loses


def _log1mexp(x: Array) -> Array:
    """log(1 - exp(x)) of x < 0, exact near 0 and far from it (Maechler, 2012)."""
    x = jnp.minimum(x, -1e-7)
    near = x > -0.6931472
    return jnp.where(
        near, jnp.log(-jnp.expm1(jnp.where(near, x, -0.5))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    )
