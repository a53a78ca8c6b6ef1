"""Packing as an index: what stands where in row r of epoch e. No worker, host or batch size takes part.

`Packing` puts the documents of an epoch on end, in a random order, and cuts them into rows. `bins` puts whole
examples together into rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


def generator(*numbers: int) -> np.random.Generator:
    """A random generator that is a function of these numbers, such as (seed, epoch, row)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))


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
    """Rows of `length` + `overlap` tokens over documents of `lengths` tokens; the last row may be shorter.

    An overlap of one makes each token but a document's first the target of exactly one place in an epoch; without
    one each token stands in one row. With a seed, documents and rows are permuted anew in each epoch. With None
    (to evaluate) they keep their order, and `stride` < length makes rows overlap further: row r starts at token
    r * stride.
    """

    def __init__(
        self, lengths: np.ndarray, length: int, seed: int | None, stride: int | None = None, overlap: int = 1
    ) -> None:
        stride = length if stride is None else stride
        if length < 1 or not 1 <= stride <= length:
            raise ValueError(f"expected length >= 1 and 1 <= stride <= length, found {length=} {stride=}")
        if seed is not None and stride != length:
            raise ValueError("a stride below the length is for evaluation: pass seed=None")
        lengths = np.asarray(lengths, np.int64)
        self.total = int(lengths.sum())
        if self.total < 1 + overlap:
            raise ValueError(f"expected documents with {1 + overlap} tokens or more in all, found {self.total}")
        self.lengths, self.length, self.seed, self.stride, self.overlap = lengths, length, seed, stride, overlap
        self.rows = 1 + max(0, -(-(self.total - overlap - length) // stride))
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)  # a batch may lie across two

    def _make_epoch(self, epoch: int) -> Epoch:
        if self.seed is None:
            documents, rows = np.arange(len(self.lengths)), np.arange(self.rows)
        else:
            random = generator(self.seed, epoch)
            documents, rows = random.permutation(len(self.lengths)), random.permutation(self.rows)
        return Epoch(documents, np.concatenate([[0], np.cumsum(self.lengths[documents])]), rows)

    def pieces(self, row: int) -> list[Piece]:
        """The pieces of row number `row` through all epochs: together length + overlap tokens at most."""
        epoch, at = divmod(row, self.rows)
        order = self._epoch(epoch)
        begin = int(order.rows[at]) * self.stride
        end = min(begin + self.length + self.overlap, self.total)
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
        """Index of the first of a row's `length` places that no earlier row had: 0 but where rows overlap further."""
        return self.length - self.stride if row % self.rows else 0


def bins(lengths: Sequence[np.ndarray], most: Sequence[int], seed: int, open_bins: int = 32) -> list[np.ndarray]:
    """Whole examples together in rows: for each row the numbers of its examples.

    lengths: for each field its length in each example [examples]; most: what a row holds of each field. First fit
    over a random order, among the `open_bins` newest rows; an example that alone is too long has a row of its own.
    Equal arguments give equal rows.
    """
    sizes = np.stack([np.asarray(each, np.int64) for each in lengths], axis=1)
    limit = np.asarray(most, np.int64)
    rows: list[list[int]] = []
    filled: list[np.ndarray] = []
    for example in generator(seed).permutation(len(sizes)):
        first = max(0, len(rows) - open_bins)
        for i in range(first, len(rows)):
            if np.all(filled[i] + sizes[example] <= limit):
                rows[i].append(int(example))
                filled[i] = filled[i] + sizes[example]
                break
        else:
            rows.append([int(example)])
            filled.append(sizes[example])
    return [np.asarray(row) for row in rows]
