"""What the optimizer's state holds beside its rule: the parameters' average, the loss scale, the latest norms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

WINDOW, WARM = 64, 16
"""Gradient norms that a spike is measured by: at most the latest so many, and none before there are so many."""


class Average(NamedTuple):
    """A moving average of the parameters, float32, and the number of updates in it."""

    updates: Array
    params: Any


def average(decay: float) -> optax.GradientTransformation:
    """Keeps average = d * average + (1 - d) * new parameters, and passes the updates on unchanged.

    d = min(decay, (1 + n) / (10 + n)) after n updates: a short run's average forgets where it began.
    """

    def init(params: Any) -> Average:
        # A real copy: a float32 leaf handed on as it is would be donated twice, here and as a parameter.
        copy = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        return Average(jnp.int32(0), copy)

    def update(updates: Any, state: Average, params: Any = None) -> tuple[Any, Average]:
        d = jnp.minimum(decay, (1 + state.updates) / (10 + state.updates))
        new = optax.tree.cast(optax.apply_updates(params, updates), jnp.float32)
        moved = jax.tree.map(lambda mean, p: d * mean + (1 - d) * p, state.params, new)
        return updates, Average(optax.safe_increment(state.updates), moved)

    return optax.GradientTransformation(init, update)


def ema_params(opt_state: Any) -> Any | None:
    """The moving average of the parameters, float32; None where the state holds none."""
    found = _find(opt_state, Average)
    return found[0].params if found else None


class LossScale(NamedTuple):
    """What the loss is multiplied by lest float16 gradients vanish, and the finite steps since it moved."""

    value: Array
    good_steps: Array


def hold_loss_scale() -> optax.GradientTransformation:
    """Keeps a LossScale in the optimizer state and changes nothing; `adjust_loss_scale` moves it."""
    return _hold(lambda: LossScale(jnp.float32(2**15), jnp.int32(0)))


def loss_scale(opt_state: Any) -> Array | float:
    """The factor for the loss, to be divided out of the gradients; 1.0 where the state holds none."""
    found = _find(opt_state, LossScale)
    return found[0].value if found else 1.0


def adjust_loss_scale(opt_state: Any, finite: Array, patience: int = 2000) -> Any:
    """The state after a step: its loss scale halved where the gradients were not finite, doubled after
    `patience` finite steps in a row (Micikevicius et al., 2018, section 3.2).

    The train step calls it last, after it chose the new state or the old: a step not taken moves it too.
    """

    def move(held: LossScale) -> LossScale:
        grow = held.good_steps + 1 >= patience
        up = jnp.where(grow, jnp.minimum(held.value * 2, 2.0**24), held.value)
        down = jnp.maximum(held.value / 2, 1)
        good = jnp.where(finite & ~grow, held.good_steps + 1, 0)
        return LossScale(jnp.where(finite, up, down), good)

    return _replace(opt_state, LossScale, move)


class Norms(NamedTuple):
    """The latest finite gradient norms, float32 [WINDOW], and how many there have been; more than `limit` times
    their median is a spike.
    """

    limit: Array
    values: Array
    seen: Array


def hold_norms(limit: float) -> optax.GradientTransformation:
    """Keeps Norms in the optimizer state and changes nothing; `record_norm` adds to them."""
    return _hold(lambda: Norms(jnp.float32(limit), jnp.zeros(WINDOW, jnp.float32), jnp.int32(0)))


def is_spike(opt_state: Any, norm: Array) -> Array | None:
    """Whether a finite gradient norm is a spike: never among the first WARM; None where the state holds no norms."""
    found = _find(opt_state, Norms)
    if not found:
        return None
    limit, values, seen = found[0]
    known = jnp.minimum(seen, WINDOW)
    rising = jnp.sort(jnp.where(jnp.arange(WINDOW) < known, values, jnp.inf))
    median = (rising[(known - 1) // 2] + rising[known // 2]) / 2
    return (seen >= WARM) & jnp.isfinite(norm) & (norm > limit * median)


def record_norm(opt_state: Any, norm: Array) -> Any:
    """The state after a step, taken or not, with its norm in the place of the oldest.

    Spikes count too: where norms rise for good, the median follows them, and steps are taken again.
    """

    def add(held: Norms) -> Norms:
        finite = jnp.isfinite(norm)
        values = held.values.at[held.seen % WINDOW].set(norm)
        return Norms(held.limit, jnp.where(finite, values, held.values), held.seen + finite)

    return _replace(opt_state, Norms, add)


class Number(NamedTuple):
    """A number that something beside the rule moves, float32: such as the weight of a term of the loss."""

    value: Array


def hold_number(first: float) -> optax.GradientTransformation:
    """Keeps a Number in the optimizer state and changes nothing; `set_number` moves it."""
    return _hold(lambda: Number(jnp.float32(first)))


def held_number(opt_state: Any) -> Array:
    """The number that the state holds."""
    return _find(opt_state, Number)[0].value


def set_number(opt_state: Any, value: Array) -> Any:
    """The state with another number."""
    return _replace(opt_state, Number, lambda held: Number(value))


def _hold(make: Callable[[], Any]) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return updates, state

    return optax.GradientTransformation(lambda params: make(), update)


def _find(opt_state: Any, kind: type) -> list[Any]:
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]


def _replace(opt_state: Any, kind: type, move: Callable[[Any], Any]) -> Any:
    is_kind = lambda node: isinstance(node, kind)
    return jax.tree.map(lambda node: move(node) if is_kind(node) else node, opt_state, is_leaf=is_kind)
