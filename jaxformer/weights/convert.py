"""The engine that runs a family's rows in both directions: published tensors <-> our tree of parameters."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import tree
from jaxformer.names import Row

DTYPES = ("float32", "bfloat16", "float16")
"""What parameters may be stored as."""
Index = tuple[slice, ...]


class Tensor(Protocol):
    """A published tensor; an index of slices reads no more than that part. A numpy array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        ...

    @property
    def dtype(self) -> Any:
        """What str() makes "float32", "bfloat16", ... of."""
        ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Leaf:
    """One parameter of ours and the published tensors that fill it: one, or one a layer."""

    row: Row
    shape: tuple[int, ...]
    tensors: list[Tensor]
    dtype: Any

    def read(self, index: Index | None = None) -> np.ndarray:
        """leaf[index], out of no more than the layers and slices that it needs; None is all of it."""
        index = index or (slice(None),) * len(self.shape)
        spans = [range(size)[part] for size, part in zip(self.shape, index, strict=True)]
        if not self.row.stacked:
            return _cut(self.row, self.shape, self.tensors[0], spans).astype(self.dtype, order="C")
        out = np.empty([len(span) for span in spans], self.dtype)
        for i, layer in enumerate(spans[0]):
            out[i] = _cut(self.row, self.shape[1:], self.tensors[layer], spans[1:])
        return out


def load(
    rows: Sequence[Row],
    shapes: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    prefix: str = "",
    ignored: Sequence[str] = (),
    dtype: Any = None,
) -> dict[str, Any]:
    """The tree of parameters that `shapes` (jax.ShapeDtypeStructs) describes, filled from published tensors.

    `dtype` None keeps the file's. A leaf whose shape carries a sharding is read shard by shard, each put on
    its device; any other goes to the default device. Where no name begins with `prefix`, names are read
    without it; `ignored` are patterns of published names that are no parameters.

    Raises one ValueError, before anything is allocated, that lists every tensor which is missing, unknown, of
    another shape or of a dtype that parameters cannot have.
    """
    leaves = plan(rows, shapes, tensors, prefix=prefix, ignored=ignored, dtype=dtype)
    flat = {}
    for path, shape in tree.flatten(shapes).items():
        leaf, home = leaves[path], getattr(shape, "sharding", None)
        if home is None:
            flat[path] = jnp.asarray(leaf.read())
        else:
            flat[path] = jax.make_array_from_callback(leaf.shape, home, leaf.read)
    return tree.unflatten(flat)


