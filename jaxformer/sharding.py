"""Where arrays live: the mesh, and one table of rules from parameter paths to its axes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer import tree
from jaxformer.nn.linear import Quantized, axes
from jaxformer.nn.model import Model

AXES = ("data", "fsdp", "expert", "sequence", "tensor")
"""The mesh axes, outermost first: the last are neighbours, and what is split over them talks most, in every layer."""
BATCH = ("data", "expert", "fsdp")
"""The mesh axes that a batch's rows are split over, in the order of nn.axes."""
SMALL = 2**20
"""Bytes below which a leaf that fits no placement is simply replicated."""

Axis = str | tuple[str, ...] | None
Placement = tuple[Axis, ...]

BOTH = ("fsdp", "tensor")
RULES: tree.Rules[tuple[Placement, ...]] = (
    ("embed/embedding", (("tensor", "fsdp"), (None, BOTH), (None, "fsdp"))),
    ("{encoder,decoder}/{position,segment,relative}/embedding", ((None, "fsdp"),)),
    ("{encoder,decoder}/input_projection/kernel", ((None, BOTH), (None, "fsdp"))),
    ("**/{query,key,value}/kernel", (("fsdp", "tensor", None), (BOTH, None, None), ("fsdp", None, None))),
    ("**/out/kernel", (("tensor", None, "fsdp"), (None, None, BOTH), (None, None, "fsdp"))),
    ("**/mlp/{up,gate}/kernel", (("fsdp", "tensor"), (BOTH, None), ("fsdp", None))),
    ("**/mlp/down/kernel", (("tensor", "fsdp"), (None, BOTH), (None, "fsdp"))),
    ("**/router/kernel", (("fsdp", None),)),
    ("**/experts/{up,gate}/kernel", (("expert", "fsdp", "tensor"), ("expert", "fsdp", None))),
    ("**/experts/down/kernel", (("expert", "tensor", "fsdp"), ("expert", None, "fsdp"))),
    ("heads/lm/kernel", (("fsdp", "tensor"), (BOTH, None), ("fsdp", None))),
    ("heads/lm/transform/kernel", (("fsdp", "tensor"), (BOTH, None), ("fsdp", None))),
    ("heads/pooler/kernel", (("fsdp", "tensor"), (BOTH, None), ("fsdp", None))),
    ("heads/*/dense/kernel", (("fsdp", "tensor"), (BOTH, None), ("fsdp", None))),
    ("heads/*/output/kernel", (("fsdp", None),)),
    ("**/{bias,scale}", ((),)),
    ("lora/**/{a,b}", ((),)),
)
"""(path pattern, placements in the order they are tried). A placement names a mesh axis for each of a leaf's last
dimensions; the leading axis of layers is never split."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices by use; one size may be -1, which takes all that the others leave."""

    data: int = -1
    """Copies of the model, each fed other rows."""
    fsdp: int = 1
    """Devices over which parameters and optimizer state, and rows too, are split."""
    tensor: int = 1
    """Devices over which heads and the feed-forward width are split."""
    sequence: int = 1
    """Devices over which the tokens of a row are split: each attends with its own to the keys of all."""
    expert: int = 1
    """Devices over which the experts of a mixture, and rows too, are split."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices, or over those given. Raises ValueError where the sizes don't multiply to them."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    free = [i for i, size in enumerate(sizes) if size == -1]
    fixed = math.prod(size for size in sizes if size != -1)
    if len(free) == 1 and fixed > 0 and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes) != len(devices) or min(sizes) < 1:
        raise ValueError(
            f"mesh {', '.join(f'{axis} {getattr(config, axis)}' for axis in AXES)} doesn't fit {len(devices)} "
            "devices: the sizes must multiply to that number, and at most one may be -1"
        )
    # jax.make_mesh splits no physical axis of a torus but v5e's: 64 x 4 on a v6e of 16 x 16 would be refused
    placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def specs(mesh: Mesh, shapes: Mapping[str, Any], rules: tree.Rules[tuple[Placement, ...]] = RULES) -> dict[str, Any]:
    """{path: PartitionSpec} by the first placement of the path's rule whose dimensions divide.

    A quantized kernel has a `Quantized` of two of them: its values lie as the kernel would, its steps beside them.

    `shapes` is the tree of parameters, or of their ShapeDtypeStructs. Raises a ValueError that names each leaf of
    1 MB or more which no placement fits.
    """
    flat, found, wrong = tree.flatten(shapes), dict[str, Any](), []
    for path, placements in tree.match(rules, flat, "sharding").items():
        leaf = flat[path]
        held = leaf.values if isinstance(leaf, Quantized) else leaf
        fitting = next((p for p in placements if _fits(mesh, held.shape, p)), None)
        if fitting is None and held.size * held.dtype.itemsize >= SMALL:
            wrong.append(f"{path} {leaf.shape}: tried {', '.join(map(str, placements))}")
        fitting = fitting or ()
        spec = P(*(None,) * (held.ndim - len(fitting)), *fitting)
        found[path] = _of_quantized(mesh, path, leaf, spec) if isinstance(leaf, Quantized) else spec
    if wrong:
        raise ValueError(f"no placement divides over the mesh {dict(mesh.shape)}:\n" + "\n".join(wrong))
    return found


def fallbacks(mesh: Mesh, shapes: Mapping[str, Any], rules: tree.Rules[tuple[Placement, ...]] = RULES) -> list[str]:
    """A line for each leaf that does not divide as its rule would have it first: what was taken in its place."""
    flat, found = tree.flatten(shapes), []
    placed = specs(mesh, shapes, rules)
    for path, placements in tree.match(rules, flat, "sharding").items():
        shape, wanted = flat[path].shape, placements[0]
        if not _fits(mesh, shape, wanted):
            taken = " x ".join(map(str, placed[path])) if any(placed[path]) else "replicated"
            found.append(f"{path} {shape}: {' x '.join(map(str, wanted))} does not divide; {taken}")
    return found


def shardings(mesh: Mesh, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of NamedShardings of a tree of parameters."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), tree.unflatten(specs(mesh, shapes)))


def like_parameters(mesh: Mesh, shapes: Any, params: Mapping[str, Any]) -> Any:
    """Shardings for any tree that holds trees of the parameters' form, such as a train state.

    A leaf whose path ends with a parameter's path, and which has its shape, goes where the parameter goes; all
    others (counters) are replicated.
    """
    homes = specs(mesh, params)
    known = {path: leaf.shape for path, leaf in tree.flatten(params).items()}

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in keys]
        ends = ("/".join(names[i:]) for i in range(len(names)))
        path = next((end for end in ends if known.get(end) == leaf.shape), None)
        return NamedSharding(mesh, P() if path is None else homes[path])

    return jax.tree_util.tree_map_with_path(place, shapes)


def init(
    model: Model, key: Array, dtype: Any = None, mesh: Mesh | None = None, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """Parameters from scratch, each made on the devices that keep it.

    `dtype` is the stored dtype (None: float32). `only`: the paths to make, of all. Equal keys give equal numbers
    on any mesh.
    """

    def draw(key: Array) -> dict[str, Any]:
        drawn = _draw(model, key, dtype)
        return drawn if only is None else tree.split(drawn, only)[0]

    if mesh is None:
        return jax.jit(draw)(key)
    with jax.set_mesh(mesh):
        return jax.jit(draw, out_shardings=shardings(mesh, jax.eval_shape(draw, key)))(key)


def abstract_params(model: Model, dtype: Any = None) -> dict[str, Any]:
    """The tree of the parameters' shapes and dtypes; nothing is allocated."""
    return jax.eval_shape(lambda key: _draw(model, key, dtype), jax.random.key(0))


