"""Logical axes of activations: what the model calls a dimension, and the mesh axes that it is split over."""

from math import prod

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "length": (),
    "width": (),
    "head_dim": (),
}


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


def shares(shape: tuple[int, ...], axes: tuple[str, ...]) -> int:
    """Over how many devices `constrain` splits an array of this shape; 1 without a mesh."""
    mesh, spec = jax.sharding.get_abstract_mesh(), partition(shape, axes)
    return 1 if spec is None else prod(shape) // prod(NamedSharding(mesh, spec).shard_shape(shape))


def _placement(size: int, mesh_axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
    present = tuple(axis for axis in mesh_axes if axis in sizes)
    return present if present and size % prod(sizes[axis] for axis in present) == 0 else None