def export(rows: Sequence[Row], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors of a tree of parameters, bit for bit, in the rows' order; mostly views."""
    flat = tree.flatten(params)
    _check_rows(rows, flat)
    parts: dict[str, list[np.ndarray]] = {}
    axes: dict[str, int] = {}
    for row in rows:
        leaf = np.asarray(flat[row.path])
        for layer, ours in enumerate(leaf if row.stacked else [leaf]):
            name = row.published.format(layer=layer)
            groups, axes[name] = _groups(row, ours.ndim)
            shape = [prod(ours.shape[axis] for axis in group) for group in groups]
            parts.setdefault(name, []).append(ours.transpose([a for group in groups for a in group]).reshape(shape))
    return {name: same[0] if len(same) == 1 else np.concatenate(same, axes[name]) for name, same in parts.items()}


def plan(
    rows: Sequence[Row],
    shapes: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    prefix: str = "",
    ignored: Sequence[str] = (),
    dtype: Any = None,
) -> dict[str, Leaf]:
    """{path: what fills it}: all of `load`'s checks, and nothing allocated."""
    flat = {path: tuple(leaf.shape) for path, leaf in tree.flatten(shapes).items()}
    _check_rows(rows, flat)
    wanted = None if dtype is None else check_dtype(dtype)
    bare = not any(name.startswith(prefix) for name in tensors)
    spell = (lambda name: name.removeprefix(prefix)) if bare else str
    leaves: dict[str, Leaf] = {}
    used: set[str] = set()
    wrong: list[str] = []
    for row in rows:
        shape = flat[row.path]
        expected = _published_shape(row, shape[1:] if row.stacked else shape)
        found: list[Tensor] = []
        for layer in range(shape[0]) if row.stacked else [0]:
            names = [spell(name.format(layer=layer)) for name in (row.published, *row.also)]
            there = [name for name in names if name in tensors]
            used.update(there)
            if not there:
                wrong.append(f"{names[0]}: missing")
                continue
            tensor = tensors[there[0]]
            if tuple(tensor.shape) != expected:
                wrong.append(f"{there[0]}: expected shape {expected}, found {tuple(tensor.shape)}")
            wrong += [
                f"{other}: differs from {there[0]}, with which it is tied: set tie_word_embeddings to false"
                for other in there[1:]
                if not np.array_equal(tensor[:], tensors[other][:])
            ]
            found.append(tensor)
        stored = sorted({str(tensor.dtype) for tensor in found})
        wrong += _dtype_problems(row, stored, wanted)
        leaves[row.path] = Leaf(row, shape, found, stored[0] if wanted is None and stored else wanted)
    buffers = {name for pattern in ignored for name in tensors if fnmatchcase(name, spell(pattern))}
    wrong += [f"{name}: unknown, no parameter of this architecture" for name in tensors.keys() - used - buffers]
    if wrong:
        _complain(sorted(set(wrong)))
    return leaves


def check_dtype(dtype: Any) -> Any:
    """The numpy dtype of a name or a jax dtype. Raises ValueError for one that parameters cannot have."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = dtype
    if str(found) not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: parameters are stored as one of {', '.join(DTYPES)}")
    return found


def _dtype_problems(row: Row, stored: list[str], wanted: Any) -> list[str]:
    readable = DTYPES if wanted is None else (*DTYPES, "float64")
    found = [
        f"{row.published}: stored as {name}, expected {' or '.join(readable)}"
        for name in stored
        if name not in readable
    ]
    if wanted is None and len(stored) > 1:
        found.append(f"{row.published}: stored as {' and '.join(stored)} in different layers: choose one by dtype=")
    return found


def _complain(wrong: list[str], most: int = 20) -> None:
    lines = [f"  - {line}" for line in wrong[:most]]
    if len(wrong) > most:
        lines.append(f"  - and {len(wrong) - most} more")
    raise ValueError(
        "these tensors do not fit the architecture that config.json describes "
        "(is it another model's, or is a file missing?):\n" + "\n".join(lines)
    )


def _check_rows(rows: Sequence[Row], paths: Iterable[str]) -> None:
    """Every parameter is named by one row, every fused tensor by all its parts in order."""
    counts = Counter(row.path for row in rows)
    wrong = [f"{path}: {counts[path]} rows" for path in paths if counts[path] != 1]
    wrong += [f"{path}: no such parameter" for path in counts.keys() - set(paths)]
    parts: dict[str, list[Any]] = {}
    for row in rows:
        parts.setdefault(row.published, []).append(row.part)
    for name, given in parts.items():
        if given not in ([None], [(i, len(given)) for i in range(len(given))]):
            wrong.append(f"{name}: parts {given}")
    if wrong:
        raise ValueError("rows must name each parameter exactly once:\n" + "\n".join(sorted(wrong)))


def _groups(row: Row, ndim: int) -> tuple[list[tuple[int, ...]], int]:
    """(for each published axis our axes that are flattened in it, which of them holds the outputs)."""
    if row.layout == "same":
        groups: list[tuple[int, ...]] = [(axis,) for axis in range(ndim)]
    else:
        ends = [tuple(range(row.inputs)), tuple(range(row.inputs, ndim))]
        groups = [group for group in (ends if row.layout == "in_out" else ends[::-1]) if group]
    return groups, next((i for i, group in enumerate(groups) if ndim - 1 in group), 0)


def _published_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    groups, outputs = _groups(row, len(shape))
    sizes = [prod(shape[axis] for axis in group) for group in groups]
    if row.part is not None:
        sizes[outputs] *= row.part[1]
    return tuple(sizes)


def _cut(row: Row, shape: tuple[int, ...], tensor: Tensor, spans: Sequence[range]) -> np.ndarray:
    """Our spans of a parameter of this shape, out of the published tensor.

    Of axes that are flattened together the first is cut while reading, the others after it.
    """
    groups, outputs = _groups(row, len(shape))
    index, sizes, rest = [], [], [slice(span.start, span.stop) for span in spans]
    for i, (first, *others) in enumerate(groups):
        inner = prod(shape[axis] for axis in others)
        offset = shape[first] * row.part[0] if row.part is not None and i == outputs else 0
        index.append(slice((offset + spans[first].start) * inner, (offset + spans[first].stop) * inner))
        sizes += [len(spans[first]), *(shape[axis] for axis in others)]
        rest[first] = slice(None)
    block = tensor[tuple(index)].reshape(sizes)
    ours = block.transpose(np.argsort([axis for group in groups for axis in group]))
    return ours[tuple(rest)]
