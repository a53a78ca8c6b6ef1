"""Flax's files of parameters (flax.serialization's msgpack), and the published names of what they hold.

The layout: https://github.com/msgpack/msgpack/blob/master/spec.md. An array is the extension 1 (a scalar 3)
around [shape, name of the dtype, bytes]; one above 2^30 bytes is a map of its shape and flat chunks.
"""

import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from jaxformer.weights.mapped import MOST_AXES, FileTensor, MappedFile, are_sizes, map_file

CHUNKED = "__msgpack_chunked_array__"
ARRAY, SCALAR = 1, 3
DEEPEST = 64
LENGTHS = {
    **{0xD9: ("text", "B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I")},
    **{0xC4: ("bytes", "B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I")},
    **{0xC7: ("extension", "B"), 0xC8: ("extension", ">H"), 0xC9: ("extension", ">I")},
    **{0xDC: ("list", ">H"), 0xDD: ("list", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I")},
    **{0xCC: ("number", "B"), 0xCD: ("number", ">H"), 0xCE: ("number", ">I"), 0xCF: ("number", ">Q")},
}
"""{first byte of a value: (its kind, how its length, or the number itself, is written)}."""
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
"""The last part of a path, where it is published under another name."""


class Transposable(Protocol):
    """A tensor that can be turned without being read."""

    @property
    def T(self) -> Self:
        """The tensor with its axes in reverse."""
        ...


Turned = TypeVar("Turned", bound=Transposable)


@dataclass(frozen=True, eq=False)
class ChunkedTensor:
    """A tensor in blocks of rows; an index of slices reads the part of each that it needs."""

    blocks: tuple[FileTensor | np.ndarray, ...]
    rows: tuple[int, ...]
    """The shape of the blocks together."""
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        return self.rows[::-1] if self.transposed else self.rows

    @property
    def dtype(self) -> str:
        """Its dtype by name."""
        return str(self.blocks[0].dtype)

    @property
    def T(self) -> "ChunkedTensor":
        """The tensor with its axes in reverse."""
        return replace(self, transposed=not self.transposed)

    def __getitem__(self, index: Any) -> np.ndarray:
        given = index if isinstance(index, tuple) else (index,)
        full = (*given, *[slice(None)] * (len(self.rows) - len(given)))
        first, *others = full[::-1] if self.transposed else full
        start, stop, step = first.indices(self.rows[0])
        parts, at = [], 0
        for block in self.blocks:
            within = slice(max(start - at, 0), max(stop - at, 0))
            parts.append(block[(within, *others)])
            at += block.shape[0]
        found = np.concatenate(parts)[::step]
        return found.T if self.transposed else found


@dataclass(frozen=True)
class Extension:
    """An extension of msgpack: its code, and where its bytes are in the file."""

    code: int
    span: tuple[int, int]


def open_msgpack(path: Path) -> dict[str, FileTensor | ChunkedTensor]:
    """{path in the tree of parameters, as "a/b/kernel": tensor}, mapped, not read.

    Raises a ValueError that names the file, and the tensor, for anything but a tree of arrays.
    """
    file = map_file(path)
    reader = _Reader(file, 0, len(file.bytes))
    root = reader.value()
    if not isinstance(root, dict):
        raise reader.error(f"expected a tree of arrays, found a {type(root).__name__}")
    if reader.at != len(file.bytes):
        raise reader.error("there is more after the tree of parameters")
    found: dict[str, FileTensor | ChunkedTensor] = {}
    for name, value in _leaves(root, ""):
        if name in found:
            raise ValueError(f"{path}: {name} stands there twice")
        found[name] = _chunked(file, name, value) if isinstance(value, dict) else _array(file, name, value)
    return found


def publish(tensors: Mapping[str, Turned], separator: str = "/") -> dict[str, Turned]:
    """Parameters of the reference's former Flax models by the names, and as the tensors, of its other models.

    Paths differ only in the last part, and a kernel [in, out] is published as [out, in].
    Raises a ValueError where two paths have one name.
    """
    found: dict[str, Turned] = {}
    for path, tensor in tensors.items():
        name = published_name(path, separator)
        if name in found:
            raise ValueError(f"{path}: another tensor is called {name} too")
        found[name] = tensor.T if path.rpartition(separator)[2] == "kernel" else tensor
    return found


def published_name(path: str, separator: str = "/") -> str:
    """The published name of a path: "h/0/mlp/kernel" gives "h.0.mlp.weight"."""
    *parents, leaf = path.split(separator)
    return ".".join([*parents, LEAVES.get(leaf, leaf)])


class _Reader:
    """Reads the few kinds of values that such files have, one after another; arrays are left where they are."""

    def __init__(self, file: MappedFile, start: int, stop: int) -> None:
        self.file, self.at, self.stop = file, start, stop

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.file.path}: not a whole file of Flax parameters: {what}, at byte {self.at}")

    def take(self, count: int) -> tuple[int, int]:
        """The span of the next `count` bytes."""
        if self.at + count > self.stop:
            raise self.error(f"{count} bytes are wanted, {self.stop - self.at} are left")
        self.at += count
        return self.at - count, self.at

    def bytes(self, count: int) -> bytes:
        return self.file.bytes[slice(*self.take(count))]

    def text(self, count: int) -> str:
        try:
            return self.bytes(count).decode()
        except UnicodeDecodeError:
            raise self.error("text that is not UTF-8") from None

    def value(self, depth: int = 0) -> Any:
        """dict, list, str, int, True, Extension, or the span of bytes. Raises ValueError for any other."""
        if depth > DEEPEST:
            raise self.error(f"a tree of more than {DEEPEST} levels")
        kind, size = self.head()
        match kind:
            case "number":
                return size
            case "true":
                return True
            case "text":
                return self.text(size)
            case "bytes":
                return self.take(size)
            case "extension":
                return Extension(self.bytes(1)[0], self.take(size))
            case "list" if size <= MOST_AXES:
                return [self.value(depth + 1) for _ in range(size)]
            case "list":
                raise self.error(f"a list of {size} values")
        found: dict[str, Any] = {}
        for _ in range(size):
            name = self.value(depth + 1)
            if not isinstance(name, str) or name in found:
                raise self.error(f"the name {reprlib.repr(name)} is none, or stands there twice")
            found[name] = self.value(depth + 1)
        return found

    def head(self) -> tuple[str, int]:
        """(kind, length or number) of the value that begins here."""
        first = self.bytes(1)[0]
        if first in LENGTHS:
            kind, form = LENGTHS[first]
            return kind, struct.unpack(form, self.bytes(struct.calcsize(form)))[0]
        if first < 0x80:
            return "number", first
        if first < 0xA0:
            return ("map" if first < 0x90 else "list"), first & 0x0F
        if first < 0xC0:
            return "text", first & 0x1F
        if 0xD4 <= first <= 0xD8:
            return "extension", 1 << (first - 0xD4)
        if first == 0xC3:
            return "true", 1
        raise self.error(f"a value of the kind {first:#x}")


def _leaves(node: dict[str, Any], path: str) -> list[tuple[str, Any]]:
    found = []
    for name, value in node.items():
        inner = isinstance(value, dict) and CHUNKED not in value
        found += _leaves(value, f"{path}{name}/") if inner else [(path + name, value)]
    return found


def _array(file: MappedFile, name: str, value: Any) -> FileTensor:
    if not isinstance(value, Extension) or value.code not in (ARRAY, SCALAR):
        raise ValueError(f"{file.path}: {name}: expected an array, found {reprlib.repr(value)}")
    reader = _Reader(file, *value.span)
    match reader.value(DEEPEST - 2):
        case [list(shape), str(dtype), (start, stop)] if are_sizes(shape) and reader.at == reader.stop:
            tensor = file.tensor(name, dtype, shape, (start, stop))
            if tensor.view.nbytes == stop - start:
                return tensor
            raise ValueError(f"{file.path}: {name} of shape {shape}, dtype {dtype} does not fill its bytes")
    raise ValueError(f"{file.path}: {name}: not the description of an array")


def _chunked(file: MappedFile, name: str, value: dict[str, Any]) -> ChunkedTensor:
    shape, chunks = (_sequence(value.get(key)) for key in ("shape", "chunks"))
    flat = [_array(file, f"{name}[{i}]", chunk) for i, chunk in enumerate(chunks)]
    sizes = [prod(chunk.shape) for chunk in flat]
    if not shape or not flat or not are_sizes(shape) or 0 in (*shape, *sizes) or sum(sizes) != prod(shape):
        raise ValueError(f"{file.path}: {name}: its chunks do not make up its shape")
    if len({chunk.dtype for chunk in flat}) > 1 or any(len(chunk.shape) != 1 for chunk in flat):
        raise ValueError(f"{file.path}: {name}: its chunks are not alike")
    return ChunkedTensor(tuple(_blocks(flat, tuple(shape[1:]))), tuple(shape))


def _sequence(items: Any) -> list[Any]:
    """What flax writes a tuple as: {"0": ..., "1": ...}."""
    if not isinstance(items, dict) or set(items) != {str(i) for i in range(len(items))}:
        return []
    return [items[str(i)] for i in range(len(items))]


def _blocks(flat: list[FileTensor], inner: tuple[int, ...]) -> list[FileTensor | np.ndarray]:
    """Flat chunks as blocks of whole rows: those within a chunk mapped, one that lies across chunks read."""
    found: list[FileTensor | np.ndarray] = []
    row, torn = prod(inner), np.empty(0, flat[0].view.dtype)
    for chunk in flat:
        size = chunk.shape[0]
        end = min(size, row - torn.size) if torn.size else 0
        if end:
            torn = np.concatenate([torn, chunk[:end]])
        if torn.size == row:
            found.append(torn.reshape(1, *inner))
            torn = torn[:0]
        count = (size - end) // row
        if count:
            view = chunk.view[end : end + count * row]
            found.append(replace(chunk, view=view.reshape(count, *inner)))
        if end + count * row < size:
            torn = chunk[end + count * row :]
    return found
