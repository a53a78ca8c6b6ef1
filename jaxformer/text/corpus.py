"""Documents: from files of many kinds, the standard library, ready-made token arrays, or any iterable in memory.

A corpus is read twice: once to check everything and to choose what is held out, then each time it is used.
"""

import glob
import hashlib
import math
import os
import pickle
import sysconfig
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxformer.text import mixture
from jaxformer.text.files import read_json
from jaxformer.text.mixture import Part
from jaxformer.text.readers import read_file, table
from jaxformer.text.records import Bad, Document, Problems, make

STDLIB = "stdlib"
STDLIB_WITHOUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
TABLES = (".jsonl", ".csv", ".tsv", ".parquet")  # what is taken from a folder for records
SUFFIXES = (".txt", ".py", ".md", ".npy", ".bin", *TABLES)


@dataclass(frozen=True)
class DataConfig:
    """Which documents to learn from."""

    files: tuple[str, ...] = (STDLIB,)
    """Files, globs or folders: texts .txt .py .md, and rows of .jsonl .csv .tsv, all also as .gz; rows of .parquet;
    token arrays .npy, or .bin of uint16; or a folder that save_to_disk of the package datasets wrote.
    "stdlib" is the Python standard library of this interpreter, without its tests."""
    exclude: tuple[str, ...] = ()
    """Patterns of paths to leave out, such as "*/drafts/*"."""
    text_field: str = "text"
    """Where a row has its text, for tasks that read plain text."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about rows and files that cannot be used: list them and stop, or count them and go on."""
    held_out: int = 20
    """One document in this many is held out for evaluation; 0: none."""
    held_out_files: tuple[str, ...] = ()
    """Files held out instead; then all of `files` are for training."""
    mixture: tuple[Part, ...] = ()
    """Corpora to mix, in place of `files`."""
    temperature: float = 1.0
    """Of a mixture by size: 1 is in proportion to the examples of each part, the higher the more equal."""
    limit: int | None = None
    """Of a mixture by size: a part counts as no larger than this many examples."""


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents in a fixed order. All were read once and found good; each iteration reads them anew."""

    read: Callable[[], Iterable[Document]]  # every document of the source
    digests: np.ndarray  # of every document of the source, uint8 [documents, 16]
    sizes: np.ndarray  # int64 [documents]
    chosen: np.ndarray  # which of them these are, ascending
    skipped: Problems = field(default_factory=Problems)
    """What could not be used: by `on_error`, or of the standard library. `count` of them, and the `first`."""

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Document]:
        wanted = np.zeros(len(self.digests), bool)
        wanted[self.chosen] = True
        count = 0
        for i, document in enumerate(self.read()):
            count = i + 1
            if count > len(wanted) or (wanted[i] and document.digest != self.digests[i].tobytes()):
                raise ValueError(f"{document.source}: changed while it was in use; start again")
            if wanted[i]:
                yield document
        if count < len(wanted):
            raise ValueError(
                f"the data changed while it was in use: {len(wanted)} documents, now {count}; start again"
            )

    @property
    def size(self) -> int:
        """UTF-8 bytes of all texts."""
        return int(self.sizes[self.chosen].sum())

    @property
    def fingerprint(self) -> str:
        """Changes when any document or their order changes; a path is no part of it."""
        return hashlib.sha256(self.digests[self.chosen].tobytes()).hexdigest()

    def after(self, count: int) -> "Documents":
        """These documents without the first `count`."""
        return replace(self, chosen=self.chosen[count:])

    def sample(self, size: int) -> "Documents":
        """Some of the documents, chosen by content, with at least `size` bytes where there are so many."""
        order = self.chosen[np.argsort(keys(self.digests[self.chosen, ::-1]), kind="stable")]
        before = np.cumsum(self.sizes[order]) - self.sizes[order]
        return replace(self, chosen=np.sort(order[before < size]))


class Spool:
    """What an iterator gives, which can be asked once only: kept in a temporary file, and read from there."""

    def __init__(self, values: Iterator[Any]) -> None:
        handle, name = tempfile.mkstemp(prefix="jaxformer-")
        self.path = Path(name)
        weakref.finalize(self, self.path.unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            for value in values:
                pickle.dump(value, file, pickle.HIGHEST_PROTOCOL)

    def __iter__(self) -> Iterator[Any]:
        with self.path.open("rb") as file:
            while file.peek(1):
                yield pickle.load(file)


def open_documents(
    data: DataConfig | Iterable[str | np.ndarray | Mapping[str, Any]],
    columns: Sequence[str] = (),
    config: DataConfig | None = None,
) -> Documents:
    """All documents that `data` names, or that it holds: strings, token arrays or mappings, such as a data set of
    the package datasets. An iterable is read anew each time; what an iterator gives is kept in a temporary file.

    With `columns`, each document is a record with exactly these, of a row or mapping; without, its text field is a
    text. `config` says what is in memory's text_field and on_error. Empty texts are left out.

    Raises FileNotFoundError for patterns that match no file, and one ValueError that lists all bad rows and files.
    """
    if isinstance(data, DataConfig):
        if data.mixture:
            raise ValueError("data.mixture: expected a single corpus; its parts are opened by open_corpora")
        config, paths = data, find_files(data, columns)
        used = columns or (config.text_field,)
        rows = lambda: ((*row, is_stdlib) for path, is_stdlib in paths for row in read_file(path, used))
    else:
        if isinstance(data, str | Mapping):
            found = f"one string {data[:40]!r}" if isinstance(data, str) else f"a mapping of {sorted(map(str, data))}"
            raise TypeError(f"expected a DataConfig or a list of documents, found {found}")
        config, values = config or DataConfig(), Spool(data) if isinstance(data, Iterator) else data
        rows = lambda: ((f"document {i}", value, False) for i, value in enumerate(values))

    def read(bad: Problems, lost: Problems) -> Iterator[Document]:
        for where, value, is_stdlib in rows():
            try:
                document = make(where, value, columns, config.text_field)
            except Bad as error:
                (lost if is_stdlib else bad).add(where, error)
            else:
                if document is not None:
                    yield document

    return scan(read, config.on_error == "skip")


@dataclass(frozen=True)
class Corpus:
    """What is trained on and what is held out, of one part of a mixture or of all there is."""

    name: str
    """"" where there are no parts."""
    training: Documents
    held_out: Documents

    def described(self) -> dict[str, Any]:
        """What a run notes of its data: of both sides how much it is, and its fingerprint."""
        sides = {"training": self.training, "held_out": self.held_out}
        return {"name": self.name} | {
            side: {"documents": len(found), "bytes": found.size, "fingerprint": found.fingerprint}
            for side, found in sides.items()
        }


def open_corpora(
    data: Iterable[str | np.ndarray | Mapping[str, Any]] | None, config: DataConfig, columns: Sequence[str] = ()
) -> list[Corpus]:
    """Every part of the config's mixture, or the documents that are given in memory, each split in two.

    Raises as open_documents, and for a mixture that cannot be, before anything is read.
    """
    if found := mixture.problems(config.mixture, config.temperature, config.limit):
        raise ValueError("data.mixture:\n" + "\n".join(f"  - {line}" for line in found))
    if data is not None:
        return [Corpus("", *split(open_documents(data, columns, config), config.held_out))]
    parts = config.mixture or (Part("", config.files, held_out_files=config.held_out_files),)
    return [_corpus(part, replace(config, mixture=()), columns) for part in parts]


def _corpus(part: Part, config: DataConfig, columns: Sequence[str]) -> Corpus:
    training = open_documents(replace(config, files=part.files), columns)
    if not part.held_out_files:
        return Corpus(part.name, *split(training, config.held_out))
    return Corpus(part.name, training, open_documents(replace(config, files=part.held_out_files), columns))


def split(documents: Documents, held_out: int) -> tuple[Documents, Documents]:
    """(training, held-out) documents: of `held_out` documents one is held out, at least one, by content.

    The order in which they are read and their names change nothing, and copies of one document stay together.
    A single document is cut near its end, after a line. 0 holds out nothing.
    """
    if held_out < 0 or held_out == 1:
        raise ValueError(f"data.held_out is one document in so many: 0 or at least 2, found {held_out}")
    chosen = documents.chosen
    if held_out == 0:
        return documents, replace(documents, chosen=chosen[:0])
    contents = keys(documents.digests[chosen])
    unique = np.unique(contents)
    if len(unique) == 1:
        head, tail = cut(next(iter(documents)), held_out)
        return open_documents([head] * len(documents)), open_documents([tail])
    held = contents <= unique[math.ceil(len(unique) / held_out) - 1]
    return replace(documents, chosen=chosen[~held]), replace(documents, chosen=chosen[held])


def keys(digests: np.ndarray) -> np.ndarray:
    """Digests uint8 [documents, 16] as values that can be compared [documents]."""
    return np.ascontiguousarray(digests).view("S16").ravel()


def cut(document: Document, held_out: int) -> tuple[str, str] | tuple[np.ndarray, np.ndarray]:
    """The document in two: the last of `held_out` parts goes to the second, from the start of a line."""
    if document.record:
        raise ValueError("data.held_out: a single record cannot be cut in two: hold out 0, or bring more")
    if document.text is None:
        assert document.tokens is not None
        at = len(document.tokens) - max(1, len(document.tokens) // held_out)
        return document.tokens[:at], document.tokens[at:]
    at = len(document.text) - max(1, len(document.text) // held_out)
    at = document.text.rfind("\n", 0, at) + 1 or at
    return document.text[:at], document.text[at:]


def scan(read: Callable[[Problems, Problems], Iterator[Document]], skip: bool) -> Documents:
    """Reads everything once: checks it, and notes digest and size of each document."""
    skipped = Problems()
    bad = skipped if skip else Problems()
    digests, sizes, kinds = bytearray(), array("q"), set()
    for document in read(bad, skipped):
        digests += document.digest
        sizes.append(document.size)
        kinds.add(document.tokens is None)
    if len(kinds) > 1:
        bad.add("data.files", "expected either texts or token arrays, found both")
    if bad.count and (not skip or len(kinds) > 1):
        raise ValueError(f"the data cannot be used:\n{bad}")
    if not sizes:
        raise ValueError(f"the data holds no text: every document is empty, or bad\n{skipped}".rstrip())
    everything = np.arange(len(sizes))
    found = np.frombuffer(digests, np.uint8).reshape(-1, 16), np.frombuffer(sizes, np.int64)
    return Documents(lambda: read(Problems(), Problems()), *found, everything, skipped)


def find_files(config: DataConfig, columns: Sequence[str] = ()) -> list[tuple[Path, bool]]:
    """(path, whether of the standard library) of each file, once, in sorted order within each entry."""
    found: dict[Path, bool] = {}
    missing = []
    for entry in config.files:
        paths, looked = matches(entry, TABLES if columns else SUFFIXES)
        kept = [p for p in paths if not any(fnmatch(p.as_posix(), pattern) for pattern in config.exclude)]
        kept = [p for p in kept if p.is_file()]
        plain = [p for p in kept if columns and table(p) is None]
        if not kept:
            missing.append(f"{entry!r}: {'data.exclude leaves out all of it' if paths else looked}")
        if plain:
            rows = f"rows ({' '.join(TABLES)}) with {', '.join(columns)}"
            missing.append(f"{entry!r}: expected {rows}, found {plain[0]}")
        for path in sorted(kept, key=Path.as_posix):
            found.setdefault(path, entry == STDLIB)
    if missing or not found:
        listed = "\n  ".join(missing or ["no pattern given"])
        raise FileNotFoundError(f"data.files finds nothing:\n  {listed}")
    return list(found.items())


def saved(folder: Path, files: Any) -> list[Path]:
    """The files of a saved data set, as its state.json lists them. Raises ValueError for one elsewhere."""
    listed = files if isinstance(files, list) else [files]
    names = [file.get("filename") if isinstance(file, dict) else None for file in listed]
    wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name or name in ("", "..")]
    if wrong:
        raise ValueError(f"{folder / 'state.json'}: expected names of files in its folder, found {wrong[:5]}")
    return [folder / name for name in names if name]


def matches(entry: str, suffixes: tuple[str, ...]) -> tuple[list[Path], str]:
    """The paths that an entry means; and what was looked for, where there are none."""
    pattern = Path(entry).expanduser()
    if entry == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [p for p in root.rglob("*.py") if not STDLIB_WITHOUT & {*p.relative_to(root).parts[:-1]}]
        return paths, f"no .py file under {root}"
    if (pattern / "dataset_dict.json").is_file():
        splits = sorted(str(path.parent) for path in pattern.glob("*/state.json"))
        return [], f"several data sets: name one of them, {' or '.join(splits)}"
    state = read_json(pattern / "state.json")
    if "_data_files" in state:  # a saved data set: beside its files lie those that `datasets` keeps for itself
        return saved(pattern, state["_data_files"]), "an empty data set"
    if pattern.is_dir():
        paths = [p for p in pattern.rglob("*") if p.name.removesuffix(".gz").endswith(suffixes)]
        paths = [p for p in paths if not any(x.startswith(".") for x in p.relative_to(pattern).parts)]
        return paths, f"a folder without a file that ends in {' '.join(suffixes)} (or .gz)"
    found = [pattern] if pattern.is_file() else glob.glob(str(pattern), recursive=True)
    return [Path(path) for path in found], f"no such file (looked from {Path.cwd()})"
