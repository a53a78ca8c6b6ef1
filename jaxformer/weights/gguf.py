"""GGUF: one file with a model's metadata, its tokenizer and its tensors, these mostly quantized in blocks.

The layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is read here, each count
held against the file, so that a damaged file is refused; what is in a block the package `gguf` knows.
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxformer.families import gguf_config
from jaxformer.weights.mapped import FileTensor, MappedFile, map_file

SUFFIX = ".gguf"
MAGIC, VERSIONS = b"GGUF", (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of metadata by number, as struct spells them."""
LAYOUTS = {form: struct.Struct(f"<{form}") for form in SCALARS.values()}
TEXT, ARRAY = 8, 9
QUANTIZATIONS = {
    **{0: "F32", 1: "F16", 30: "BF16"},
    **{2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"},
}
"""How a tensor may be stored, by number."""
MOST_AXES = 4
ALIGNMENT = "general.alignment"
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, eq=False)
class BlockTensor:
    """A tensor of a GGUF file, mapped: an index of slices dequantizes no more than that part's blocks."""

    blocks: FileTensor
    """Bytes: the tensor's leading axes, the blocks of a row, the bytes of a block."""
    shape: tuple[int, ...]
    quantization: str
    dtype: str = "float32"
    """What is read: it holds every stored value exactly."""

    def __getitem__(self, index: Any) -> np.ndarray:
        library = _library()
        rows = list(index) if isinstance(index, tuple) else [index]
        rows += [slice(None)] * (len(self.shape) - len(rows))
        start, stop, step = rows.pop().indices(self.shape[-1])
        size = self.shape[-1] // self.blocks.shape[-2]
        first = start // size
        part = self.blocks[(*rows, slice(first, -(-stop // size)))]
        if not part.size:
            return np.empty((*part.shape[:-2], len(range(start, stop, step))), self.dtype)
        kind = library.GGMLQuantizationType[self.quantization]
        values = library.dequantize(part.reshape(*part.shape[:-2], -1), kind)
        return values[..., start - first * size : stop - first * size : step]


@dataclass(frozen=True)
class Gguf:
    """A GGUF file, opened and not read."""

    metadata: dict[str, Any]
    config: dict[str, Any]
    """The config.json that the metadata amount to."""
    generation: dict[str, Any]
    """The generation_config.json."""
    tensors: dict[str, BlockTensor]
    """By their names in the file, with the shapes that numpy gives them."""


def read(path: str | os.PathLike[str]) -> Gguf:
    """Opens a GGUF file, and the other parts of one that was split; tensors are mapped, not read.

    Every tensor reads as float32: files mix types, and float32 holds the values of each exactly.

    Raises ImportError where the package gguf is missing, FileNotFoundError for a missing file, and a
    ValueError that names the file where it is damaged, or holds what cannot be read.
    """
    _library()
    path = Path(path).expanduser()
    metadata, tensors = read_file(path)
    for part in _other_parts(path, metadata.get("split.count", 1)):
        more = read_file(part)[1]
        if doubled := sorted(tensors.keys() & more.keys()):
            raise ValueError(f"{part}: these tensors are in another part too: {', '.join(doubled)}")
        tensors |= more
    try:
        config = gguf_config.config(metadata, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Gguf(metadata, config, gguf_config.generation(metadata), tensors)


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, BlockTensor]]:
    """(metadata, tensors) of one file, of any architecture."""
    file = map_file(path)
    try:
        return _Header(file).read()
    except ValueError as error:
        raise ValueError(f"{path}: not a whole GGUF file: {error}") from None


def _other_parts(path: Path, count: Any) -> list[Path]:
    if count == 1:
        return []
    if not isinstance(count, int):
        raise ValueError(f"{path}: split.count is {count!r}")
    named = PART.fullmatch(path.name)
    if named is None or (int(named[2]), int(named[3])) != (1, count):
        raise ValueError(f"{path}: the file is one of {count} parts: give the first, called NAME-00001-of-{count:05}")
    return [path.with_name(f"{named[1]}-{i:05}-of-{count:05}.gguf") for i in range(2, count + 1)]


class _Header:
    """All that stands before the tensors' bytes, read from front to back."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.data = file, file.bytes
        self.place = 0

    def read(self) -> tuple[dict[str, Any], dict[str, BlockTensor]]:
        if self.take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"version {version}: expected 2 or 3, in little-endian order")
        tensors, fields = self.number("Q"), self.number("Q")
        metadata = _unique(self.field() for _ in range(fields))
        described = _unique(self.tensor() for _ in range(tensors))
        return metadata, dict(self.place_tensors(described, metadata.get(ALIGNMENT, 32)))

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.place:
            raise ValueError(f"it ends at byte {len(self.data)}, within its header")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, form: str) -> Any:
        layout = LAYOUTS[form]
        return layout.unpack(self.take(layout.size))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def field(self) -> tuple[str, Any]:
        name = self.text()
        return name, self.value(name, self.number("I"))

    def value(self, name: str, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind == TEXT:
                return [self.text() for _ in range(count)]
            if kind in SCALARS:
                form = np.dtype(f"<{SCALARS[kind]}")
                return np.frombuffer(self.take(count * form.itemsize), form).tolist()
        if kind not in SCALARS:
            raise ValueError(f"{name}: metadata of type {kind}, which is not known")
        value = self.number(SCALARS[kind])
        # The shortest decimal of a float32 is the number that was meant: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if SCALARS[kind] == "f" else value

    def tensor(self) -> tuple[str, tuple[list[int], int, int]]:
        """(name, (sizes with the innermost first, quantization, place after the header))"""
        name, axes = self.text(), self.number("I")
        if axes > MOST_AXES:
            raise ValueError(f"{name}: of {axes} axes, expected at most {MOST_AXES}")
        sizes = [self.number("Q") for _ in range(axes)]
        return name, (sizes, self.number("I"), self.number("Q"))

    def place_tensors(
        self, described: dict[str, tuple[list[int], int, int]], alignment: Any
    ) -> Iterator[tuple[str, BlockTensor]]:
        """Tensors lie one behind the other, each at the next multiple of the alignment."""
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"{ALIGNMENT} is {alignment!r}")
        start = -(-self.place // alignment) * alignment
        expected = 0
        for name, (sizes, kind, offset) in described.items():
            if kind not in QUANTIZATIONS:
                known = ", ".join(QUANTIZATIONS.values())
                raise ValueError(f"{name}: quantization {_name(kind)} cannot be read; {known} can")
            size, width = _library().GGML_QUANT_SIZES[_library().GGMLQuantizationType[QUANTIZATIONS[kind]]]
            if not sizes or min(sizes) < 1 or sizes[0] % size:
                raise ValueError(f"{name}: of sizes {sizes}, in blocks of {size}")
            length = prod(sizes) // size * width
            if offset != expected:
                raise ValueError(f"{name}: at byte {offset} of the tensors, expected at {expected}")
            if start + offset + length > len(self.data):
                raise ValueError(f"{name}: ends at byte {start + offset + length} of {len(self.data)}")
            shape = tuple(reversed(sizes))
            blocks, place = (*shape[:-1], shape[-1] // size, width), start + offset
            mapped = self.file.tensor(name, "uint8", blocks, (place, place + length))
            yield name, BlockTensor(mapped, shape, QUANTIZATIONS[kind])
            expected = -(-(offset + length) // alignment) * alignment


def _unique(pairs: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name}: is there twice")
        found[name] = value
    return found


def _name(kind: int) -> str:
    """A quantization as the package calls it, its number where it knows none."""
    known = {each.value: each.name for each in _library().GGMLQuantizationType}
    return known.get(kind, f"number {kind}")


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise ImportError('a GGUF file is read with the package gguf: pip install "jaxformer[gguf]"') from None
    return gguf
