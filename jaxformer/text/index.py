"""Batch n from n: a pure function of (rows, n), the same for any number of hosts and workers."""

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import numpy as np

from jaxformer.text.rows import Row, Rows

Batch = dict[str, np.ndarray]
T = TypeVar("T")


class Batches:
    """Endless batches of rows for training: batch n holds rows n * batch_size and on, stacked."""

    def __init__(self, rows: Rows, batch_size: int) -> None:
        self.rows, self.batch_size = rows, batch_size

    def batch(self, n: int, part: slice = slice(None)) -> Batch:
        """Batch n, or only those of its rows that a host needs."""
        return stack([self.rows.row(i) for i in range(n * self.batch_size, (n + 1) * self.batch_size)[part]])

    def epoch_of(self, n: int) -> float:
        """How often all rows were seen before batch n."""
        return n * self.batch_size / self.rows.count

    def state(self, n: int) -> dict[str, Any]:
        """What a checkpoint keeps: the next batch is n, of this data."""
        return {"n": n, "fingerprint": self.rows.fingerprint}

    def check(self, state: dict[str, Any]) -> int:
        """The n of a `state`. Raises ValueError where it was made with other data."""
        if state["fingerprint"] != self.rows.fingerprint:
            raise ValueError(
                f"the data changed: the checkpoint was trained on {state['fingerprint'][:16]}, now it is "
                f"{self.rows.fingerprint[:16]}. Bring back the same files and tokenizer, or start anew"
            )
        return state["n"]


class EvaluationBatches:
    """All rows of an epoch once; rows of zeros, whose weights are 0, fill the last batch."""

    def __init__(self, rows: Rows, batch_size: int) -> None:
        self.rows, self.batch_size = rows, batch_size

    def __len__(self) -> int:
        return -(-self.rows.count // self.batch_size)

    def batch(self, n: int, part: slice = slice(None)) -> Batch:
        """Batch n of len(self), or only some of its rows."""
        if not 0 <= n < len(self):
            raise IndexError(f"batch {n} of {len(self)}")
        numbers = range(n * self.batch_size, (n + 1) * self.batch_size)[part]
        blank = {name: np.zeros_like(values) for name, values in self.rows.row(0).items()}
        return stack([self.rows.row(i) if i < self.rows.count else blank for i in numbers])

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(len(self)))


def stack(rows: list[Row]) -> Batch:
    """Rows [B] of equal fields as one batch of arrays [B, ...]."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def prefetch(
    source: Callable[[int], T], start: int = 0, stop: int | None = None, depth: int = 2
) -> Generator[T, None, None]:
    """source(start), source(start + 1), ... made by one thread, at most `depth` ahead of their use.

    An error of the source is raised where its batch is asked for. Closing the generator ends the thread.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    closed = threading.Event()

    def put(kind: str, value: Any = None) -> None:
        while not closed.is_set():
            try:
                return ready.put((kind, value), timeout=0.1)
            except queue.Full:
                pass

    def work() -> None:
        try:
            for n in itertools.count(start):
                if closed.is_set() or n == stop:
                    break
                put("value", source(n))
            put("end")
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        closed.set()
        thread.join()
