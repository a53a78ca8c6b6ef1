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


def make_eval_step(loss_fn: LossFn, *, seed: int = 0) -> EvalStep:
    """eval_step(params, frozen, batch) -> metrics, to be jitted. The loss function is that of evaluation."""

    def eval_step(params: Any, frozen: Any, batch: Any) -> Metrics:
        key: Array = stream_key(seed, EVALUATION, 0)
        return loss_fn(params, frozen, batch, key)[1]

    return eval_step


def evaluate(eval_step: EvalStep, params: Any, frozen: Any, batches: Iterable[Any]) -> dict[str, tuple[float, float]]:
    """{name: (sum, weight)} over all batches, added in float64 and in order.

    A batch is dispatched before the one before it is read. Raises ValueError where there are no batches.
    """
    sums: dict[str, np.ndarray] = {}
    pending = None
    for batch in batches:
        dispatched = eval_step(params, frozen, batch)
        _add(sums, pending)
        pending = dispatched
    if pending is None:
        raise ValueError("nothing to evaluate on: the evaluation set is empty")
    _add(sums, pending)
    return {name: (float(total), float(weight)) for name, (total, weight) in sums.items()}


def means(metrics: Metrics | dict[str, tuple[float, float]]) -> dict[str, float]:
    """{name: sum / weight}; a weight of 0 gives not-a-number."""
    read = jax.device_get(metrics)
    return {name: float(total) / float(weight) if weight else float("nan") for name, (total, weight) in read.items()}


def _add(sums: dict[str, np.ndarray], metrics: Metrics | None) -> None:
    for name, pair in jax.device_get(metrics or {}).items():
        sums[name] = sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
