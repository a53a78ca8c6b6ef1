"""Logical axes of activations: what the model calls a dimension, and the mesh axes that it is split over."""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
from jax import Array
from jax.sharding import PartitionSpec

LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "expert", "fsdp"),
    "rows_by_table": ("data", "expert"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "length": ("sequence",),
    "keys": (),
    "width": (),
    "table_width": ("fsdp",),
    "head_dim": (),
}
"""{what a dimension is called: the mesh axes that it is split over}.

- "length" is that of whatever stands for tokens.
- "keys" is the length of keys and values once queries are to look at all of them: context parallelism by gathering.
- "rows_by_table" and "table_width" are where embeddings are looked up. From there to "batch" leads an exchange over
  fsdp, since that stands last in it.
"""


def constrain(x: Array, axes: tuple[str, ...]) -> Array:
    """Asks the compiler to lay `x` out over the mesh in force (`jax.set_mesh`); without a mesh, `x` itself.

    `axes` names each dimension of `x` by a key of LOGICAL_AXES. A mesh axis that the mesh does not have is
    passed over, and a dimension that does not divide by its mesh axes stays whole (9 heads over tensor=2).

    Raises ValueError for an unknown name or another number of names than dimensions.
    """
    spec = partition(x.shape, axes)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def partition(shape: tuple[int, ...], axes: tuple[str, ...]) -> PartitionSpec | None:
    """Where `constrain` puts an array of this shape; None without a mesh."""
    if len(axes) != len(shape) or not LOGICAL_AXES.keys() >= set(axes):
        raise ValueError(
            f"constrain: expected {len(shape)} names for the shape {shape}, each one of "
            f"{', '.join(LOGICAL_AXES)}; got {axes}"
        )
    mesh = jax.sharding.get_abstract_mesh()
    # Inside jax.shard_map the axes that it maps are manual: there is nothing left to ask of the compiler.
    sizes = {axis: size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes}
    if not sizes:
        return None
    return PartitionSpec(
        *(_placement(size, LOGICAL_AXES[name], sizes) for size, name in zip(shape, axes, strict=True))
    )


def partition_heads(
    queries: tuple[int, ...], keys: tuple[int, ...], length: str
) -> tuple[PartitionSpec | None, PartitionSpec | None, int]:
    """Where queries [B, T, H, C], and keys and values [B, S, K, C], go for a kernel that is mapped over the mesh.

    `length` is what S is called. And how often a key head is to be there: H/K times where the query heads divide over
    the mesh and the key heads do not (one key head, say), else once.
    """
    of_queries = partition(queries, ("batch", "length", "heads", "head_dim"))
    of_keys = partition(keys, ("batch", length, "kv_heads", "head_dim"))
    if of_queries is None or of_keys is None or of_queries[2] == of_keys[2]:
        return of_queries, of_keys, 1
    return of_queries, PartitionSpec(*of_keys[:2], *of_queries[2:]), queries[2] // keys[2]


def shards(shape: tuple[int, ...], axes: tuple[str, ...]) -> int:
    """How many devices `constrain` splits an array of this shape over; 1 without a mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return prod(sizes[axis] for axis in split_axes(shape, axes))


def split_axes(shape: tuple[int, ...], axes: tuple[str, ...]) -> tuple[str, ...]:
    """The mesh axes that `constrain` splits an array of this shape over."""
    spec = partition(shape, axes) or ()
    return tuple(axis for placed in spec for axis in ((placed,) if isinstance(placed, str) else placed or ()))


def by_tokens(function: Callable[[Any, Any], tuple[Any, Any]], tokens: Any, others: Any) -> tuple[Any, Any]:
    """`function(tokens, others) -> (of tokens, sums)`, on each device with its own rows and tokens alone.

    `tokens` and what is made of them are pytrees of arrays [B, T, ...]. Of `others` each device has all that is not
    split over a mesh axis of another use, such as tensor. The sums of devices are added once, behind everything. Left
    to itself the compiler would add them in each turn of a loop, and bring together what it cannot split (a sorting).
    """
    own = jax.tree.leaves(tokens)[0].shape[:2], ("batch", "length")
    if shards(*own) == 1:
        return function(tokens, others)
    axes = split_axes(*own)

    def local(tokens: Any, others: Any) -> tuple[Any, Any]:
        found, sums = function(tokens, others)
        return found, jax.lax.psum(sums, axes)

    specs = partition(*own), PartitionSpec()
    mapped = jax.shard_map(local, in_specs=specs, out_specs=specs, axis_names=set(axes), check_vma=False)
    return mapped(tokens, others)


def _placement(size: int, mesh_axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
    present = tuple(axis for axis in mesh_axes if axis in sizes)
    return present if present and size % prod(sizes[axis] for axis in present) == 0 else None
