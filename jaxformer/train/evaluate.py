"""Sums over a whole evaluation set: each example counted once, on any mesh."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxformer.losses import Metrics
from jaxformer.train.state import EVALUATION, stream_key
from jaxformer.train.step import LossFn

EvalStep = Callable[[Any, Any, Any], Metrics]
Sums = dict[str, tuple[Any, Any]]
"""{name: (sum, weight)}, each a float, or a float64 array where the metric has one."""


def make_eval_step(loss_fn: LossFn, *, seed: int = 0) -> EvalStep:
    """eval_step(params, frozen, batch) -> metrics, to be jitted. The loss function is that of evaluation."""

    def eval_step(params: Any, frozen: Any, batch: Any) -> Metrics:
        key: Array = stream_key(seed, EVALUATION, 0)
        return loss_fn(params, frozen, batch, key)[1]

    return eval_step


def evaluate(eval_step: EvalStep, params: Any, frozen: Any, batches: Iterable[Any]) -> Sums:
    """The sums over all batches, added in float64 and in order.

    A batch is dispatched before the one before it is read. Raises ValueError where there are no batches.
    """
    sums: Sums = {}
    pending = None
    for batch in batches:
        dispatched = eval_step(params, frozen, batch)
        _add(sums, pending)
        pending = dispatched
    if pending is None:
        raise ValueError("nothing to evaluate on: the evaluation set is empty")
    _add(sums, pending)
    return sums


def added(parts: Iterable[Sums]) -> Sums:
    """The sums of several sets together."""
    total: Sums = {}
    for sums in parts:
        _add(total, sums)
    return total


def means(metrics: Metrics | Sums) -> dict[str, float]:
    """{name: sum / weight} of what are single numbers; a weight of 0 gives not-a-number."""
    read = {name: pair for name, pair in jax.device_get(metrics).items() if not any(map(np.ndim, pair))}
    return {name: float(total) / float(weight) if weight else float("nan") for name, (total, weight) in read.items()}


def _add(sums: Sums, metrics: Metrics | Sums | None) -> None:
    for name, pair in jax.device_get(metrics or {}).items():
        new = (np.asarray(part, np.float64)[()] for part in pair)  # a scalar for an array without axes
        sums[name] = tuple(before + part for before, part in zip(sums.get(name, (0.0, 0.0)), new, strict=True))
