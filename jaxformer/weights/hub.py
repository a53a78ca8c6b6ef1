"""The published layout of a model: config.json, generation_config.json, safetensors files."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LAYOUT = (
    *(CONFIG, GENERATION, WEIGHTS, INDEX, "model-*-of-*.safetensors"),
    *(
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
)
"""Names of the files of a published model; * stands for a number."""
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a safetensors file, mapped: an index of slices reads that part."""

    part: Any
    shape: tuple[int, ...]
    dtype: str

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.part[index]


@dataclass(frozen=True)
class Published:
    """A folder in the published layout, opened and not read."""

    config: dict[str, Any]
    generation: dict[str, Any]
    """{} where there is no such file."""
    tensors: dict[str, FileTensor]


def resolve(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder that a source means: itself, or the files of a hub id, fetched or cached.

    Raises FileNotFoundError where it is neither a folder nor a hub id that can be had, ValueError for the
    revision of a folder.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is of a hub id, but {source} is a folder here")
        return folder
    hub_id = str(source)
    if folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", hub_id) or hub_id.startswith("."):
        raise FileNotFoundError(f"{source}: no such folder, and not a hub id of the form owner/name")
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=list(LAYOUT)))
    except (OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{hub_id}: no such folder here, and as a hub id{at} it can be neither fetched nor found in the "
            f"cache: give a folder that exists, or connect to the network. The hub says: {error}"
        ) from error


def read(folder: Path) -> Published:
    """Opens a folder in the published layout; tensors are mapped, not read.

    Raises FileNotFoundError for a missing file and ValueError for one that is not what its name says.
    """
    return Published(
        read_json(folder / CONFIG),
        read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {},
        open_tensors(folder),
    )


def open_tensors(folder: Path) -> dict[str, FileTensor]:
    """Every tensor of model.safetensors, or of the files that its index lists."""
    if (folder / WEIGHTS).is_file():
        return _open_file(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        raise FileNotFoundError(
            f"{folder}: neither {WEIGHTS} nor {INDEX} is there"
            + (f"; {', '.join(pickled)} is a pickle, which may run code and is not read:" if pickled else "")
            + (" publish it as safetensors first (save_pretrained of the reference writes them)" if pickled else "")
        )
    places = read_json(folder / INDEX).get("weight_map", {})
    missing = sorted({name for name in places.values() if not (folder / name).is_file()})
    if missing or not places:
        raise FileNotFoundError(f"{folder / INDEX}: these files are missing: {', '.join(missing) or 'all'}")
    opened = {name: _open_file(folder / name) for name in sorted(set(places.values()))}
    lost = sorted(name for name, place in places.items() if name not in opened[place])
    if lost:
        raise ValueError(f"{folder / INDEX}: these tensors are not in the file that it names: {', '.join(lost)}")
    return {name: tensor for file in opened.values() for name, tensor in file.items()}


def _open_file(path: Path) -> dict[str, FileTensor]:
    try:
        # Its slices keep the mapping alive after the block.
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library raises its own class, a plain Exception
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from None
    return {
        name: FileTensor(part, tuple(part.get_shape()), DTYPES.get(part.get_dtype(), part.get_dtype()))
        for name, part in parts.items()
    }


def write(
    folder: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes config.json, generation_config.json where it has something to say, and the tensors.

    Tensors go to one file, or to as many of at most `max_shard_size` (bytes, or "500MB") as hold them, with
    an index; a tensor above that size has a file of its own.
    """
    shards = split(tensors, parse_size(max_shard_size))
    write_json(folder / CONFIG, config)
    if generation:
        write_json(folder / GENERATION, generation)
    if len(shards) == 1:
        _write_file(folder / WEIGHTS, tensors, shards[0])
        return
    places: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, tensors, names)
        places |= dict.fromkeys(names, file)
    total = {
        "total_parameters": sum(tensor.size for tensor in tensors.values()),
        "total_size": sum(tensor.nbytes for tensor in tensors.values()),
    }
    write_json(folder / INDEX, {"metadata": total, "weight_map": dict(sorted(places.items()))})


def split(tensors: Mapping[str, np.ndarray], most: int) -> list[list[str]]:
    """Names in groups of consecutive tensors, each of at most `most` bytes or of one tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    return groups


def parse_size(size: int | str) -> int:
    """Bytes of "5GB", "500MB", "20KB" (powers of ten) or a plain number."""
    if isinstance(size, int) and size > 0:
        return size
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *(KB|MB|GB)", str(size))
    if found is None:
        raise ValueError(f'max_shard_size: expected a number of bytes or a size such as "5GB", got {size!r}')
    return int(float(found[1]) * UNITS[found[2]])


def _write_file(path: Path, tensors: Mapping[str, np.ndarray], names: list[str]) -> None:
    save_file({name: np.ascontiguousarray(tensors[name]) for name in names}, path, metadata={"format": "pt"})


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place when the block ends without an error.

    Raises FileExistsError where `folder` holds anything but a published model: nothing of it is deleted.
    """
    others = [] if not folder.exists() else [folder.name] if not folder.is_dir() else _others(folder)
    if others:
        raise FileExistsError(
            f"{folder} holds what is no part of a published model: {', '.join(others[:5])}; choose another"
        )
    part, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _others(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in LAYOUT)]


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent}: {path.name} is not there") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as the hub's files have it: two spaces, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
