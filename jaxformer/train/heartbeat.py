"""Where the time of a run goes, and the sign of life that it gives: heartbeat.json."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxformer.text.files import write_file

FILE = "heartbeat.json"
SECONDS = 2.0
"""Between two signs of life while steps are taken."""
STEPS, OTHER, LOST = "steps", "other", "lost"
ACTIVITIES = (STEPS, "compile", "evaluation", "saves", "data", "profile", OTHER, LOST)
"""What a run can be doing, and what it has done in vain: steps that a kill or a roll back took away."""


class Stopwatch:
    """Seconds of wall time by activity. Each moment counts for one, so that together they are all the time."""

    def __init__(self, since: float | None = None) -> None:
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self.doing = OTHER
        self._last = time.perf_counter() if since is None else since

    @contextlib.contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """What is done inside is this; afterwards goes on what was done before."""
        before = self._turn(activity)
        try:
            yield
        finally:
            self._turn(before)

    def lose(self, seconds: float) -> None:
        """So much of the time in steps was in vain."""
        seconds = min(seconds, self.seconds[STEPS])
        self.seconds[STEPS] -= seconds
        self.seconds[LOST] += seconds

    def read(self) -> dict[str, float]:
        """The seconds up to now."""
        self._turn(self.doing)
        return dict(self.seconds)

    def _turn(self, activity: str) -> str:
        now = time.perf_counter()
        self.seconds[self.doing] += now - self._last
        self._last, before, self.doing = now, self.doing, activity
        return before


class Heartbeat(Stopwatch):
    """A stopwatch that leaves a sign of life in the run's folder, heartbeat.json, and goes on from the one there:

    {"step": 120, "doing": "steps", "time": seconds since 1970, "pid": 7, "host": "a", "seconds": {"steps": 93.1}}

    `step` is the newest whose line is in the log. The file is replaced whole, every SECONDS while steps are taken and
    whenever anything longer begins. `since`: what `time.perf_counter` said when the process began with this run.
    `silent` writes nothing, as in all processes but the first.
    """

    def __init__(self, folder: Path, since: float | None = None, *, silent: bool = False) -> None:
        super().__init__(since)
        self.file, self.silent, self.step, self._written = folder / FILE, silent, 0, 0.0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or half of one
            self.seconds |= json.loads(self.file.read_text())["seconds"]

    @contextlib.contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """As of a stopwatch."""
        with super().during(activity):
            if activity not in (STEPS, "data"):
                self.write()
            yield

    def beat(self, step: int) -> None:
        """The step is done and its line written; says so if it is time."""
        self.step = step
        if time.monotonic() - self._written >= SECONDS:
            self.write()

    def write(self, doing: str | None = None) -> None:
        """Say now what is done, or `doing`."""
        self._written = time.monotonic()
        if self.silent:
            return
        who = {"time": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
        said = {"step": self.step, "doing": doing or self.doing} | who | {"seconds": self.read()}
        with contextlib.suppress(OSError):  # of a full disk a checkpoint tells better
            write_file(self.file, json.dumps(said).encode())


def goodput(seconds: Mapping[str, float], parts: Mapping[str, float]) -> dict[str, float]:
    """The share of each activity in the time of a run, over all its processes; what took no time is left out.

    `parts`: the shares of parts of a step in the time of steps; they are given as shares of all the time.
    """
    total = sum(seconds.values())
    spent = {name: seconds[name] / total for name in ACTIVITIES if seconds[name] > 0}
    return spent | {name: share * spent.get(STEPS, 0.0) for name, share in parts.items()}
