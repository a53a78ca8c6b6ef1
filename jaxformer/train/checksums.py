"""Checksums of a checkpoint's files: written with it, compared before anything of it is believed.

`<step>/checksums.json` holds size and SHA-256 of every other file, when it was saved and by how many devices, and
the SHA-256 of all that. BOOKS are not listed: orbax still writes them when the rest is done, in a thread of its own,
and nothing of a step depends on them.
"""

import datetime
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import tensorstore

FILE = "checksums.json"
METADATA = "_CHECKPOINT_METADATA"
BOOKS = METADATA, "commit_success.txt"
VERSION = 1
THREADS = max(1, min(8, (os.cpu_count() or 1) // 2))
"""A save goes on beside steps, which want the rest of the cores."""
SHOWN = 10
"""Damaged files that an error names; `jaxformer checkpoint verify` names them all."""
Json = dict[str, Any]


class DamagedError(ValueError):
    """A checkpoint is not what was saved; says which, which files, and what is wrong with them."""

    def __init__(self, damaged: Mapping[Path, Sequence[str]]) -> None:
        super().__init__("\n".join(describe(folder, wrong) for folder, wrong in damaged.items()))


def describe(folder: Path, wrong: Sequence[str]) -> str:
    """What an error or a warning says of a damaged step."""
    more = [f"and {len(wrong) - SHOWN} more files"] if len(wrong) > SHOWN else []
    return "\n  - ".join([f"the checkpoint {folder} is damaged:", *wrong[:SHOWN], *more])


def write(folder: Path) -> None:
    """Enter all files of a step's folder, and how it came to be, into its checksums.json."""
    saved = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "platform": jax.default_backend(),
    }
    names = [name for name in map(str, _files(folder)) if name not in (FILE, *BOOKS)]
    with ThreadPoolExecutor(THREADS) as pool:
        files = dict(zip(names, pool.map(lambda name: _measured(folder / name), names), strict=True))
    with (folder / FILE).open("w", encoding="utf-8") as file:
        file.write(_text({"version": VERSION, "saved": saved, "files": files}))
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave a good step with an empty list of checksums


def read(folder: Path) -> Json | None:
    """The contents of checksums.json; None where there is none. Raises ValueError where it was changed."""
    try:
        text = (folder / FILE).read_bytes().decode()
        value = json.loads(text)
        plain = {name: part for name, part in value.items() if name != "sha256"}
        if _text(plain) == text and plain["version"] == VERSION and _is_complete(**plain):
            return plain
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{FILE}: is not as it was written")


def damages(
    folder: Path, without: Collection[str] = (), done: Callable[[int], None] = lambda size: None
) -> list[str]:
    """What is missing in a step's folder or not as it was written, a line for each file; [] for a good step.

    Reads every byte, but for the items `without`. `done` hears how many were read, from several threads. Of a step
    without checksums, as versions before these wrote, it tells what can be told: whether all can be read.
    """
    try:
        listed = read(folder)
    except (ValueError, OSError) as error:
        return [str(error)]
    if listed is None:
        return _unreadable(folder, without)
    left_out = {*without, *BOOKS}  # earlier versions listed one of these
    files = {name: want for name, want in listed["files"].items() if name.partition("/")[0] not in left_out}
    there = {*map(str, _files(folder))}  # what is not there is not opened: a name could lead anywhere
    with ThreadPoolExecutor(THREADS) as pool:
        compared = lambda name: _difference(folder / name, files[name], done) if name in there else "is missing"
        return [f"{name}: {line}" for name, line in zip(files, pool.map(compared, files), strict=True) if line]


def unexpected(folder: Path) -> list[str]:
    """Files that are not listed: they do no harm, but nobody knows where they come from."""
    try:
        listed = read(folder)
    except (ValueError, OSError):
        return []
    known = {FILE, *BOOKS, *listed["files"]} if listed else {name.as_posix() for name in _files(folder)}
    return [f"{name}: was not saved with the checkpoint" for name in map(str, _files(folder)) if name not in known]


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum((folder / name).stat().st_size for name in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())


def _measured(path: Path) -> Json:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _difference(path: Path, want: Json, done: Callable[[int], None]) -> str | None:
    """What is wrong with a file; None where nothing is."""
    if path.is_symlink() or not path.is_file():
        return "is no file"
    try:
        found = _measured(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    done(found["bytes"])
    if found["bytes"] != want["bytes"]:
        return f"has {found['bytes']:,} bytes, {want['bytes']:,} were written"
    return None if found["sha256"] == want["sha256"] else "its bytes are not those that were written"


def _is_complete(version: int, saved: Json, files: Json) -> bool:
    """Whether all is there that readers take for granted, for somebody else may have written it."""
    numbers = [saved["processes"], saved["devices"], *(file["bytes"] for file in files.values())]
    texts = [saved["time"], saved["platform"], *(file["sha256"] for file in files.values())]
    return all(isinstance(value, int) for value in numbers) and all(isinstance(value, str) for value in texts)


def _text(value: Json) -> str:
    """The one way to write these contents down, with their own digest."""
    plain = json.dumps(value, indent=1, sort_keys=True)
    return json.dumps(value | {"sha256": hashlib.sha256(plain.encode()).hexdigest()}, indent=1, sort_keys=True)


def _unreadable(folder: Path, without: Collection[str]) -> list[str]:
    try:
        items = json.loads((folder / METADATA).read_bytes())["item_handlers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{METADATA}: cannot be read: {error!r}"]
    found = []
    for item in sorted(items.keys() - {*without}):
        try:
            _try(folder / item)
        except Exception as error:  # tensorstore's are of several kinds
            found.append(f"{item}: cannot be read: {error}")
    return found


def _try(item: Path) -> None:
    """Read all of an item; its arrays' tree is checked by sums of its own, their values are not."""
    texts = [path for name in ("metadata", "metrics", "_METADATA") if (path := item / name).is_file()]
    if not texts:
        raise FileNotFoundError("nothing is there")
    for path in texts:
        json.loads(path.read_bytes())
    if (item / "_METADATA").is_file():
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
        for key in store.list().result():
            store.read(key).result()
