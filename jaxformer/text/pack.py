"""Packing as an index: which stretch of which document stands where in row r of epoch e.

The documents of an epoch are put on end in a random order and cut into rows of length + 1 tokens that overlap
by one, so that each token but a document's first is the target of exactly one place in an epoch. A pure
function of (lengths, length, seed): no worker, host or batch size takes part.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Piece:
    """Tokens start:stop of a document."""

    document: int
    start: int
    stop: int


@dataclass(frozen=True)
class Epoch:
    """Documents in their order [documents], where each starts [documents + 1], order of rows [rows]."""

    documents: np.ndarray
    starts: np.ndarray
    rows: np.ndarray


class Packing:
    """Rows of `length` + 1 tokens over documents of `lengths` tokens; the last row may be shorter.

    With a seed, documents and rows are permuted anew in each epoch. With None (to evaluate) they keep their
    order, and `stride` < length makes rows overlap further: row r starts at token r * stride.
    """

    def __init__(self, lengths: np.ndarray, length: int, seed: int | None, stride: int | None = None) -> None:
        stride = length if stride is None else stride
        if length < 1 or not 1 <= stride <= length:
            raise ValueError(f"expected length >= 1 and 1 <= stride <= length, found {length=} {stride=}")
        if seed is not None and stride != length:
            raise ValueError("a stride below the length is for evaluation: pass seed=None")
        lengths = np.asarray(lengths, np.int64)
        self.total = int(lengths.sum())
        if self.total < 2:
            raise ValueError(f"expected documents with 2 tokens or more in all, found {self.total}")
        self.lengths, self.length, self.seed, self.stride = lengths, length, seed, stride
        self.rows = 1 + max(0, -(-(self.total - 1 - length) // stride))
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)  # a batch may lie across two

    def _make_epoch(self, epoch: int) -> Epoch:
        if self.seed is None:
            documents, rows = np.arange(len(self.lengths)), np.arange(self.rows)
        else:
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch])))
            documents, rows = random.permutation(len(self.lengths)), random.permutation(self.rows)
        return Epoch(documents, np.concatenate([[0], np.cumsum(self.lengths[documents])]), rows)

    def pieces(self, row: int) -> list[Piece]:
        """The pieces of row number `row` through all epochs: together length + 1 tokens at most."""
        epoch, at = divmod(row, self.rows)
        order = self._epoch(epoch)
        begin = int(order.rows[at]) * self.stride
        end = min(begin + self.length + 1, self.total)
        first = int(np.searchsorted(order.starts, begin, side="right")) - 1
        last = int(np.searchsorted(order.starts, end, side="left"))
        found = []
        for i in range(first, last):
            start, next_start = int(order.starts[i]), int(order.starts[i + 1])
            piece = Piece(int(order.documents[i]), max(begin - start, 0), min(end, next_start) - start)
            if piece.stop > piece.start:  # a document may be empty
                found.append(piece)
        return found

    def fresh(self, row: int) -> int:
        """Index of the first target of a row that no earlier row had: 0 but where rows overlap further."""
        return self.length - self.stride if row % self.rows else 0
