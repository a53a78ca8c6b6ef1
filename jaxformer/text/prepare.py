"""Documents to a token store: flat arrays on disk, made once, found again by content.

An example is a dict of 1-D arrays of whole numbers, of equal or different lengths, such as {"tokens": ids}.
A store folder holds meta.json and, for each shard, shard.json, <field>.bin (all examples on end),
<field>.lengths.npy and bytes.npy. While it is made it is called .<name>.part: its shards are whole, and whoever
makes the same store next goes on after them.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxformer.text.corpus import Document, Documents
from jaxformer.text.files import read_json, write_json
from jaxformer.text.readers import read_npy

Example = dict[str, np.ndarray]
Made = tuple[list[Example], int]
"""The examples of a document, and its size."""
VERSION = 1
WINDOW = 1 << 22  # bytes of text that are tokenized at once
SHARD = 1 << 26  # values of a shard, each array counted as OVERHEAD more
OVERHEAD = 64  # about what an array costs until it is written
LOCK = "lock"
NAMED = re.compile(r"\w[\w-]*")  # a shard or a field: what names no other folder


@dataclass(frozen=True)
class Shard:
    """Some examples: for each field all values on end, and where each example starts [examples + 1]."""

    values: dict[str, np.ndarray]
    starts: dict[str, np.ndarray]


class Store:
    """Prepared examples, read at random.

    `lengths[field]` [examples]; `sizes` [examples] holds the UTF-8 bytes of a document, at its first example;
    `fingerprint` names the content and how it was made.
    """

    def __init__(self, shards: list[Shard], sizes: np.ndarray, fingerprint: str) -> None:
        self.shards, self.sizes, self.fingerprint = shards, sizes, fingerprint
        self.fields = tuple(shards[0].values)
        self.lengths = {f: np.concatenate([np.diff(s.starts[f]) for s in shards]) for f in self.fields}
        counts = [len(s.starts[self.fields[0]]) - 1 for s in shards]
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, example: int) -> Example:
        return {field: self.read(field, example) for field in self.fields}

    def read(self, field: str, example: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Values start:stop of one field of one example, not copied."""
        at = int(np.searchsorted(self._first, example, side="right")) - 1
        shard, i = self.shards[at], example - self._first[at]
        begin, end = shard.starts[field][i : i + 2]
        return shard.values[field][begin + start : end if stop is None else min(begin + stop, end)]

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Maps a store folder into memory. Raises ValueError, or FileNotFoundError, that names what is damaged."""
        folder = Path(folder)
        meta = read_json(folder / "meta.json")
        if meta.get("version") != VERSION:
            found = f"version {meta['version']}" if "version" in meta else "no meta.json"
            raise ValueError(f"{folder}: expected a token store of version {VERSION}, found {found}")
        match meta:
            case {"shards": [_, *_] as names, "fields": {**fields}, "fingerprint": str(fingerprint)} if (
                fields
                and all(isinstance(name, str) and NAMED.fullmatch(name) for name in (*names, *fields))
                and {*map(str, fields.values())} <= {"<u2", "<u4"}
            ):
                opened = [_open_shard(folder / name, fields) for name in names]
                return cls(
                    [shard for shard, _ in opened], np.concatenate([sizes for _, sizes in opened]), fingerprint
                )
        raise ValueError(f"{folder / 'meta.json'}: damaged: it does not name shards, fields and a fingerprint")


def _open_shard(folder: Path, fields: Mapping[Any, Any]) -> tuple[Shard, np.ndarray]:
    sizes = _counts(folder / "bytes.npy")
    values, starts = {}, {}
    for field, dtype in fields.items():
        path = folder / f"{field}.bin"
        lengths = _counts(folder / f"{field}.lengths.npy")
        starts[field] = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        whole = path.stat().st_size == int(starts[field][-1]) * np.dtype(dtype).itemsize
        if not whole or starts[field].min() < 0 or len(lengths) != len(sizes):
            raise ValueError(f"{path}: damaged, its size is not that of its {len(lengths)} examples")
        values[field] = np.memmap(path, dtype, mode="r") if starts[field][-1] else np.empty(0, dtype)
    return Shard(values, starts), sizes


def _counts(path: Path) -> np.ndarray:
    """int64 [examples] of a .npy file."""
    try:
        values = read_npy(path)
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from None
    if values.ndim != 1 or values.dtype != np.int64 or values.min(initial=0) < 0:
        raise ValueError(f"{path}: damaged: expected int64 [examples], found {values.dtype} {list(values.shape)}")
    return np.array(values)


def prepare(
    documents: Documents,
    examples: Callable[[Document], Iterable[Example]],
    fields: Mapping[str, int],
    fingerprint: str,
    folder: str | Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """The store of `examples(document)` of all documents, in their order whatever the number of workers.

    fields: what an example holds -> the number of values it may take (a vocabulary's size); values are kept
        as uint16 or uint32 accordingly.
    fingerprint: names what `examples` does (tokenizer, settings). With the fingerprint of the documents it
        names the store; where `folder` has a store of that name, nothing is done, and where it has a part of one,
        only the rest. folder=None: in memory.
    progress: called with (documents done, documents).

    Raises ValueError for a value that a field may not take, naming the document.
    """
    key = json.dumps([VERSION, documents.fingerprint, fingerprint, sorted(fields.items())])
    name = sha256(key.encode()).hexdigest()

    def make(start: int) -> Iterator[list[Made]]:
        """The documents of each shard from document `start` on."""
        return parts(tokenized(documents, examples, fields, workers or os.cpu_count() or 1, progress, start))

    if folder is None:
        written = [shard(part, fields) for part in make(0)] or [shard([], fields)]
        return Store([s for s, _ in written], np.concatenate([sizes for _, sizes in written]), name)
    target = Path(folder) / name[:16]
    while not (target / "meta.json").is_file():
        part_folder = target.with_name(f".{target.name}.part")
        with held(part_folder) as mine:
            if mine:
                write_store(part_folder, target, make, fields, name)
    return Store.open(target)


def tokenized(
    documents: Documents,
    examples: Callable[[Document], Iterable[Example]],
    fields: Mapping[str, int],
    workers: int,
    progress: Callable[[int, int], None] | None,
    start: int,
) -> Iterator[Made]:
    """What is made of each document from `start` on, in order. Threads: tokenizers free the GIL."""

    def work(document: Document) -> Made:
        return [checked(example, fields, document) for example in examples(document)], document.size

    done = start
    with ThreadPoolExecutor(workers) as pool:
        for window in windows(documents.after(start)):
            for made in pool.map(work, window):
                yield made
                done += 1
                if progress is not None:
                    progress(done, len(documents))


def windows(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Groups of documents of some WINDOW bytes."""
    window, size = [], 0
    for document in documents:
        window.append(document)
        size += document.size + 256
        if size >= WINDOW:
            yield window
            window, size = [], 0
    yield window


def checked(example: Example, fields: Mapping[str, int], document: Document) -> Example:
    """The example in the stored dtypes."""
    if example.keys() != fields.keys():
        raise ValueError(f"{document.source}: expected the fields {sorted(fields)}, found {sorted(example)}")
    out = {}
    for field, bound in fields.items():
        values = np.asarray(example[field])
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            found = f"{values.dtype} {list(values.shape)}"
            raise ValueError(f"{document.source}: {field}: expected integers [length], found {found}")
        if values.size and not 0 <= values.min() <= values.max() < bound:
            raise ValueError(
                f"{document.source}: {field} must lie in 0..{bound - 1}, found {values.min()}..{values.max()}"
            )
        out[field] = values.astype(dtype_of(bound))
    return out


def dtype_of(bound: int) -> np.dtype:
    """The stored dtype of values in 0..bound - 1."""
    return np.dtype("<u2" if bound <= 1 << 16 else "<u4")


def parts(made: Iterable[Made]) -> Iterator[list[Made]]:
    """The documents of each shard: whole ones, so that a shard ends where the next can begin."""
    part, size = list[Made](), 0
    for document in made:
        part.append(document)
        size += sum(len(values) + OVERHEAD for example in document[0] for values in example.values())
        if size >= SHARD:
            yield part
            part, size = [], 0
    if part:
        yield part


def shard(part: list[Made], fields: Mapping[str, int]) -> tuple[Shard, np.ndarray]:
    """The examples as flat arrays, and the bytes [examples]: those of a document at its first example."""
    values, starts = {}, {}
    for field, bound in fields.items():
        arrays = [example[field] for examples, _ in part for example in examples]
        values[field] = np.concatenate([np.empty(0, dtype_of(bound)), *arrays])
        starts[field] = np.concatenate([[0], np.cumsum([len(a) for a in arrays], dtype=np.int64)])
    sizes = [0 if i else size for examples, size in part for i in range(len(examples))]
    return Shard(values, starts), np.array(sizes, np.int64)


def write_store(
    folder: Path,
    target: Path,
    make: Callable[[int], Iterator[list[Made]]],
    fields: Mapping[str, int],
    name: str,
) -> None:
    """Writes the shards that `folder` lacks and renames it to `target`, so that a store is there whole or not at all.

    Where it is stopped, or the disk is full, the whole shards stay for the next time. They go where `make` fails:
    its documents or its code will change.
    """
    if (target / "meta.json").is_file():
        return shutil.rmtree(folder)
    names, done = list[str](), 0
    while (place := folder / f"shard-{len(names):05d}").is_dir():
        done += read_json(place / "shard.json")["documents"]
        names.append(place.name)
    try:
        for part in make(done):
            names.append(f"shard-{len(names):05d}")
            write_shard(folder / names[-1], part, fields)
    except (OSError, MemoryError):
        raise
    except Exception:
        for place in folder.glob("shard-*"):
            shutil.rmtree(place)
        shutil.rmtree(folder, ignore_errors=True)  # the lock goes last: another process may come
        raise
    if not names:
        names.append("shard-00000")
        write_shard(folder / names[-1], [], fields)
    kinds = {field: dtype_of(bound).str for field, bound in fields.items()}
    write_json(folder / "meta.json", {"version": VERSION, "fingerprint": name, "fields": kinds, "shards": names})
    folder.rename(target)
    (target / LOCK).unlink()


def write_shard(place: Path, part: list[Made], fields: Mapping[str, int]) -> None:
    """Writes a shard, which is there whole or not at all."""
    folder = place.with_name(f"{place.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    written, sizes = shard(part, fields)
    for field in fields:
        written.values[field].tofile(folder / f"{field}.bin")
        np.save(folder / f"{field}.lengths.npy", np.diff(written.starts[field]))
    np.save(folder / "bytes.npy", sizes)
    write_json(folder / "shard.json", {"documents": len(part)})
    folder.rename(place)


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """The folder, made where it is not there, for this process alone; it waits for whoever has it.

    False where the folder went away meanwhile: it has become a store, or was given up.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    except FileNotFoundError:  # it went between these lines
        yield False
        return
    with lock:
        with contextlib.suppress(OSError):  # a mounted drive without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            mine = os.path.samefile(lock.fileno(), folder / LOCK)
        except FileNotFoundError:
            mine = False
        yield mine


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A `progress` for prepare that draws a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
