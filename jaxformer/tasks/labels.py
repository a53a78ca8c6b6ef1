"""What tasks share that read a few numbers off a text: classes, a head, rows of one or two texts, predictions.

B batch, T length.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import Row, padded
from jaxformer.text.template import Template
from jaxformer.text.tokenizer import Tokenizer

NUMBERS = 1 << 32
"""Bound of a field of an example that holds sizes or places."""


# Classes


def number(value: Any, labels: tuple[str, ...], where: str) -> int:
    """The number of a class that a record names, or numbers. Raises ValueError where there is none such."""
    known = _numbers(labels)
    if isinstance(value, str) and (value in known or value.isdecimal()):
        value = known[value] if value in known else int(value)
    if not isinstance(value, int) or not 0 <= value < len(labels):
        raise ValueError(f"{where}: expected one of {', '.join(labels)}, or its number from 0, found {value!r}")
    return int(value)


@cache
def _numbers(labels: tuple[str, ...]) -> dict[str, int]:
    return {label: i for i, label in enumerate(labels)}


def real(value: Any, where: str) -> float:
    """The number that a record holds, or writes. Raises ValueError where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: expected a number, found {value!r}") from None


def label_problems(labels: tuple[str, ...]) -> list[str]:
    """What is wrong with the names of classes."""
    if not labels:
        return ["task.labels is empty: name the classes, in their order"]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    return [f"task.labels names {', '.join(twice)} more than once"] if twice else []


# Rows


def text_of(document: Document, column: str) -> str:
    """The text in a field of a record. Raises ValueError where there is another thing."""
    assert document.record is not None
    text = document.record[column]
    if not isinstance(text, str):
        raise ValueError(f"{document.source}: {column}: expected a text, found {text!r}")
    return text


def frame(tokenizer: Tokenizer) -> Template:
    """The special tokens around a text or a pair: those of the tokenizer's template.

    Where that has none: start, text, end, and of a pair start, text, end, text, end (Radford et al., 2018, section
    3.3), by the tokenizer's cls, or bos, and its sep, or eos.
    """
    if tokenizer.template != Template():
        return tokenizer.template
    roles = tokenizer.specials
    first, last = (
        tuple(roles[role] for role in both if role in roles)[:1] for both in (("cls", "bos"), ("sep", "eos"))
    )
    return Template(
        ((first, 0), ("A", 0), (last, 0)),
        ((first, 0), ("A", 0), (last, 0), ("B", 1), (last, 1)),
    )


def room(template: Template, pair: bool, length: int) -> int:
    """How many tokens of text a row of `length` has room for. Raises ValueError where it has none."""
    left = length - len(template([], [] if pair else None)[0])
    if left < (2 if pair else 1):
        raise ValueError(f"length is {length}: special tokens leave {left} of it for the text; make it longer")
    return left


def text_row(template: Template, length: int, first: np.ndarray, second: np.ndarray | None = None) -> Row:
    """One text, or two, in a row: int32 "tokens" and "token_types", bool "mask" [length].

    What is too long is cut at its end, of two texts the longer one first.
    """
    left = room(template, second is not None, length)
    if second is not None:
        if len(first) > len(second):
            second = second[: max(left // 2, left - len(first))]
        else:
            first = first[: max(left // 2, left - len(second))]
            second = second[: left - len(first)]
        left -= len(second)
    tokens, types = template(first[:left].tolist(), None if second is None else second.tolist())
    mask = np.arange(length) < len(tokens)
    return {"tokens": padded(tokens, length), "token_types": padded(types, length), "mask": mask}


def begin(template: Template, first: Sequence[int] | None = None) -> int:
    """Where the text stands in a row; behind `first`, where that is given, the second text of a pair."""
    mark = -1  # no token
    return (template([mark]) if first is None else template(first, [mark]))[0].index(mark)


def slices(count: int, size: int, step: int) -> list[slice]:
    """Windows of at most `size` that together hold all of `count`, each `step` behind the one before."""
    starts = range(0, max(1, count - size + step), step)
    return [slice(start, min(start + size, count)) for start in starts]


class Windows:
    """A store whose examples are cut into windows: it stands for a Store where rows are made one of each.

    counts [examples] says into how many windows, `cut(example, number)` gives one of them.
    """

    def __init__(self, store: Store, counts: np.ndarray, cut: Callable[[Example, int], Example]) -> None:
        self.store, self.cut, self.fingerprint = store, cut, store.fingerprint
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> Example:
        example = int(np.searchsorted(self.ends, i, side="right"))
        return self.cut(self.store[example], i - (int(self.ends[example - 1]) if example else 0))
