"""Batch n from n: a pure function of (store, settings, n), the same for any number of hosts and workers."""

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxformer.text.pack import Packing
from jaxformer.text.prepare import Store

Batch = dict[str, np.ndarray]
T = TypeVar("T")


class Batches:
    """Endless batches of packed rows for training, shuffled anew in each epoch.

    Batch n: int32 "tokens", "segments", "positions" [batch, length + 1], float32 "weights" [batch, length].
    Segments number the documents of a row from 1 (0 is padding), positions count from 0 in each segment, and
    weights[:, t] is 1 where tokens[:, t + 1] is to be predicted: where it continues the document of token t.
    """

    def __init__(self, store: Store, batch_size: int, length: int, seed: int = 0) -> None:
        self.store, self.batch_size = store, batch_size
        self.packing = Packing(store.lengths["tokens"], length, seed)

    def batch(self, n: int, rows: slice = slice(None)) -> Batch:
        """Batch n, or only those of its rows that a host needs."""
        numbers = range(n * self.batch_size, (n + 1) * self.batch_size)[rows]
        return assemble(self.store, self.packing, numbers)

    def epoch_of(self, n: int) -> float:
        """How often all documents were seen before batch n."""
        return n * self.batch_size / self.packing.rows

    def state(self, n: int) -> dict[str, Any]:
        """What a checkpoint keeps: the next batch is n, of this data."""
        return {"n": n, "fingerprint": self.store.fingerprint}

    def check(self, state: dict[str, Any]) -> int:
        """The n of a `state`. Raises ValueError where it was made with other data."""
        if state["fingerprint"] != self.store.fingerprint:
            raise ValueError(
                f"the data changed: the checkpoint was trained on {state['fingerprint'][:16]}, now it is "
                f"{self.store.fingerprint[:16]}. Bring back the same files and tokenizer, or start anew"
            )
        return state["n"]


class EvaluationBatches:
    """All tokens once, in order: the weights add up to tokens - documents; weight 0 fills the last batch.

    With a `stride` < length, each target sees length - stride tokens before it at least, where its document
    has them, at length / stride times the cost.
    """

    def __init__(self, store: Store, batch_size: int, length: int, stride: int | None = None) -> None:
        self.store, self.batch_size = store, batch_size
        self.packing = Packing(store.lengths["tokens"], length, seed=None, stride=stride)

    def __len__(self) -> int:
        return -(-self.packing.rows // self.batch_size)

    def batch(self, n: int, rows: slice = slice(None)) -> Batch:
        """Batch n of len(self), as of Batches; or only some of its rows."""
        if not 0 <= n < len(self):
            raise IndexError(f"batch {n} of {len(self)}")
        numbers = range(n * self.batch_size, (n + 1) * self.batch_size)[rows]
        return assemble(self.store, self.packing, numbers, end=self.packing.rows)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(len(self)))


def assemble(store: Store, packing: Packing, rows: Sequence[int], end: int | None = None) -> Batch:
    """The arrays of some rows; rows at or after `end` are padding."""
    shape = (len(rows), packing.length + 1)
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    weights = np.zeros((len(rows), packing.length), np.float32)
    for i, row in enumerate(rows):
        if end is not None and row >= end:
            continue
        at = 0
        for segment, piece in enumerate(packing.pieces(row), 1):
            size = piece.stop - piece.start
            place = slice(at, at + size)
            tokens[i, place] = store.read("tokens", piece.document, piece.start, piece.stop)
            segments[i, place] = segment
            positions[i, place] = np.arange(size)
            at += size
        same = (segments[i, 1:] == segments[i, :-1]) & (segments[i, 1:] > 0)
        weights[i] = same & (np.arange(packing.length) >= packing.fresh(row))
    return {"tokens": tokens, "segments": segments, "positions": positions, "weights": weights}


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
