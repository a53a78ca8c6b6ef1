"""When a run is asked to stop: signals, heeded between two steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stop:
    """Whether signals ask to stop; those to one of several processes stop all of them, after the same step."""

    def __init__(self) -> None:
        self.is_signalled = self.is_asked = False
        self._calls = 0

    def __call__(self) -> bool:
        """To be called after each step, in each process: whether it was the last."""
        self._calls += 1  # no step's number: a run that goes back counts on
        if jax.process_count() > 1:
            self.is_asked = self.is_asked or multihost_utils.reached_preemption_sync_point(self._calls)
        else:
            self.is_asked = self.is_signalled
        return self.is_asked


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """What Ctrl-C and SIGTERM ask for; a second Ctrl-C interrupts at once. Elsewhere than in the main thread
    signals cannot be caught, and nothing is asked.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    several = jax.process_count() > 1

    def handle(number: int, frame: Any) -> None:
        if stop.is_signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.is_signalled = True
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    # Of several processes jax itself catches SIGTERM, tells the others, and finds the step.
    caught = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
