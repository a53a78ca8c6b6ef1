"""The engine that runs a family's rows in both directions: published tensors <-> our tree of parameters."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxformer import tree
from jaxformer.names import Row
from jaxformer.weights import layout
from jaxformer.weights.layout import Tensor

DTYPES = ("float32", "bfloat16", "float16")
"""What parameters may be stored as."""
HEADS = "heads/"
"""Where the paths of heads begin."""
Index = tuple[slice, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Leaf:
    """One parameter of ours and the published tensors that fill it, each at its place in the stacked axes."""

    row: Row
    shape: Shape
    tensors: dict[tuple[int, ...], Tensor]
    dtype: Any

    def read(self, index: Index | None = None) -> np.ndarray:
        """leaf[index], out of no more than the tensors and slices that it needs; None is all of it."""
        index = index or (slice(None),) * len(self.shape)
        spans = [range(size)[part] for size, part in zip(self.shape, index, strict=True)]
        out = _aligned(tuple(len(span) for span in spans), np.dtype(self.dtype))
        stacked = len(self.row.stacked)
        for at in np.ndindex(out.shape[:stacked]):
            tensor = self.tensors[tuple(span[i] for span, i in zip(spans, at, strict=False))]
            layout.fill(out[at], self.row, self.shape[stacked:], tensor, spans[stacked:])
        return out


@dataclass(frozen=True)
class Plan:
    """What fills each parameter."""

    leaves: dict[str, Leaf]
    fresh: tuple[str, ...] = ()
    """Paths of heads that no tensor fills, sorted."""
    dropped: tuple[str, ...] = ()
    """Names of published tensors of heads that fill nothing, sorted."""


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

    `plan` makes the checks, `place` reads: all of them fit exactly, or nothing is allocated.
    """
    return place(plan(rows, shapes, tensors, prefix=prefix, ignored=ignored, dtype=dtype), shapes)


