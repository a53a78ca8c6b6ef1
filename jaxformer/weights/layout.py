"""The axes of a row: how a published tensor holds one of ours. All shapes here are without the stacked axes."""

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import numpy as np

from jaxformer.names import Row

PIECE = 2**20
"""How many numbers are read at once: what lies in memory beside the leaf, and few enough to stay in the cache."""


class Tensor(Protocol):
    """A published tensor; it is indexed by a slice for each axis and reads that part. A numpy array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        ...

    @property
    def dtype(self) -> Any:
        """What str() makes "float32", "bfloat16", ... of."""
        ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


def problem(row: Row, shape: tuple[int, ...]) -> str | None:
    """Why a parameter of this shape cannot be published so, if it cannot."""
    if row.inputs > len(shape):
        return f"{row.inputs} inputs in {shape}"
    if row.part is not None:
        start, stop, _ = row.part
        if _axis(row) >= len(shape) or stop <= start or shape[_axis(row)] % (stop - start):
            return f"axis {_axis(row)} of {shape} is no units {start}:{stop}"
    if row.pairs and shape[-1] % 2:
        return f"no pairs in the last axis of {shape}"
    return None


def whole(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that ours would have with all the parts of the published tensor side by side."""
    if row.part is None:
        return shape
    (start, stop, total), axis = row.part, _axis(row)
    return (*shape[:axis], shape[axis] // (stop - start) * total, *shape[axis + 1 :])


def published_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the published tensor, for a parameter of this shape."""
    sizes = whole(row, shape)
    return tuple(prod(sizes[axis] for axis in group) for group in _groups(row, len(shape)))


def fill(out: np.ndarray, row: Row, shape: tuple[int, ...], tensor: Tensor, spans: Sequence[range]) -> None:
    """Reads these spans of a parameter of this shape into `out`, piece by piece along the published first axis."""
    axis = next(group[0] for group in _groups(row, len(shape)) if group)
    step = max(1, PIECE * len(spans[axis]) // max(1, out.size))
    for start in range(0, len(spans[axis]), step):
        piece = slice(start, start + step)
        block = _cut(row, shape, tensor, [*spans[:axis], spans[axis][piece], *spans[axis + 1 :]])
        out[(*[slice(None)] * axis, piece)] = block


def join(rows: Sequence[Row], leaves: Sequence[np.ndarray]) -> np.ndarray:
    """The published tensor of all its parts, in order; a view of a part that is alone, where one can be had."""
    theirs = [_theirs(row, leaf) for row, leaf in zip(rows, leaves, strict=True)]
    ours = theirs[0] if len(theirs) == 1 else np.concatenate(theirs, _axis(rows[0]))
    groups = _groups(rows[0], ours.ndim)
    shape = [prod(ours.shape[axis] for axis in group) for group in groups]
    return ours.transpose([axis for group in groups for axis in group]).reshape(shape)


def _axis(row: Row) -> int:
    """Which of our axes the parts of a published tensor share: the first output, or what is within a head."""
    return row.inputs + row.within_heads


def _groups(row: Row, ndim: int) -> list[tuple[int, ...]]:
    """For each published axis our axes that are flattened in it."""
    if row.layout in ("same", "row"):
        return [()] * (row.layout == "row") + [(axis,) for axis in range(ndim)]
    ends = [tuple(range(row.inputs)), tuple(range(row.inputs, ndim))]
    return [group for group in (ends if row.layout == "in_out" else ends[::-1]) if group]


def _cut(row: Row, shape: tuple[int, ...], tensor: Tensor, spans: Sequence[range]) -> np.ndarray:
    """Our spans of a parameter of this shape, out of the published tensor.

    Of axes that are flattened together the first is cut while reading, the others after it.
    """
    sizes, groups, last = whole(row, shape), _groups(row, len(shape)), spans[-1]
    spans = [*spans[:-1], range(shape[-1])] if row.pairs else list(spans)
    if row.part is not None:
        axis, (start, _, total) = _axis(row), row.part
        offset = sizes[axis] // total * start
        spans[axis] = range(offset + spans[axis].start, offset + spans[axis].stop)
    index, read, rest = [], [], [slice(span.start, span.stop) for span in spans]
    for group in groups:
        if not group:
            index.append(slice(0, 1))
            continue
        first, *others = group
        inner = prod(sizes[axis] for axis in others)
        index.append(slice(spans[first].start * inner, spans[first].stop * inner))
        read += [len(spans[first]), *(sizes[axis] for axis in others)]
        rest[first] = slice(None)
    block = tensor[tuple(index)].reshape(read)
    ours = block.transpose(np.argsort([axis for group in groups for axis in group]))[tuple(rest)]
    if row.pairs:
        ours = ours[..., _neighbours(shape[-1])[last.start : last.stop]]
    return ours if row.plus == 0 else _wide(ours) - np.float32(row.plus)


def _theirs(row: Row, leaf: np.ndarray) -> np.ndarray:
    """Our values in the published order of the last axis, with what is published on top of them."""
    if row.pairs:
        leaf = leaf[..., np.argsort(_neighbours(leaf.shape[-1]))]
    return leaf if row.plus == 0 else (_wide(leaf) + np.float32(row.plus)).astype(leaf.dtype)


def _neighbours(size: int) -> np.ndarray:
    """Where the published order of pairs has each of ours: 0, 2, 4, ..., 1, 3, 5, ..."""
    return np.arange(size).reshape(-1, 2).T.reshape(-1)


def _wide(values: np.ndarray) -> np.ndarray:
    """In at least float32, so that a sum is rounded once."""
    return values.astype(np.promote_types(values.dtype, np.float32))
