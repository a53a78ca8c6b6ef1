"""What is in a file: whole files of text or tokens, and the rows of tables, without a table in memory.

A reader of a table gives (row, value): rows count from 1, those of text files as lines, and what is wrong with a
row stands in its place as a Bad.
"""

import csv
import gzip
import io
import itertools
import json
import reprlib
import tokenize
import zlib
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxformer.text import records
from jaxformer.text.records import Bad

Rows = Iterator[tuple[int, Any]]
PIECE = 1 << 20
"""Bytes of a line that are read at once."""
BATCH = 256
"""Rows of Parquet that are read at once."""
MOST_UNPACKED = 50
"""How many times its own size a .gz file may unpack to, beyond `records.LONGEST` bytes; text has 3 to 20."""
UNREADABLE = (OSError, EOFError, ValueError, SyntaxError, zlib.error)


def read_file(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(place, value) of each document in a file: its text, its tokens, or a dict for each row of a table.

    `columns` are those that will be used of a row. Where a file cannot be read on, the last value is a Bad.
    """
    at = str(path)
    try:
        suffix = table(path)
        if suffix is not None:
            for row, value in TABLES[suffix](path, columns):
                at = f"{path}:{row}"
                yield at, value
        elif path.name.endswith(".npy"):
            yield at, read_npy(path)
        elif path.name.endswith(".bin"):
            yield at, np.memmap(path, "<u2", mode="r") if path.stat().st_size else ""  # nothing cannot be mapped
        else:
            yield at, read_text(path)
    except UNREADABLE as error:
        yield at if at == str(path) else f"after {at}", Bad(str(error))


def table(path: Path) -> str | None:
    """The suffix of a file that has rows; None for any other."""
    name = path.name.removesuffix(".gz")
    return next((suffix for suffix in TABLES if name.endswith(suffix)), None)


def read_text(path: Path) -> str:
    """A whole file; Python source may state its encoding (PEP 263)."""
    with opened(path) as file:
        data = file.read()
    encoding = "utf-8-sig"
    if path.name.removesuffix(".gz").endswith(".py"):
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {number}: expected {encoding} text, found {error.reason}") from None


def read_npy(path: Path) -> np.ndarray:
    """The array in a .npy file, mapped; never one of Python objects, which are pickles.

    Its header is held against the file: numpy's own check of a huge shape overflows.
    """
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, is_fortran, dtype = read_header[version](file)
        except Exception as error:  # numpy parses it as Python, of which damage makes nearly anything
            raise ValueError(f"expected a .npy file of numbers: {type(error).__name__}: {error}") from None
        start, size = file.tell(), path.stat().st_size
    if dtype.hasobject or min(shape, default=0) < 0 or start + prod(shape) * dtype.itemsize > size:
        raise ValueError(f"expected {dtype} {reprlib.repr(shape)} in a file of {size} bytes")
    if 0 in shape or not dtype.itemsize:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", start, shape, "F" if is_fortran else "C")


class Unpacked(io.RawIOBase):
    """What is packed in a .gz file. Raises ValueError where that is more than text can have been."""

    def __init__(self, path: Path) -> None:
        self.packed, self.size = gzip.GzipFile(path), 0
        self.most = max(records.LONGEST, MOST_UNPACKED * path.stat().st_size)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes; 0 at the end."""
        count = self.packed.readinto1(buffer)  # what was unpacked before damage is to be had
        self.size += count
        if self.size > self.most:
            raise ValueError(
                f"it unpacks to more than {self.most} bytes, {MOST_UNPACKED} times its size: unpack it yourself "
                "(gunzip) where you trust it"
            )
        return count

    def close(self) -> None:
        """Closes the file."""
        self.packed.close()
        super().close()


def opened(path: Path) -> BinaryIO:
    """A file for reading, unpacked where it ends in .gz."""
    return io.BufferedReader(Unpacked(path), PIECE) if path.suffix == ".gz" else path.open("rb")


def lines(file: BinaryIO) -> Rows:
    """The lines of a file. Of one that is longer than any row may be, no more than that is ever held."""
    for number in itertools.count(1):
        pieces, size = list[bytes](), 0
        while piece := file.readline(PIECE):
            size += len(piece)
            if size <= records.LONGEST:
                pieces.append(piece)
            else:
                pieces.clear()
            if piece.endswith(b"\n"):
                break
        if not size:
            return
        if size > records.LONGEST:
            yield number, Bad(f"expected a line of at most {records.LONGEST} bytes, found one of {size}")
        else:
            yield number, b"".join(pieces)


def read_jsonl(path: Path, columns: Sequence[str]) -> Rows:
    """An object for each line that is not blank."""
    with opened(path) as file:
        for number, line in lines(file):
            if isinstance(line, Bad):
                yield number, line
            elif line.strip():
                yield number, parsed(line)


def parsed(line: bytes) -> dict[str, Any] | Bad:
    """The object in a line of JSON."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Bad(f"expected a JSON object, found {line[:40]!r} ({error})")
    return value if isinstance(value, dict) else Bad(f"expected a JSON object, found {type(value).__name__}")


def read_csv(path: Path, columns: Sequence[str], **dialect: Any) -> Rows:
    """Rows of strings, named by the first; quotes may hold commas, line breaks and doubled quotes (RFC 4180).

    A row has the number of the line that it begins on.
    """
    # The module has one limit for all: a higher one takes nothing from others.
    csv.field_size_limit(max(csv.field_size_limit(), records.LONGEST))
    read = 0

    def decoded(line: tuple[int, bytes | Bad]) -> str:
        nonlocal read
        read, value = line
        if isinstance(value, Bad):
            raise csv.Error(str(value))  # what a csv.reader goes on after, with a new row
        return value.decode("utf-8-sig" if read == 1 else "utf-8", "surrogateescape")

    with opened(path) as file:
        rows = csv.reader(map(decoded, lines(file)), strict=True, **dialect)
        names: list[str] = []
        while True:
            number = read + 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield number, Bad(str(error))
                if not names:
                    return
                continue
            if row is None:
                return
            if names and row:
                yield number, named(names, row)
            elif len(set(row)) < len(row):
                yield number, Bad(f"expected each column once, found the columns {row}")
                return
            else:
                names = names or row


def named(names: list[str], row: list[str]) -> dict[str, str] | Bad:
    """The fields of a row by their columns' names."""
    if len(row) != len(names):
        return Bad(f"expected {len(names)} fields, found {len(row)}")
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        return Bad(f"expected utf-8 text, found the byte 0x{ord(error.object[error.start]) & 0xFF:02x}")
    return dict(zip(names, row, strict=True))


def read_tsv(path: Path, columns: Sequence[str]) -> Rows:
    """As of read_csv; a line is a row whatever quotes are in it, and no field holds a tab or a line break."""
    return read_csv(path, columns, delimiter="\t", quoting=csv.QUOTE_NONE)


def read_parquet(path: Path, columns: Sequence[str]) -> Rows:
    """Rows, with no other columns than are used, as long as all of these are there."""
    pyarrow = arrow(path)
    opened = pyarrow.parquet.ParquetFile
    try:
        with opened(path) as file:
            leaves = map(file.schema.column, range(len(file.schema)))
            strings = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            used = list(columns) if set(columns) <= set(file.schema_arrow.names) else None
            with opened(path, read_dictionary=strings) as coded:
                yield from rows_of(batches(pyarrow, file, coded, used))
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None


def batches(pyarrow: Any, file: Any, coded: Any, used: list[str] | None) -> Iterator[Any]:
    """Rows of a Parquet file, the fewer at once the longer its strings are: a few bytes may repeat one in each row.

    `coded` is the same file, its strings left in the dictionary that each group of rows has.
    """

    def longest(column: Any) -> int:
        if hasattr(column, "dictionary"):
            return pyarrow.compute.max(pyarrow.compute.binary_length(column.dictionary)).as_py() or 0
        inner = column.flatten() if hasattr(column, "flatten") else []
        return max(map(longest, inner if isinstance(inner, list) else [inner]), default=0)

    for group in range(file.num_row_groups):
        first = next(coded.iter_batches(1, row_groups=[group], columns=used), None)
        most = max(map(longest, [] if first is None else first.columns), default=0)
        rows = min(BATCH, records.LONGEST // max(1, most))
        yield from file.iter_batches(max(1, rows), row_groups=[group], columns=used)


def read_arrow(path: Path, columns: Sequence[str]) -> Rows:
    """Rows of a stream of Arrow batches, which is what `datasets` saves."""
    pyarrow = arrow(path)

    def good(batch: Any) -> Iterator[Any]:
        """The batch, or its rows if a value lies outside of its column, which Arrow would read all the same."""
        try:
            batch.validate(full=True)
            yield batch
        except pyarrow.ArrowInvalid as error:
            if batch.num_rows == 1:
                yield Bad(f"expected whole values, and utf-8 text: {error}")
            else:
                for i in range(batch.num_rows):
                    yield from good(batch.slice(i, 1))

    try:
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            there = set(columns) <= set(stream.schema.names)
            batches = (batch.select(list(columns)) if there else batch for batch in stream)
            yield from rows_of(part for batch in batches for part in good(batch))
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None


def rows_of(batches: Iterator[Any]) -> Rows:
    """The rows of Arrow batches, as dicts. In place of a batch may stand a Bad, of one row."""

    def one(row: Any) -> Any:
        try:
            return row.to_pylist()[0]
        except UnicodeDecodeError as error:
            return Bad(f"expected utf-8 text, found the byte 0x{error.object[error.start]:02x}")

    number = 0
    for batch in batches:
        try:
            values = [batch] if isinstance(batch, Bad) else batch.to_pylist()
        except UnicodeDecodeError:
            values = [one(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for value in values:
            number += 1
            yield number, value


def arrow(path: Path) -> Any:
    """The package pyarrow, with its modules for streams, Parquet and lengths."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f'{path}: it is read with the package pyarrow: pip install "jaxformer[data]"') from None
    return pyarrow


TABLES: dict[str, Callable[[Path, Sequence[str]], Rows]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
