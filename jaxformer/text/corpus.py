"""Documents: from globs, folders, the standard library, ready-made token arrays, or strings in memory.

A corpus is read twice: once to check everything and to choose what is held out, then each time it is used.
"""

import glob
import gzip
import hashlib
import io
import json
import math
import sysconfig
import tokenize
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

import numpy as np

STDLIB = "stdlib"
STDLIB_WITHOUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
SUFFIXES = (".txt", ".py", ".md", ".jsonl", ".npy", ".bin")  # what is taken from a folder
LISTED = 20  # problems told at once
UNREADABLE = (OSError, EOFError, ValueError, SyntaxError, zlib.error)


@dataclass(frozen=True)
class DataConfig:
    """Which documents to learn from."""

    files: tuple[str, ...] = (STDLIB,)
    """Files, globs or folders (.txt .py .md .jsonl, also as .gz; token arrays .npy, or .bin of uint16).
    "stdlib" is the Python standard library of this interpreter, without its tests."""
    exclude: tuple[str, ...] = ()
    """Patterns of paths to leave out, such as "*/drafts/*"."""
    text_field: str = "text"
    """Where a line of .jsonl has its text."""
    held_out: int = 20
    """One document in this many is held out for evaluation; 0: none."""


@dataclass(frozen=True)
class Document:
    """One document: its text, or its tokens [length] where the source is a token array."""

    source: str
    text: str | None = None
    tokens: np.ndarray | None = None

    @property
    def size(self) -> int:
        """UTF-8 bytes of the text; 0 for ready-made tokens, whose text is not known."""
        return 0 if self.text is None else len(self.text.encode())

    @property
    def digest(self) -> bytes:
        """Hash of the content alone: a renamed or repeated document stays on its side of the split."""
        if self.text is not None:
            return hashlib.blake2b(self.text.encode(), digest_size=16).digest()
        tokens = np.ascontiguousarray(self.tokens)
        return hashlib.blake2b(tokens.data, digest_size=16, person=tokens.dtype.str.encode()).digest()


