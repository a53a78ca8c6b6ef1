"""The published layout of a model: config.json, generation_config.json, files of tensors.

Safetensors files are read and written; PyTorch's .bin and Flax's .msgpack files are read where there are none.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from safetensors.numpy import save_file

from jaxformer.weights import msgpacked
from jaxformer.weights.layout import Tensor
from jaxformer.weights.mapped import LONGEST_HEADER, open_safetensors
from jaxformer.weights.pickled import open_pickled

CONFIG, GENERATION, README = "config.json", "generation_config.json", "README.md"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, FLAX = "pytorch_model.bin", "flax_model.msgpack"
TENSORS = (
    (WEIGHTS, INDEX, "model-*-of-*.safetensors"),
    (PICKLED, f"{PICKLED}.index.json", "pytorch_model-*-of-*.bin"),
    (FLAX, f"{FLAX}.index.json", "flax_model-*-of-*.msgpack"),
)
"""Names of the files of tensors: one file, or an index and the files that it lists. The first found is read."""
ABOUT = (
    *(CONFIG, GENERATION, "chat_template.jinja", "chat_template.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "target_vocab.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm", "target.spm"),
    # What says how sentences are made into vectors.
    *("modules.json", "sentence_*_config.json", "config_sentence_transformers.json"),
    *("1_Pooling", "1_Pooling/config.json", "2_Normalize", "2_Normalize/config.json"),
)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""Names of the files of an adapter, which has a folder of its own."""
LAYOUT = (*ABOUT, *(name for names in TENSORS for name in names))
"""Names of the files of a published model; * stands for a number."""
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Published:
    """A folder in the published layout, opened and not read."""

    config: dict[str, Any]
    generation: dict[str, Any]
    """{} where there is no such file."""
    tensors: dict[str, Tensor]


def resolve(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder that a source means: itself, or the files of a hub id, fetched or cached.

    Of a hub id's files of tensors no more are fetched than are read: pickles only where nothing else is there.

    Raises FileNotFoundError where it is neither a folder nor a hub id that can be had, ValueError for the
    revision of a folder.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is of a hub id, but {source} is a folder here")
        return folder
    hub_id = str(source)
    if folder.exists() or not _is_hub_id(hub_id):
        raise FileNotFoundError(f"{source}: no such folder, and not a hub id of the form owner/name")
    try:
        for names in TENSORS:
            wanted = [*ABOUT, *ADAPTER, *names]
            folder = Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
            if any((folder / name).is_file() for name in (*names, *ADAPTER)):
                break
        return folder
    except (OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{hub_id}: no such folder here, and as a hub id{at} it can be neither fetched nor found in the "
            f"cache: give a folder that exists, or connect to the network. The hub says: {error}"
        ) from error


def check_id(hub_id: str) -> None:
    """Raises a ValueError for what no model on the hub can be called."""
    if not _is_hub_id(hub_id):
        raise ValueError(f"{hub_id!r}: expected a hub id of the form owner/name")


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.startswith(".")


def upload(folder: Path, hub_id: str, readme: str, *, private: bool, revision: str | None, message: str) -> str:
    """Commits a folder to a model's repository on the hub, made where there is none; returns the commit's address.

    Files of tensors that stood there and are not in the folder are deleted in the same commit: else an old index
    would go on naming them. `readme` goes along where there is no README.md yet.

    Raises a ConnectionError, with what the hub said and what to do.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(hub_id, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(hub_id, branch=revision, exist_ok=True)
        if not api.file_exists(hub_id, README, revision=revision):
            (folder / README).write_text(readme, encoding="utf-8")
        stale = [name for names in TENSORS for name in names]
        done = api.upload_folder(
            repo_id=hub_id, folder_path=folder, commit_message=message, revision=revision, delete_patterns=stale
        )
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:
        raise ConnectionError(
            f"{hub_id}: nothing was published: check the network, the name, and that `hf auth login` was run by "
            f"somebody who may write there. The hub says: {error}"
        ) from error
    return str(done.commit_url)


def read(folder: Path) -> Published:
    """Opens a folder in the published layout; tensors are mapped, not read.

    Raises FileNotFoundError for a missing file and ValueError for one that is not what its name says.
    """
    return Published(
        read_json(folder / CONFIG),
        read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {},
        open_tensors(folder),
    )


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the first of TENSORS that is there: of one file, or of the files that its index lists."""
    for single, index, _ in TENSORS:
        if (folder / single).is_file():
            return _open_file(folder / single)
        if (folder / index).is_file():
            return _open_index(folder / index)
    looked_for = ", ".join(name for single, index, _ in TENSORS for name in (single, index))
    raise FileNotFoundError(f"{folder}: no tensors: none of {looked_for} is there")


def _open_index(path: Path) -> dict[str, Tensor]:
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{path}: expected a weight_map of tensors and the files that hold them")
    files = sorted(set(places.values()))
    outside = [name for name in files if Path(name).name != name or "\\" in name or name == ".."]
    if outside:
        raise ValueError(f"{path}: these are not names of files in its folder: {', '.join(map(repr, outside))}")
    missing = [name for name in files if not os.path.isfile(path.parent / name)]  # False for any impossible name
    if missing:
        raise FileNotFoundError(f"{path}: these files are missing: {', '.join(missing)}")
    opened = {name: _open_file(path.parent / name) for name in files}
    spell: Callable[[str], str] = msgpacked.published_name if path.name.startswith(FLAX) else str
    lost = sorted(name for name, place in places.items() if spell(name) not in opened[place])
    if lost:
        raise ValueError(f"{path}: these tensors are not in the file that it names: {', '.join(lost)}")
    found: dict[str, Tensor] = {}
    for file, tensors in opened.items():
        doubled = sorted(found.keys() & tensors.keys())
        if doubled:
            raise ValueError(f"{path.parent / file}: these tensors are in another file too: {', '.join(doubled)}")
        found |= tensors
    return found


def _open_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by their published names, mapped."""
    if path.suffix == ".bin":
        return dict(open_pickled(path))
    if path.suffix == ".msgpack":
        return _from_flax(path, msgpacked.open_msgpack(path), "/")
    tensors, metadata = open_safetensors(path)
    return _from_flax(path, tensors, ".") if metadata.get("format") == "flax" else dict(tensors)


def _from_flax(path: Path, tensors: Mapping[str, Any], separator: str) -> dict[str, Tensor]:
    try:
        return dict(msgpacked.publish(tensors, separator))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


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
            f"{folder} holds what is no part of a published model: {', '.join(others)}; choose another"
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
    """A few names of files and folders that are not in LAYOUT; not all, which may be a disk's."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(islice((name for name in names if not any(fnmatchcase(name, one) for one in LAYOUT)), 5))


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    try:
        if (size := path.stat().st_size) > LONGEST_HEADER:
            raise ValueError(f"expected at most {LONGEST_HEADER} bytes, found {size}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent}: {path.name} is not there") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as the hub's files have it: two spaces, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
