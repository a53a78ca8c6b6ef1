"""A document: a text, ready-made tokens, or a record; and what is no document, and why."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

LONGEST = 1 << 25
"""Bytes of a row of a file, or of the strings of a record."""
LISTED = 20
"""Problems told at once."""
NUMBERS = {"bool", "int", "float"}
HOLDS = "a string, a finite number, or a list of strings, of numbers or of objects"

JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

Record = dict[str, Any]


class Bad(ValueError):
    """What was expected of a document, and what was found. A reader gives it in place of a row."""


@dataclass(frozen=True)
class Document:
    """One document: its text, its tokens [length] where the source is a token array, or its record."""

    source: str
    """File, row of it where it has rows (counted from 1; a line, but in Parquet and Arrow), or place in memory."""
    text: str | None = None
    tokens: np.ndarray | None = None
    record: Record = field(default_factory=dict)
    """The columns that were asked for: str, int, float, bool, or a list of str, of numbers or of dicts."""

    def texts(self) -> Iterator[str]:
        """Its text, or every string in its record."""
        return strings(self.record if self.text is None else self.text)

    @cached_property
    def size(self) -> int:
        """UTF-8 bytes of its texts; 0 for ready-made tokens, whose text is not known."""
        return sum(len(text.encode()) for text in self.texts())

    @property
    def digest(self) -> bytes:
        """Hash [16] of the content alone: a renamed or repeated document stays on its side of the split."""
        if self.text is not None:
            return hashlib.blake2b(self.text.encode(), digest_size=16).digest()
        if self.tokens is None:
            return hashlib.blake2b(encoded(self.record), digest_size=16, person=b"record").digest()
        tokens = np.ascontiguousarray(self.tokens)
        return hashlib.blake2b(tokens.data, digest_size=16, person=tokens.dtype.str.encode()).digest()


class Problems:
    """Collects what is wrong, to say it once: how much, and the first of it."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def add(self, where: str, what: object) -> None:
        """Notes that something is wrong at a place."""
        self.count += 1
        if self.count <= LISTED:
            self.first.append(f"{where}: {what}")

    def __str__(self) -> str:
        more = [f"... and {self.count - LISTED} more"] if self.count > LISTED else []
        return "\n".join(f"  {line}" for line in self.first + more)


def make(source: str, value: object, columns: Sequence[str], text_field: str) -> Document | None:
    """The document that holds `value`: a string, a token array, or a mapping; None where it is empty.

    Of a mapping it takes the `columns` as its record; where there are none, `text_field` as its text. Raises Bad.
    """
    if isinstance(value, Bad):
        raise value
    if isinstance(value, Mapping):
        return of_row(source, value, columns, text_field)
    if columns:
        raise Bad(f"expected a record with the fields {sorted(columns)}, found {kind(value)}")
    if isinstance(value, str):
        encoded(value)
        return Document(source, text=value) if value else None
    if not isinstance(value, np.ndarray):
        raise Bad(f"expected a string, a token array or a mapping, found {kind(value)}")
    if value.ndim != 1 or value.dtype.kind not in "iu":
        raise Bad(f"expected integers [length], found {value.dtype} {list(value.shape)}")
    return Document(source, tokens=value) if value.size else None


def of_row(source: str, row: Mapping[Any, Any], columns: Sequence[str], text_field: str) -> Document | None:
    """The document of a row, its record or its text."""
    missing = sorted({*columns} - {*row} if columns else {text_field} - {*row})
    if missing:
        names = " and ".join(map(repr, missing))
        raise Bad(f"expected the field{'s' * (len(missing) > 1)} {names}, found the fields {sorted(map(str, row))}")
    if columns:
        document: Document | None = Document(source, record={name: checked(name, row[name]) for name in columns})
    elif isinstance(row[text_field], str):
        document = make(source, row[text_field], (), text_field)
    else:
        raise Bad(f"expected a string in field {text_field!r}, found {kind(row[text_field])}")
    if document is not None and document.size > LONGEST:
        raise Bad(f"expected at most {LONGEST} bytes of text, found {document.size}")
    return document


def checked(name: str, value: Any) -> Any:
    """The value of a field in Python's own types. Raises Bad where a record cannot hold it."""
    try:
        value = plain(value)
        kinds = {kind(item) for item in value} if isinstance(value, list) else {kind(value)}
        good = kinds <= NUMBERS or kinds == {"str"} or (isinstance(value, list) and kinds == {"dict"})
        if not good:
            found = " and ".join(sorted(kinds))
            raise Bad(f"expected {HOLDS}, found {f'a list of {found}' if isinstance(value, list) else found}")
        encoded(value)
    except Bad as bad:
        raise Bad(f"field {name!r}: {bad}") from None
    except RecursionError:
        raise Bad(f"field {name!r}: nested too deeply") from None
    return value


def plain(value: Any) -> Any:
    """The value in Python's own types: arrays and tuples as lists, dicts without the fields that are null.

    Arrow fills up dicts with null, so that all have the same fields.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return value


def kind(value: object) -> str:
    """What a person calls a value's type."""
    return "null" if value is None else type(value).__name__


def encoded(value: Any) -> bytes:
    """JSON in UTF-8, the same for equal values. Raises Bad for what JSON cannot hold."""
    try:
        return JSON.encode(value).encode()
    except UnicodeEncodeError as error:
        raise Bad(f"expected Unicode text, found a lone surrogate, {error.object[error.start]!r}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise Bad(f"it cannot be written as JSON: {error}") from None


def strings(value: Any) -> Iterator[str]:
    """Every string in a nest of lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)
