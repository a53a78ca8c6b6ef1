"""How much better an answer, or a token of it, was than expected. B answers, G answers to each prompt, A tokens.

Pure functions of arrays; a prompt's answers are rows side by side: [B] is [prompts, G] made flat.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax


def leave_one_out(rewards: Array, group: int) -> Array:
    """[B]: each answer's reward less the mean of the other answers to its prompt (RLOO: Ahmadian et al., 2024,
    section 3.3).
    """
    grouped = rewards.reshape(-1, group)
    others = (grouped.sum(1, keepdims=True) - grouped) / (group - 1)
    return (grouped - others).reshape(-1)


def group_relative(rewards: Array, group: int, *, scale: bool = True, eps: float = 1e-4) -> Array:
    """[B]: each answer's reward less the mean of its prompt's answers, over their standard deviation (GRPO: Shao et
    al., 2024, section 4.1.2; the deviation of G - 1 degrees of freedom).

    Without `scale` it is not divided: the deviation makes prompts that are nearly always answered rightly, or never,
    count for more (Dr. GRPO: Liu et al., 2025, section 3.1).
    """
    grouped = rewards.reshape(-1, group)
    apart = grouped - grouped.mean(1, keepdims=True)
    if scale:
        apart /= jnp.sqrt(jnp.square(apart).sum(1, keepdims=True) / (group - 1)) + eps
    return apart.reshape(-1)


def telling(rewards: Array, group: int) -> Array:
    """Bool [B]: whether a prompt's answers differ in reward; where they do not, nothing is learned of it (dynamic
    sampling: Yu et al., 2025, section 3.2).
    """
    grouped = rewards.reshape(-1, group)
    return jnp.repeat(grouped.max(1) > grouped.min(1), group)


def token_rewards(rewards: Array, penalties: Array, written: Array) -> Array:
    """[B, A]: an answer's reward [B] at its last token, less what each token costs, such as its share of a KL
    divergence [B, A] (Ziegler et al., 2019, section 2.2). `written` bool [B, A].
    """
    return jnp.where(written, jnp.where(last_token(written), rewards[:, None], 0.0) - penalties, 0.0)


def last_token(written: Array) -> Array:
    """Bool [B, A]: the last token that is there; none in an empty row."""
    after = jnp.pad(written[:, 1:], ((0, 0), (0, 1)))
    return written & ~after


def generalized(
    rewards: Array, values: Array, written: Array, *, discount: float = 1.0, decay: float = 0.95
) -> tuple[Array, Array]:
    """(advantages, returns), each [B, A], of rewards and values at tokens (GAE: Schulman et al., 2016, equation 16).

    values [B, A]: what was expected before each token; behind an answer's end it is 0. `decay` is lambda. Both are 0
    where nothing is written; returns are advantages + values.
    """
    values = jnp.where(written, values, 0.0)
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    errors = jnp.where(written, rewards + discount * following - values, 0.0)

    def back(later: Array, error: Array) -> tuple[Array, Array]:
        now = error + discount * decay * later
        return now, now

    _, advantages = lax.scan(back, jnp.zeros(len(rewards)), errors.T, reverse=True)
    advantages = jnp.where(written, advantages.T, 0.0)
    return advantages, advantages + values


def whitened(values: Array, written: Array, *, center: bool = True, eps: float = 1e-8) -> Array:
    """Values [B, A] over their standard deviation, and less their mean where `center`, over what is written."""
    weight = jnp.maximum(written.sum(), 1)
    mean = jnp.where(written, values, 0.0).sum() / weight
    variance = jnp.where(written, jnp.square(values - mean), 0.0).sum() / weight
    scaled = (values - mean) / jnp.sqrt(variance + eps)
    return jnp.where(written, scaled if center else scaled + mean, 0.0)


KL: dict[str, Callable[[Array], Array]] = {
    "k1": lambda ahead: ahead,
    "k2": lambda ahead: jnp.square(ahead) / 2,
    "k3": lambda ahead: jnp.expm1(-ahead) + ahead,
}
"""Estimates of KL(policy || reference) at tokens that the policy drew, from log p - log ref (Schulman, 2020): k1 and
k3 have no bias, k2 and k3 are never negative, and k1 scatters most."""


def adapted(coefficient: Array, divergence: Array, target: float, horizon: float, answers: Array | float) -> Array:
    """The next weight of the KL penalty, from the divergence in nats an answer that a step of so many answers showed:
    it grows where that is over `target` (Ziegler et al., 2019, section 2.2).
    """
    error = jnp.clip(divergence / target - 1, -0.2, 0.2)
    return coefficient * (1 + error * answers / horizon)
