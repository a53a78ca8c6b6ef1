"""Documents to a token store: flat arrays on disk, made once, found again by content.

An example is a dict of 1-D arrays of whole numbers, of equal or different lengths, such as {"tokens": ids}.
A store folder holds meta.json and, for each shard, <field>.bin (all examples on end), <field>.lengths.npy
and bytes.npy.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxformer.text.corpus import Document, Documents
from jaxformer.text.files import read_json, write_json

Example = dict[str, np.ndarray]
VERSION = 1
WINDOW = 1 << 22  # bytes of text that are tokenized at once
SHARD = 1 << 26  # values of a shard


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
        """Maps a store folder into memory."""
        folder = Path(folder)
        meta = read_json(folder / "meta.json")
        if meta.get("version") != VERSION:
            found = f"version {meta['version']}" if "version" in meta else "no meta.json"
            raise ValueError(f"{folder}: expected a token store of version {VERSION}, found {found}")
        shards, sizes = [], []
        for name in meta["shards"]:
            values, starts = {}, {}
            for field, dtype in meta["fields"].items():
                path = folder / name / f"{field}.bin"
                lengths = np.load(folder / name / f"{field}.lengths.npy")
                starts[field] = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
                if path.stat().st_size != starts[field][-1] * np.dtype(dtype).itemsize:
                    raise ValueError(f"{path}: damaged, its size is not that of its {len(lengths)} examples")
                values[field] = np.memmap(path, dtype, mode="r") if starts[field][-1] else np.empty(0, dtype)
            shards.append(Shard(values, starts))
            sizes.append(np.load(folder / name / "bytes.npy"))
        return cls(shards, np.concatenate(sizes), meta["fingerprint"])


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
        names the store; where `folder` has a store of that name, nothing is done. folder=None: in memory.
    progress: called with (documents done, documents).

    Raises ValueError for a value that a field may not take, naming the document.
    """
    key = json.dumps([VERSION, documents.fingerprint, fingerprint, sorted(fields.items())])
    name = sha256(key.encode()).hexdigest()
    rows = tokenized(documents, examples, fields, workers or os.cpu_count() or 1, progress)
    if folder is None:
        written = [shard(part, fields) for part in parts(rows)]
        return Store([s for s, _ in written], np.concatenate([sizes for _, sizes in written]), name)
    target = Path(folder) / name[:16]
    if not (target / "meta.json").is_file():
        write_store(target, rows, fields, name)
    return Store.open(target)


def tokenized(
    documents: Documents,
    examples: Callable[[Document], Iterable[Example]],
    fields: Mapping[str, int],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[Example, int]]:
    """(example, bytes of its document at its first example) in order. Threads: tokenizers free the GIL."""

    def work(document: Document) -> list[tuple[Example, int]]:
        made = [checked(example, fields, document) for example in examples(document)]
        return [(example, 0 if i else document.size) for i, example in enumerate(made)]

    done = 0
    with ThreadPoolExecutor(workers) as pool:
        for window in windows(documents):
            for result in pool.map(work, window):
                yield from result
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


def parts(rows: Iterable[tuple[Example, int]]) -> Iterator[list[tuple[Example, int]]]:
    """The rows of each shard; at least one shard."""
    part, size = list[tuple[Example, int]](), 0
    for row in rows:
        part.append(row)
        size += sum(len(values) for values in row[0].values())
        if size >= SHARD:
            yield part
            part, size = [], 0
    yield part


def shard(part: list[tuple[Example, int]], fields: Mapping[str, int]) -> tuple[Shard, np.ndarray]:
    """The rows as flat arrays, and the bytes [examples]."""
    values, starts = {}, {}
    for field, bound in fields.items():
        arrays = [example[field] for example, _ in part]
        values[field] = np.concatenate([np.empty(0, dtype_of(bound)), *arrays])
        starts[field] = np.concatenate([[0], np.cumsum([len(a) for a in arrays], dtype=np.int64)])
    return Shard(values, starts), np.array([size for _, size in part], np.int64)


def write_store(target: Path, rows: Iterable[tuple[Example, int]], fields: Mapping[str, int], name: str) -> None:
    """Writes beside `target` and renames, so that a store is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(target)
    part_folder = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.part")
    part_folder.mkdir()
    try:
        names = []
        for i, part in enumerate(parts(rows)):
            names.append(f"shard-{i:05d}")
            place = part_folder / names[-1]
            place.mkdir()
            written, sizes = shard(part, fields)
            for field in fields:
                written.values[field].tofile(place / f"{field}.bin")
                np.save(place / f"{field}.lengths.npy", np.diff(written.starts[field]))
            np.save(place / "bytes.npy", sizes)
        kinds = {field: dtype_of(bound).str for field, bound in fields.items()}
        meta = {"version": VERSION, "fingerprint": name, "fields": kinds, "shards": names}
        write_json(part_folder / "meta.json", meta)
        try:
            os.rename(part_folder, target)
        except OSError:
            if not (target / "meta.json").is_file():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(part_folder, ignore_errors=True)


def remove_left_over(target: Path) -> None:
    """Removes what processes of this machine left that were killed while they wrote `target`."""
    for left in target.parent.glob(f".{target.name}.{socket.gethostname()}.*.part"):
        pid = int(left.name.split(".")[-2])
        try:
            if pid != os.getpid():  # in a container each run may have the same one
                os.kill(pid, 0)
                continue
        except ProcessLookupError:
            pass
        except PermissionError:  # alive, another user's
            continue
        shutil.rmtree(left)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A `progress` for prepare that draws a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