@dataclass(frozen=True)
class Documents:
    """Documents in a fixed order. All were read once and found good; each iteration reads them anew."""

    read: Callable[[], Iterable[Document]]  # every document of the source
    digests: tuple[bytes, ...]  # of every document of the source
    sizes: tuple[int, ...]
    chosen: tuple[int, ...]  # which of them these are, ascending
    skipped: tuple[str, ...] = ()  # files of the standard library that could not be decoded

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Document]:
        chosen = set(self.chosen)
        for i, document in enumerate(self.read()):
            if i in chosen:
                if document.digest != self.digests[i]:
                    raise ValueError(f"{document.source}: changed while it was in use; start again")
                yield document

    @property
    def size(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(self.sizes[i] for i in self.chosen)

    @property
    def fingerprint(self) -> str:
        """Changes when any document or their order changes; a path is no part of it."""
        return hashlib.sha256(b"".join(self.digests[i] for i in self.chosen)).hexdigest()

    def sample(self, size: int) -> "Documents":
        """Some of the documents, chosen by content, with at least `size` bytes where there are so many."""
        taken, chosen = 0, []
        for i in sorted(self.chosen, key=lambda i: self.digests[i][::-1]):
            if taken >= size:
                break
            taken += self.sizes[i]
            chosen.append(i)
        return replace(self, chosen=tuple(sorted(chosen)))


class Problems:
    """Collects what is wrong, to say it once."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def add(self, where: object, what: object) -> None:
        """Notes that something is wrong at a place."""
        self.count += 1
        if self.count <= LISTED:
            self.first.append(f"{where}: {what}")

    def check(self) -> None:
        """Raises ValueError if anything was noted."""
        if self.count:
            more = [f"... and {self.count - LISTED} more"] if self.count > LISTED else []
            raise ValueError("the data can not be used:\n  " + "\n  ".join(self.first + more))


def open_documents(data: DataConfig | Iterable[str | np.ndarray]) -> Documents:
    """All documents that `data` names, or the given strings (or token arrays) themselves.

    Raises FileNotFoundError for patterns that match no file, and one ValueError that lists all bad lines and
    files. Empty documents are left out.
    """
    if isinstance(data, DataConfig):
        config, paths = data, find_files(data)

        def read(problems: Problems, skipped: list[str]) -> Iterator[Document]:
            for path, is_stdlib in paths:
                try:
                    yield from read_file(path, config.text_field, problems)
                except UNREADABLE as error:
                    if is_stdlib:
                        skipped.append(str(path))
                    else:
                        problems.add(path, error)
    else:
        if isinstance(data, str):
            raise TypeError(f"expected a DataConfig or a list of strings, found one string {data[:40]!r}")
        values = list(data)

        def read(problems: Problems, skipped: list[str]) -> Iterator[Document]:
            for i, value in enumerate(values):
                yield from made(f"document {i}", value, problems)

    return scan(read)


def split(documents: Documents, held_out: int) -> tuple[Documents, Documents]:
    """(training, held-out) documents: of `held_out` documents one is held out, at least one, by content.

    The order in which they are read and their names change nothing, and copies of one document stay together.
    A single document is cut near its end, after a line. 0 holds out nothing.
    """
    if held_out < 0 or held_out == 1:
        raise ValueError(f"data.held_out is one document in so many: 0 or at least 2, found {held_out}")
    if held_out == 0:
        return documents, replace(documents, chosen=())
    digests = sorted({documents.digests[i] for i in documents.chosen})
    if len(digests) == 1:
        head, tail = cut(next(iter(documents)), held_out)
        return open_documents([head] * len(documents)), open_documents([tail])
    held = set(digests[: math.ceil(len(digests) / held_out)])
    inside = tuple(i for i in documents.chosen if documents.digests[i] in held)
    outside = tuple(i for i in documents.chosen if documents.digests[i] not in held)
    return replace(documents, chosen=outside), replace(documents, chosen=inside)


def cut(document: Document, held_out: int) -> tuple[str, str] | tuple[np.ndarray, np.ndarray]:
    """The document in two: the last of `held_out` parts goes to the second, from the start of a line."""
    if document.text is None:
        assert document.tokens is not None
        at = len(document.tokens) - max(1, len(document.tokens) // held_out)
        return document.tokens[:at], document.tokens[at:]
    at = len(document.text) - max(1, len(document.text) // held_out)
    at = document.text.rfind("\n", 0, at) + 1 or at
    return document.text[:at], document.text[at:]


def scan(read: Callable[[Problems, list[str]], Iterator[Document]]) -> Documents:
    """Reads everything once: checks it, and notes digest and size of each document."""
    problems, skipped = Problems(), list[str]()
    digests, sizes, kinds = [], [], set()
    for document in read(problems, skipped):
        digests.append(document.digest)
        sizes.append(document.size)
        kinds.add("text" if document.tokens is None else "tokens")
    if len(kinds) > 1:
        problems.add("data.files", "expected either texts or token arrays, found both")
    problems.check()
    if not digests:
        raise ValueError("the data holds no text: every document is empty")
    everything = tuple(range(len(digests)))
    return Documents(lambda: read(Problems(), []), tuple(digests), tuple(sizes), everything, tuple(skipped))


def find_files(config: DataConfig) -> list[tuple[Path, bool]]:
    """(path, whether of the standard library) of each file, once, in sorted order within each entry."""
    found: dict[Path, bool] = {}
    missing = []
    for entry in config.files:
        pattern = Path(entry).expanduser()
        if entry == STDLIB:
            root = Path(sysconfig.get_paths()["stdlib"])
            paths = [p for p in root.rglob("*.py") if not STDLIB_WITHOUT & {*p.relative_to(root).parts[:-1]}]
            looked = f"no .py file under {root}"
        elif pattern.is_dir():
            paths = [p for p in pattern.rglob("*") if p.name.removesuffix(".gz").endswith(SUFFIXES)]
            paths = [p for p in paths if not any(x.startswith(".") for x in p.relative_to(pattern).parts)]
            looked = f"a folder without a file that ends in {' '.join(SUFFIXES)} (or .gz)"
        else:
            matches = [pattern] if pattern.is_file() else glob.glob(str(pattern), recursive=True)
            paths = [Path(match) for match in matches]
            looked = f"no such file (looked from {Path.cwd()})"
        kept = [p for p in paths if not any(fnmatch(p.as_posix(), pattern) for pattern in config.exclude)]
        kept = [p for p in kept if p.is_file()]
        if not kept:
            missing.append(f"{entry!r}: {'data.exclude leaves out all of it' if paths else looked}")
        for path in sorted(kept, key=Path.as_posix):
            found.setdefault(path, entry == STDLIB)
    if missing or not found:
        listed = "\n  ".join(missing or ["no pattern given"])
        raise FileNotFoundError(f"data.files finds nothing:\n  {listed}")
    return list(found.items())


def read_file(path: Path, text_field: str, problems: Problems) -> Iterator[Document]:
    """The documents of one file: one for each line of .jsonl, else the whole file."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".npy"):
        yield from made(str(path), np.load(path, mmap_mode="r", allow_pickle=False), problems)
    elif name.endswith(".bin"):
        if path.stat().st_size:
            yield from made(str(path), np.memmap(path, "<u2", mode="r"), problems)
    elif name.endswith(".jsonl"):
        lines: gzip.GzipFile | BinaryIO = gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")
        with lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield from read_line(f"{path}:{number}", line, text_field, problems)
    else:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        encoding = "utf-8-sig"
        if name.endswith(".py"):  # PEP 263
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            number = data.count(b"\n", 0, error.start) + 1
            raise ValueError(f"line {number}: expected {encoding} text, found {error.reason}") from None
        yield from made(str(path), text, problems)


def read_line(where: str, line: bytes, text_field: str, problems: Problems) -> Iterator[Document]:
    """The document in one line of .jsonl."""
    try:
        value = json.loads(line)
    except ValueError as error:
        problems.add(where, f"expected a JSON object, found {line[:40]!r} ({error})")
        return
    if not isinstance(value, dict):
        problems.add(where, f"expected a JSON object with {text_field!r}, found {type(value).__name__}")
    elif not isinstance(value.get(text_field), str):
        found = type(value[text_field]).__name__ if text_field in value else f"the fields {sorted(value)}"
        problems.add(where, f"expected a string in field {text_field!r}, found {found}")
    else:
        yield from made(where, value[text_field], problems)


def made(source: str, value: object, problems: Problems) -> Iterator[Document]:
    """The document that holds `value`, unless it is empty or bad."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            problems.add(source, f"expected Unicode text, found a lone surrogate at character {error.start}")
            return
        if value:
            yield Document(source, text=value)
    elif not isinstance(value, np.ndarray):
        problems.add(source, f"expected a string or a token array, found {type(value).__name__}")
    elif value.ndim != 1 or value.dtype.kind not in "iu":
        problems.add(source, f"expected integers [length], found {value.dtype} {list(value.shape)}")
    elif value.size:
        yield Document(source, tokens=value)
