"""Rows, of which batches are stacked: each a function of its number alone.

Every row of one kind has the same fields, shapes and dtypes. Each has float32 "weights", one for each place where
something is to be predicted, or a single one; a row of zeros is no row.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Protocol

import numpy as np

from jaxformer.text.mixture import schedule
from jaxformer.text.pack import Packing, generator
from jaxformer.text.prepare import Example, Store

Row = dict[str, np.ndarray]
EVALUATION = 2**32 - 1
"""What stands for the seed where rows keep their order: what is drawn for a row is the same in each evaluation."""


class Rows(Protocol):
    """Rows of an epoch after those of another, without end."""

    @property
    def count(self) -> int:
        """Rows of an epoch."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the examples that they are made of."""
        ...

    def row(self, number: int) -> Row:
        """Row `number` through all epochs."""
        ...


class Examples(Protocol):
    """What rows are made of: a Store, or what shows one in another way."""

    @property
    def fingerprint(self) -> str:
        """Names them."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Example: ...


Transform = Callable[[Row, np.random.Generator], Row]
Make = Callable[[list[Example], np.random.Generator], Row]


class StreamRows:
    """Documents on end, cut into rows: of a store's field "tokens", with what `Packing` says of seed and stride.

    A row: int32 "tokens", "segments", "positions" [length + overlap], float32 "weights" [length]. Segments number
    the documents of a row from 1 (0 is padding), positions count from 0 in each segment. With an overlap of one,
    weights[t] is 1 where tokens[t + 1] is to be predicted: where it continues the document of token t. Without an
    overlap, weights[t] is 1 where there is a token. `transform(row, random)` then makes of it what a task wants.
    """

    def __init__(
        self,
        store: Store,
        length: int,
        seed: int | None,
        stride: int | None = None,
        overlap: int = 1,
        transform: Transform | None = None,
    ) -> None:
        self.store, self.seed, self.transform = store, seed, transform
        self.packing = Packing(store.lengths["tokens"], length, seed, stride, overlap)
        self.count, self.fingerprint = self.packing.rows, store.fingerprint

    def row(self, number: int) -> Row:
        """Row `number` through all epochs."""
        packing = self.packing
        tokens, segments, positions = (np.zeros(packing.length + packing.overlap, np.int32) for _ in range(3))
        at = 0
        for segment, piece in enumerate(packing.pieces(number), 1):
            size = piece.stop - piece.start
            place = slice(at, at + size)
            tokens[place] = self.store.read("tokens", piece.document, piece.start, piece.stop)
            segments[place] = segment
            positions[place] = np.arange(size)
            at += size
        there = segments[packing.overlap :] > 0
        same = there & (segments[1:] == segments[:-1]) if packing.overlap else there
        weights = (same & (np.arange(packing.length) >= packing.fresh(number))).astype(np.float32)
        row = {"tokens": tokens, "segments": segments, "positions": positions, "weights": weights}
        return row if self.transform is None else self.transform(row, _random(self.seed, *divmod(number, self.count)))


class BinRows:
    """Whole examples, one or several a row, in an order that is drawn anew in each epoch where there is a seed.

    `make(examples, random)` makes the row. `bins` gives the numbers of each row's examples; None is one each.
    """

    def __init__(
        self, store: Examples, seed: int | None, make: Make, bins: Sequence[np.ndarray] | None = None
    ) -> None:
        self.store, self.seed, self.make, self.bins = store, seed, make, bins
        self.count, self.fingerprint = len(store) if bins is None else len(bins), store.fingerprint
        self._order = lru_cache(maxsize=2)(self._make_order)  # a batch may lie across two

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.arange(self.count) if self.seed is None else generator(self.seed, epoch).permutation(self.count)

    def row(self, number: int) -> Row:
        """Row `number` through all epochs."""
        epoch, at = divmod(number, self.count)
        place = int(self._order(epoch)[at])
        examples = [place] if self.bins is None else self.bins[place]
        return self.make([self.store[int(i)] for i in examples], _random(self.seed, epoch, at))


class MixedRows:
    """Rows of several kinds of examples, in shares: see `mixture.schedule`. All make rows of the same shapes."""

    def __init__(self, parts: Sequence[Rows], shares: Sequence[float] | np.ndarray, seed: int) -> None:
        self.parts, self.at = parts, schedule(shares, seed)
        self.count = sum(part.count for part in parts)
        self.fingerprint = sha256("".join(part.fingerprint for part in parts).encode()).hexdigest()

    def row(self, number: int) -> Row:
        """Row `number`: an epoch is so many rows, though of a part they may be fewer than it has, or more."""
        part, inner = self.at(number)
        return self.parts[part].row(inner)


def _random(seed: int | None, epoch: int, at: int) -> np.random.Generator:
    return generator(EVALUATION if seed is None else seed, epoch, at)


def padded(values: Sequence[int] | np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """int32 [length]: the values, cut at the end or filled up."""
    out = np.full(length, fill, np.int32)
    kept = np.asarray(values)[:length]
    out[: len(kept)] = kept
    return out


def side_by_side(parts: Sequence[Sequence[int] | np.ndarray], length: int) -> Row:
    """Arrays one after the other in one row: int32 "tokens", "segments" from 1, "positions" [length], 0 behind them.

    Raises ValueError where they do not fit.
    """
    sizes = [len(part) for part in parts]
    if sum(sizes) > length:
        raise ValueError(f"expected at most {length} values in a row, found {sum(sizes)}")
    row: Mapping[str, np.ndarray] = {name: np.zeros(length, np.int32) for name in ("tokens", "segments", "positions")}
    at = 0
    for segment, (part, size) in enumerate(zip(parts, sizes, strict=True), 1):
        place = slice(at, at + size)
        row["tokens"][place], row["segments"][place], row["positions"][place] = part, segment, np.arange(size)
        at += size
    return dict(row)