def _draw(model: Model, key: Array, dtype: Any) -> dict[str, Any]:
    tokens = jnp.zeros((1, 1), jnp.int32)
    both = model.config.encoder is not None and model.config.decoder is not None
    drawn = model.clone(kernel="auto")  # one that is asked for by name may have no use for a single token
    params = drawn.init(key, tokens, tokens if both else None)["params"]
    return params if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """A batch of numpy arrays as global arrays, rows split over the mesh; each device is handed its own rows."""
    sharding = NamedSharding(mesh, P(BATCH))
    return {
        name: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__) for name, rows in batch.items()
    }


def local_rows(mesh: Mesh, rows: int) -> list[slice]:
    """Which of a batch's rows the devices of this process hold, each stretch once."""
    held = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map((rows,)).values()
    return [slice(*bounds) for bounds in sorted({index[0].indices(rows)[:2] for index in held if index})]


def place_rows(parts: Sequence[Mapping[str, np.ndarray]], rows: int, mesh: Mesh) -> dict[str, Array]:
    """A batch of so many rows as global arrays, of which this process has made its `local_rows` alone."""
    sharding, starts = NamedSharding(mesh, P(BATCH)), [part.start for part in local_rows(mesh, rows)]

    def array(name: str) -> Array:
        def values(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return parts[starts.index(index[0].indices(rows)[0])][name][:, *index[1:]]

        return jax.make_array_from_callback((rows, *parts[0][name].shape[1:]), sharding, values)

    return {name: array(name) for name in parts[0]}


def _of_quantized(mesh: Mesh, path: str, leaf: Quantized, spec: P) -> Quantized:
    """Where its parts lie, of a kernel that would lie so: a step lies with the weights that it is the step of.

    Runs of inputs are split as the first axis of inputs is, if that is the only one that is, and they divide.
    """
    stacked, inputs = axes(path) or (0, 1)
    first, *others = spec[stacked : stacked + inputs]
    runs = first if not any(others) and leaf.scale.shape[stacked] % _size(mesh, first) == 0 else None
    scale = P(*spec[:stacked], runs, *spec[stacked + inputs :])
    return Quantized(spec, scale, leaf.packed)  # type: ignore[arg-type]


def _fits(mesh: Mesh, shape: tuple[int, ...], placement: Placement) -> bool:
    sizes = shape[len(shape) - len(placement) :]
    return all(size % _size(mesh, axis) == 0 for size, axis in zip(sizes, placement, strict=True))


def _size(mesh: Mesh, axis: Axis) -> int:
    names = () if axis is None else (axis,) if isinstance(axis, str) else axis
    return math.prod(mesh.shape[name] for name in names)
