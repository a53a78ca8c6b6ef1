"""Files of tensors, mapped into memory: nothing of a tensor is read before it is asked for. And safetensors."""

import json
import mmap
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_PLAIN = (
    *("float64", "float32", "float16", "complex64", "complex128", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)
_SHORT = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
DTYPES = {name: np.dtype(name) for name in _PLAIN} | {name: np.dtype(getattr(ml_dtypes, name)) for name in _SHORT}
"""What a file may store, by name."""
SAFETENSORS = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "C64": "complex64"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "F8_E4M3": "float8_e4m3fn"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "F8_E5M2": "float8_e5m2"},
}
"""The same by their names in safetensors files."""
POINTER = b"version https://git-lfs.github.com/spec/"
LONGEST_HEADER, MOST_AXES = 100_000_000, 32


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor in a mapped file: an index of slices copies that part, and lets go of the file's pages."""

    view: np.ndarray
    mapping: mmap.mmap
    span: tuple[int, int]
    """Where its bytes begin and end in the file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        return self.view.shape

    @property
    def dtype(self) -> str:
        """Its dtype by name."""
        return str(self.view.dtype)

    @property
    def T(self) -> "FileTensor":
        """The tensor with its axes in reverse."""
        return replace(self, view=self.view.T)

    def __getitem__(self, index: Any) -> np.ndarray:
        part = np.array(self.view[index])
        start = self.span[0] - self.span[0] % mmap.PAGESIZE
        if part.size and hasattr(mmap, "MADV_DONTNEED"):
            # Else every page that was read counts as memory in use for as long as the file is mapped.
            self.mapping.madvise(mmap.MADV_DONTNEED, start, self.span[1] - start)
        return part


@dataclass(frozen=True, eq=False)
class MappedFile:
    """A file in the address space."""

    path: Path
    bytes: mmap.mmap

    def tensor(
        self,
        name: str,
        dtype: str,
        shape: Sequence[Any],
        span: tuple[int, int],
        offset: int = 0,
        strides: Sequence[Any] | None = None,
    ) -> FileTensor:
        """The tensor that lies within these bytes of the file, `offset` and `strides` counted in numbers.

        Without strides it is contiguous. Raises a ValueError that names file and tensor where it leaves them.
        """
        if dtype not in DTYPES:
            raise ValueError(f"{self.path}: {name} is stored as {dtype}, which is not read here")
        known, (start, stop) = DTYPES[dtype], span
        if strides is None:
            known_sizes = len(shape) <= MOST_AXES and are_sizes(shape)
            strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))] if known_sizes else ()
        # In Python's integers: numpy's own check of a buffer overflows.
        fits = are_sizes([*shape, *strides, offset, start, stop]) and len(shape) == len(strides) <= MOST_AXES
        if fits and 0 not in shape:
            last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
            fits = start + (last + 1) * known.itemsize <= stop <= len(self.bytes)
        if not fits or prod(size for size in shape if size) * known.itemsize >= 2**63:
            what = f"{name} of shape {reprlib.repr(shape)}, dtype {dtype}"
            if stop > len(self.bytes):
                raise ValueError(f"{self.path}: {what} lies beyond the file's {len(self.bytes)} bytes")
            raise ValueError(f"{self.path}: {what} does not fit in its {stop - start} bytes")
        if 0 in shape:
            return FileTensor(np.empty(shape, known), self.bytes, (0, 0))
        steps = [stride * known.itemsize if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)]
        place = start + offset * known.itemsize
        return FileTensor(np.ndarray(shape, known, self.bytes, place, steps), self.bytes, span)


def map_file(path: Path) -> MappedFile:
    """Maps a file for reading. Raises ValueError for an empty one; what the system refuses names the file."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError(f"{path}: an empty file")
        mapped = MappedFile(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if mapped.bytes[: len(POINTER)] == POINTER:
        raise ValueError(f"{path}: not the file itself but a pointer to it: git lfs pull fetches it")
    return mapped


def are_sizes(values: Sequence[Any]) -> bool:
    """Whether these are whole numbers that can count something in a file."""
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def open_safetensors(path: Path) -> tuple[dict[str, FileTensor], dict[str, Any]]:
    """(tensors, metadata) of a safetensors file (https://github.com/huggingface/safetensors#format).

    Raises a ValueError that names the file, and the tensor, where it is not whole.
    """
    file = map_file(path)
    size = int.from_bytes(file.bytes[:8], "little")
    first = 8 + size
    if size > LONGEST_HEADER or first > len(file.bytes) or len(file.bytes) < 8:
        raise ValueError(
            f"{path}: not a whole safetensors file: a header of {size} bytes in a file of {len(file.bytes)}"
        )
    try:
        header = json.loads(bytes(file.bytes[8:first]).decode(), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: its header: {error}") from None
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: not a whole safetensors file: its header is no JSON object")
    tensors, spans = {}, []
    for name, entry in header.items():
        dtype, shape, (start, stop) = _entry(path, name, entry)
        tensors[name] = file.tensor(name, dtype, shape, (first + start, first + stop))
        if prod(shape) * DTYPES[dtype].itemsize != stop - start:
            raise ValueError(f"{path}: {name} of shape {shape}, dtype {dtype} does not fill its {stop - start} bytes")
        spans.append((first + start, first + stop))
    end = first
    for start, stop in sorted(spans):
        if start != end:
            raise ValueError(f"{path}: not a whole safetensors file: its tensors overlap or leave gaps at {start}")
        end = stop
    if end != len(file.bytes):
        raise ValueError(f"{path}: not a whole safetensors file: {end} bytes expected, {len(file.bytes)} found")
    return tensors, metadata


def _entry(path: Path, name: str, entry: Any) -> tuple[str, list[int], list[int]]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]}:
            if are_sizes([*shape, start, stop]) and start <= stop:
                return SAFETENSORS.get(dtype, dtype), shape, [start, stop]
    raise ValueError(f"{path}: {name}: its entry in the header is {reprlib.repr(entry)}")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name} stands there twice")
    return found
