"""Several corpora in one stream of rows: the share of each, and which row of which one row n is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxformer.text.pack import generator

PERIOD = 1 << 12
"""Rows after which shares are met exactly; as many more as a small share needs to have one of them."""
LONGEST_PERIOD = 1 << 20


@dataclass(frozen=True)
class Part:
    """One corpus of a mixture."""

    name: str
    """What it is called where results are told."""
    files: tuple[str, ...]
    """As the files of a single corpus."""
    weight: float | None = None
    """Its share of the rows, against the weights of all parts; None, for all of them: by size."""
    held_out_files: tuple[str, ...] = ()
    """Files held out, instead of a share of `files`."""


def problems(parts: Sequence[Part], temperature: float = 1.0, limit: int | None = None) -> list[str]:
    """Every reason why these parts cannot be mixed so."""
    names = [part.name for part in parts]
    weights = [part.weight for part in parts if part.weight is not None]
    found = [f"{name!r} names several parts" for name in sorted({n for n in names if names.count(n) > 1})]
    found += [f"part {part.name!r}: no files" for part in parts if not part.files]
    found += [f"a weight of {weight}: it must be above zero" for weight in weights if not 0 < weight < np.inf]
    if weights and len(weights) < len(parts):
        found.append("either every part has a weight, or none")
    if weights and (temperature != 1 or limit is not None):
        found.append("weights are shares as they are: temperature and limit are for shares by size")
    if not temperature > 0:
        found.append(f"a temperature of {temperature}: it must be above zero")
    if limit is not None and limit < 1:
        found.append(f"a limit of {limit}: it must be above zero")
    return found


def shares(
    sizes: Sequence[int],
    weights: Sequence[float | None] | None = None,
    temperature: float = 1.0,
    limit: int | None = None,
) -> np.ndarray:
    """The share of each part in the rows, float64 [parts], all above zero, of sum one.

    They go by `weights`; where there are none, by the parts' `sizes` in examples (Raffel et al., 2020, section
    3.5.2): min(size, limit) ** (1 / temperature). At 1 each example is as frequent as any other; the higher, the
    more equal the parts.
    """
    parts = [Part(str(i), ("",), weight) for i, weight in enumerate(weights or [None] * len(sizes))]
    found = problems(parts, temperature, limit) + [f"part {i} is empty" for i, size in enumerate(sizes) if size < 1]
    if len(parts) != len(sizes) or not parts:
        found.append(f"expected a size and a weight for each part, found {len(sizes)} and {len(parts)}")
    if found:
        raise ValueError("cannot mix:\n" + "\n".join(f"  - {line}" for line in found))
    if parts[0].weight is not None:
        rates = np.array([part.weight for part in parts], np.float64)
    else:
        sized = np.minimum(np.asarray(sizes, np.float64), np.inf if limit is None else limit)
        rates = (sized / sized.max()) ** (1 / temperature)
    return rates / rates.sum()


def schedule(shares: Sequence[float] | np.ndarray, seed: int) -> Callable[[int], tuple[int, int]]:
    """The function of a row's number to (part, number of the row in that part).

    Each part's rows come in their order, none left out. In each period of rows every part has its share, rounded
    to whole rows; the period is drawn from the seed, such that a part's rows lie evenly in it.

    Raises ValueError for a share of less than one row in LONGEST_PERIOD.
    """
    shares = np.asarray(shares, np.float64)
    period = PERIOD
    while period * shares.min() < 1:
        period *= 2
        if period > LONGEST_PERIOD:
            raise ValueError(
                f"part {shares.argmin()} would have a share of {shares.min():.1e}, less than one row in"
                f" {LONGEST_PERIOD}: give it a weight, or raise the temperature"
            )
    counts = np.floor(shares * period).astype(np.int64)
    counts[np.argsort(counts - shares * period, kind="stable")[: period - counts.sum()]] += 1
    parts = np.repeat(np.arange(len(counts)), counts)
    ranks = np.concatenate([np.arange(count) for count in counts])

    @lru_cache(maxsize=2)  # a batch may lie across two
    def order(number: int) -> np.ndarray:
        return np.argsort((ranks + generator(seed, number).random(period)) / counts[parts], kind="stable")

    def at(number: int) -> tuple[int, int]:
        whole, rest = divmod(number, period)
        entry = order(whole)[rest]
        part = int(parts[entry])
        return part, whole * int(counts[part]) + int(ranks[entry])

    return at