def place(planned: Plan, shapes: Mapping[str, Any], fresh: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tree of parameters; `fresh` are arrays for the paths that the plan calls so.

    A leaf whose shape carries a sharding is read shard by shard, each put on its devices before the next is
    read; any other goes to the default device. In host memory there is never more beside what is placed than
    one shard, and on the CPU, which takes the shard itself over, than a few pieces of `layout.PIECE`.
    """
    flat, fresh = {}, fresh or {}
    if fresh.keys() != set(planned.fresh):
        raise ValueError(f"fresh: expected arrays for {list(planned.fresh)}, got them for {sorted(fresh)}")
    for path, shape in tree.flatten(shapes).items():
        if path in fresh:
            flat[path] = fresh[path]
        else:
            flat[path] = _put(planned.leaves[path], getattr(shape, "sharding", None))
    return tree.unflatten(flat)


def export(rows: Sequence[Row], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors of a tree of parameters, bit for bit, in the rows' order; mostly views."""
    flat = tree.flatten(params)
    _check_rows(rows, {path: leaf.shape for path, leaf in flat.items()})
    tensors: dict[str, np.ndarray] = {}
    for same in _fused(rows).values():
        leaves = [np.asarray(flat[row.path]) for row in same]
        for at in np.ndindex(leaves[0].shape[: len(same[0].stacked)]):
            name = same[0].spelled(at)[0]
            assert name not in tensors, f"{name}: two rows publish it"
            tensors[name] = layout.join(same, [leaf[at] for leaf in leaves])
    return tensors


def plan(
    rows: Sequence[Row],
    shapes: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    prefix: str = "",
    ignored: Sequence[str] = (),
    dtype: Any = None,
    heads: Sequence[str] | None = None,
) -> Plan:
    """What fills each parameter that `shapes` (jax.ShapeDtypeStructs) describes; nothing is allocated.

    `dtype` None keeps the file's. Where no name begins with `prefix`, names are read without it; `ignored` are
    patterns of published names that are no parameters. With `heads`, patterns of published names, the file may
    be of a model with other heads: what is under `heads/` and is not there in its shape is left to be `fresh`,
    and tensors of these names that fill nothing are `dropped`.

    Raises one ValueError that lists every tensor which is missing, unknown, of another shape or of a dtype that
    parameters cannot have.
    """
    flat = {path: tuple(leaf.shape) for path, leaf in tree.flatten(shapes).items()}
    _check_rows(rows, flat)
    wanted = None if dtype is None else check_dtype(dtype)
    bare = not any(name.startswith(prefix) for name in tensors)
    spell = (lambda name: name.removeprefix(prefix)) if bare else str
    leaves: dict[str, Leaf] = {}
    fresh: list[str] = []
    used: set[str] = set()
    dropped: set[str] = set()
    wrong: list[str] = []
    for row in rows:
        found, there, misfits = _find(row, flat[row.path], tensors, spell)
        if misfits and heads is not None and row.path.startswith(HEADS):
            fresh.append(row.path)
            dropped |= there
            continue
        stored = sorted({str(tensor.dtype) for tensor in found.values()})
        used |= there
        wrong += [*misfits, *_dtype_problems(row, stored, wanted)]
        leaves[row.path] = Leaf(row, flat[row.path], found, stored[0] if wanted is None and stored else wanted)
    dropped |= _named(tensors, map(spell, heads or ()))
    others = tensors.keys() - used - dropped - _named(tensors, map(spell, ignored))
    wrong += [f"{name}: unknown, no parameter of this architecture" for name in others]
    if wrong:
        _complain(sorted(set(wrong)))
    return Plan(leaves, tuple(sorted(fresh)), tuple(sorted(dropped - used)))


def check_dtype(dtype: Any) -> Any:
    """The numpy dtype of a name or a jax dtype. Raises ValueError for one that parameters cannot have."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = dtype
    if str(found) not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: parameters are stored as one of {', '.join(DTYPES)}")
    return found


def _find(
    row: Row, shape: Shape, tensors: Mapping[str, Tensor], spell: Callable[[str], str]
) -> tuple[dict[tuple[int, ...], Tensor], set[str], list[str]]:
    """(the row's tensors by their place in the stacked axes, all names under which they are there, what is wrong)."""
    stacked = len(row.stacked)
    expected = layout.published_shape(row, shape[stacked:])
    found: dict[tuple[int, ...], Tensor] = {}
    used: set[str] = set()
    wrong: list[str] = []
    for at in np.ndindex(shape[:stacked]):
        names = [spell(name) for name in row.spelled(at)]
        there = [name for name in names if name in tensors]
        used.update(there)
        if not there:
            wrong.append(f"{names[0]}: missing")
            continue
        found[at] = tensor = tensors[there[0]]
        if tuple(tensor.shape) != expected:
            wrong.append(f"{there[0]}: expected shape {expected}, found {tuple(tensor.shape)}")
        wrong += [
            f"{other}: differs from {there[0]}, with which it is tied: set tie_word_embeddings to false"
            for other in there[1:]
            if not _equal(tensor, tensors[other])
        ]
    return found, used, wrong


def _named(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    return {name for pattern in patterns for name in names if fnmatchcase(name, pattern)}


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; no more than a piece of each is read at once."""
    if tuple(one.shape) != tuple(other.shape):
        return False
    first, *others = one.shape
    step = max(1, layout.PIECE // max(1, prod(others)))
    pieces = [(slice(i, min(i + step, first)), *(slice(0, size) for size in others)) for i in range(0, first, step)]
    return all(np.array_equal(one[piece], other[piece]) for piece in pieces)


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


def _fused(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """{published name: the rows of its parts in their order}."""
    fused: dict[str, list[Row]] = {}
    for row in rows:
        fused.setdefault(row.published, []).append(row)
    return {name: sorted(same, key=lambda row: row.part or (0, 1, 1)) for name, same in fused.items()}


def _check_rows(rows: Sequence[Row], shapes: Mapping[str, Shape]) -> None:
    """Every parameter is named by one row, which fits it; every fused tensor by parts without gap or overlap."""
    counts = Counter(row.path for row in rows)
    wrong = [f"{path}: {counts[path]} rows" for path in shapes if counts[path] != 1]
    wrong += [f"{path}: no such parameter" for path in counts.keys() - shapes.keys()]
    for name, same in _fused([row for row in rows if row.path in shapes]).items():
        ours = [shapes[row.path][len(row.stacked) :] for row in same]
        found = [layout.problem(row, shape) for row, shape in zip(same, ours, strict=True)]
        unfit = [f"{row.path}: {problem}" for row, problem in zip(same, found, strict=True) if problem]
        starts, stops, totals = zip(*(row.part or (0, 1, 1) for row in same), strict=True)
        if len(set(totals)) > 1 or (*starts, totals[0]) != (0, *stops):
            wrong.append(f"{name}: parts {[row.part for row in same]} leave a gap or overlap")
        elif not unfit and len({layout.whole(row, shape) for row, shape in zip(same, ours, strict=True)}) > 1:
            wrong.append(f"{name}: units of different shapes, in parts of {ours}")
        wrong += unfit
    if wrong:
        raise ValueError("rows must name each parameter exactly once:\n" + "\n".join(sorted(wrong)))


def _put(leaf: Leaf, home: Sharding | None) -> jax.Array:
    """The leaf on the devices of its sharding, or on the default device; a shard for several is read once."""
    if home is None:
        return jax.block_until_ready(jax.device_put(leaf.read(), may_alias=True))
    shards: dict[str, tuple[Index, list[jax.Device]]] = {}
    for device, index in home.addressable_devices_indices_map(leaf.shape).items():
        assert index is not None
        shards.setdefault(str(index), (index, []))[1].append(device)
    placed: list[jax.Array] = []
    for index, devices in shards.values():
        shard = leaf.read(index)
        placed += jax.block_until_ready([jax.device_put(shard, device, may_alias=True) for device in devices])
    return jax.make_array_from_single_device_arrays(leaf.shape, home, placed)


def _aligned(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An array that begins at a multiple of 64 bytes: on the CPU jax takes such a one over and copies any other."""
    size = prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
