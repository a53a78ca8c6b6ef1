"""One training step, whatever the task: gradients, update, and a look at whether they were finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxformer.losses import Metrics
from jaxformer.opt_state import adjust_loss_scale, is_spike, loss_scale, record_norm
from jaxformer.train.state import DROPOUT, TrainState, stream_key

LossFn = Callable[[Any, Any, Any, Array], tuple[Array, Metrics]]
"""loss_fn(params, frozen, batch, key) -> (loss, metrics): a mean, whose weight is metrics["loss"][1]."""
Step = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]


def make_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, *, seed: int = 0, accumulate: int = 1
) -> Step:
    """step(state, frozen, batch) -> (state, metrics), to be jitted with the state donated.

    `accumulate` splits the batch's rows into that many microbatches, one after the other; their gradients are
    weighted, and added in float32, so that they equal the whole batch's. `frozen` is any pytree that the loss reads
    and nobody trains: it has no gradient, and is not donated with the state, whose buffers it must not share.

    Where the loss or a gradient is not finite, parameters and optimizer state stay as they were (the loss scale of
    float16 alone moves), the step still counts, and the metric "skipped" is 1. An optimizer that watches the norms
    keeps out spikes in the same way; their metric is "spiked".
    """
    differentiate = make_gradients(loss_fn, seed=seed, accumulate=accumulate)

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        gradients, metrics = differentiate(state, frozen, batch)
        norm = optax.tree.norm(optax.tree.cast(gradients, jnp.float32))
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"][0])
        spiked = is_spike(state.opt_state, norm)
        taken = finite if spiked is None else finite & ~spiked
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(taken, n, o), new, old)
        opt_state = record_norm(adjust_loss_scale(keep(opt_state, state.opt_state), finite), norm)
        one = jnp.ones((), jnp.float32)
        metrics = metrics | {"gradient_norm": (norm, one), "skipped": (1.0 - finite, one)}
        if spiked is not None:
            metrics["spiked"] = spiked.astype(jnp.float32), one
        return TrainState(step=state.step + 1, params=keep(params, state.params), opt_state=opt_state), metrics

    return step


def make_gradients(
    loss_fn: LossFn, *, seed: int = 0, accumulate: int = 1
) -> Callable[[TrainState, Any, Any], tuple[Any, Metrics]]:
    """gradients(state, frozen, batch) -> (the gradients of a step, metrics), finite or not."""

    def gradients(state: TrainState, frozen: Any, batch: Any) -> tuple[Any, Metrics]:
        key = stream_key(seed, DROPOUT, state.step)
        scale = loss_scale(state.opt_state)

        def scaled(params: Any, batch: Any, key: Array) -> tuple[Array, Metrics]:
            loss, metrics = loss_fn(params, frozen, batch, key)
            return loss * scale, metrics

        found, metrics = _accumulated(scaled, accumulate)(state.params, batch, key)
        return jax.tree.map(lambda g: (g / scale).astype(g.dtype), found), metrics

    return gradients


def _accumulated(loss_fn: Callable[..., tuple[Array, Metrics]], count: int) -> Callable[..., tuple[Any, Metrics]]:
    """(params, batch, key) -> (gradients of the mean over the whole batch, metrics)."""
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def whole(params: Any, batch: Any, key: Array) -> tuple[Any, Metrics]:
        (_, metrics), gradients = gradient(params, batch, key)
        return gradients, metrics

    def parts(params: Any, batch: Any, key: Array) -> tuple[Any, Metrics]:
        def body(sums: Any, part: tuple[Any, Array]) -> tuple[Any, None]:
            gradients, metrics = whole(params, part[0], jax.random.fold_in(key, part[1]))
            weight = metrics["loss"][1]
            return jax.tree.map(jnp.add, sums, (jax.tree.map(lambda g: g * weight, gradients), metrics)), None

        pieces = jax.tree.map(lambda rows: _strided(rows, count), batch)
        shapes = jax.eval_shape(whole, params, jax.tree.map(lambda rows: rows[0], pieces), key)
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
        (gradients, metrics), _ = jax.lax.scan(body, start, (pieces, jnp.arange(count)))
        weight = jnp.maximum(metrics["loss"][1], 1e-9)
        return jax.tree.map(lambda g, p: (g / weight).astype(p.dtype), gradients, params), metrics

    return whole if count == 1 else parts


def _strided(rows: Array, count: int) -> Array:
    """[B, ...] -> [count, B / count, ...]; each part takes every count-th row, so that no device runs empty."""
    if rows.shape[0] % count:
        raise ValueError(f"a batch of {rows.shape[0]} rows cannot be split into {count} equal microbatches")
    return rows.reshape(rows.shape[0] // count, count, *rows.shape[1:]).swapaxes(0, 1)
