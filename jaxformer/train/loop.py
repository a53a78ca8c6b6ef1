"""The loop: it is handed steps, batches and callbacks, and knows no task, no data and no model."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from jaxformer.losses import Metrics
from jaxformer.train.evaluate import means
from jaxformer.train.heartbeat import STEPS, Stopwatch
from jaxformer.train.state import TrainState
from jaxformer.train.step import Step

Values = dict[str, float]


class NotFiniteError(FloatingPointError):
    """The loss or a gradient was not finite at `step`; the parameters are those from before that step."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class Callbacks(Protocol):
    """What happens beside the steps. Each is called with the number of steps taken so far."""

    def on_metrics(self, step: int, values: Values, seconds: float) -> None:
        """The means of one step, which took so long."""

    def on_evaluation(self, step: int, state: TrainState) -> Values:
        """Evaluate; the values hold "loss", or nothing where there is nothing to evaluate on."""
        ...

    def on_checkpoint(self, state: TrainState, values: Values) -> None:
        """Save; the values are those of an evaluation of this very state, where there was one."""


@dataclass(frozen=True)
class Rhythm:
    """When to do what, counted in steps; the last step is always evaluated and saved."""

    steps: int
    evaluate_every: int
    save_every: int
    not_finite: Literal["stop", "skip"] = "stop"
    patience: int | None = None
    """Evaluations without a better loss after which the run stops; None never does."""

    def is_over(self, step: int, history: list[float]) -> bool:
        """Whether nothing is left to do after `step` steps and evaluations that gave these losses."""
        losses = [math.inf if math.isnan(loss) else loss for loss in history]
        stale = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        return step >= self.steps or (self.patience is not None and stale >= self.patience)


@dataclass
class _Reader:
    """Metrics of step n - 1 are read after step n was dispatched, so that the device is never waited for.

    A context manager: whatever ends it, the step that is pending is told of.
    """

    callbacks: Callbacks
    rhythm: Rhythm
    pending: tuple[int, Metrics] | None = None
    last: float = field(default_factory=time.perf_counter)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return self.flush()
        with contextlib.suppress(Exception):  # what went wrong first is what is raised
            self.tell()

    def push(self, step: int, metrics: Metrics) -> None:
        self.flush()
        self.pending = step, metrics

    def flush(self) -> None:
        """Tell of the step that is pending, and judge it."""
        if (told := self.tell()) is None:
            return
        step, values = told
        if values.get("skipped") and self.rhythm.not_finite == "stop":
            raise NotFiniteError(
                step,
                f"step {step}: the loss is {values['loss']} and the gradients' norm {values['gradient_norm']}, not"
                f" finite. The parameters of step {step - 1} are kept. Lower the learning rate, or go on over such"
                ' steps with not_finite="skip", or without their batches with not_finite="roll_back"',
            )

    def tell(self) -> tuple[int, Values] | None:
        """Tell of the step that is pending; once, whatever interrupts this."""
        if self.pending is None:
            return None
        step, metrics = self.pending
        values = means(metrics)
        self.pending = None
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        self.callbacks.on_metrics(step, values, seconds)
        return step, values


def run(
    step: Step,
    state: TrainState,
    frozen: Any,
    batches: Iterator[Any],
    rhythm: Rhythm,
    callbacks: Callbacks,
    *,
    history: list[float] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    watch: Stopwatch | None = None,
) -> TrainState:
    """Take steps until `rhythm.steps`, or until `should_stop`, which saves first; return the state reached.

    `batches` yields the batch of each step in turn, from the state's step on. `history` holds the losses of
    earlier evaluations where a run is continued, for patience; those of new ones are appended. `watch` is told what
    is done; the first step counts as compilation. Whatever ends the loop, each step that was taken before the one
    that failed has been told of.
    """
    reader, history = _Reader(callbacks, rhythm), [] if history is None else history
    watch, doing = watch or Stopwatch(), "compile"
    with watch.during(STEPS), reader:
        for number in range(int(state.step) + 1, rhythm.steps + 1):
            with watch.during("data"):
                batch = next(batches)
            with watch.during(doing):
                state, metrics = step(state, frozen, batch)
            doing = STEPS
            reader.push(number, metrics)
            last, stop = number == rhythm.steps, should_stop()
            values: Values = {}
            # Also when stopping: a step that a continued run finds behind it must have left all its lines in the log.
            if last or number % rhythm.evaluate_every == 0:
                reader.flush()
                with watch.during("evaluation"):
                    values = callbacks.on_evaluation(number, state)
                history += [values["loss"]] if values else []
                stop = stop or rhythm.is_over(number, history)
                reader.last = time.perf_counter()
            if last or stop or number % rhythm.save_every == 0:
                reader.flush()
                with watch.during("saves"):
                    callbacks.on_checkpoint(state, values)
            if stop:
                break
    return state
