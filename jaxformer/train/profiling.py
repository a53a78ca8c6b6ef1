"""Traces of steps for xprof: from a run's start, or of a run that is under way, at a signal."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from jaxformer.losses import Metrics
from jaxformer.train.heartbeat import Stopwatch
from jaxformer.train.state import TrainState
from jaxformer.train.step import Step

WARM_UP = 3
"""Steps of a process before those that are traced from its start: they compile, and are no measure."""
STEPS = 5
"""Steps that a signal has traced where the run was not told how many."""


class Profiler:
    """Traces `steps` steps after the first WARM_UP of a process, none where it is 0; at SIGUSR1 the next `steps` or
    STEPS. A trace is put into `folder`/<its first step>. The numbers of a run are the same with it and without.

    A context manager, in which the signal is caught; elsewhere than in the main thread it cannot be. `tell` hears of
    each trace.
    """

    def __init__(self, folder: Path, steps: int, watch: Stopwatch, tell: Callable[[str], None]) -> None:
        self.folder, self.steps, self.watch, self.tell = folder, steps or STEPS, watch, tell
        self.rest = WARM_UP if steps else -1
        """Steps before the trace that was asked for begins; below zero: none was."""
        self.left = 0
        """Steps that are still to be traced."""

    def __enter__(self) -> Self:
        self.is_caught = threading.current_thread() is threading.main_thread()
        if self.is_caught:
            self._before = signal.signal(signal.SIGUSR1, lambda number, frame: setattr(self, "rest", 0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_caught:
            signal.signal(signal.SIGUSR1, self._before)

    @contextlib.contextmanager
    def traced(self, step: Step, done: int) -> Iterator[Step]:
        """The step, of a run that has done so many, with traces where they are asked for; they end with this."""
        numbers = itertools.count(done + 1)

        def stepped(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
            number = next(numbers)
            if self.rest > 0:
                self.rest -= 1
            elif self.rest == 0 and not self.left:
                self.rest = -1
                self._begin(number)
            if not self.left:
                return step(state, frozen, batch)
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, metrics = step(state, frozen, batch)
            self.left -= 1
            if not self.left:
                jax.block_until_ready(metrics)
                self._end()
            return state, metrics

        try:
            yield stepped
        finally:
            if self.left:
                self._end()

    def _begin(self, number: int) -> None:
        self.place, options = self.folder / str(number), jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it would slow the steps, and fill the file with calls
        with self.watch.during("profile"):
            try:
                jax.profiler.start_trace(self.place, profiler_options=options)
            except RuntimeError as error:
                return self.tell(f"step {number} is not profiled: {error}")
        self.left = self.steps

    def _end(self) -> None:
        with self.watch.during("profile"):
            jax.profiler.stop_trace()
        self.left = 0
        self.tell(f"profile: {self.place}")
