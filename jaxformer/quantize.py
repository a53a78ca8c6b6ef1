"""Frozen kernels in 8 or 4 bits, for adapters to be trained beside. L layers, G groups of inputs.

Round to nearest multiple of a step that each output channel has for itself (LLM.int8(): Dettmers et al., 2022,
section 2.1), in 4 bits each group of inputs of each output. The step has the sign that makes the farthest weight
the lowest number, of which there is one more than of high ones. The leaf is `nn.linear.Quantized`.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxformer import tree
from jaxformer.nn import linear
from jaxformer.nn.linear import Quantized

BLOCKS = ("{encoder,decoder}/blocks/**/{query,key,value,out,up,gate,down}/kernel",)
"""Every kernel of every block but the router's."""
OUTPUT = "heads/lm/kernel"
GROUP = 32
"""Inputs that share a step in 4 bits."""


def quantize(
    params: Mapping[str, Any],
    patterns: Sequence[str] = BLOCKS,
    bits: Literal[8, 4] = 8,
    group: int | None = None,
) -> dict[str, Any]:
    """The same tree with the kernels that the patterns describe in few bits; all other leaves are handed on.

    `group`: how many neighbouring inputs share a step; None is all of them in 8 bits and GROUP in 4. Kernel by
    kernel: drop the tree that is given, and no more than one kernel is held twice.

    Raises a ValueError that lists every path that is no kernel of `nn.linear`, is quantized already, or does not
    divide.
    """
    chosen = tree.flatten(tree.split(params, patterns)[0])
    group = GROUP if group is None and bits == 4 else group
    wrong = [] if bits in (8, 4) else [f"bits is {bits}: make it 8 or 4"]
    wrong += [line for path, leaf in chosen.items() if (line := _misfit(path, leaf, bits, group))]
    if wrong:
        raise ValueError("these cannot be quantized:\n" + "\n".join(f"  - {line}" for line in sorted(wrong)))
    new = {path: _quantized(leaf, *found, bits, group) for path, leaf in chosen.items() if (found := _axes(path))}
    return tree.unflatten(tree.flatten(params) | new)


def dequantize(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The same tree with every quantized kernel as an array of this dtype; what rounding took stays lost."""
    flat = tree.flatten(params)
    ours = {path: leaf for path, leaf in flat.items() if isinstance(leaf, Quantized)}
    return tree.unflatten(
        flat | {path: _dense(leaf, found[0], dtype) for path, leaf in ours.items() if (found := _axes(path))}
    )


def nbytes(params: Mapping[str, Any]) -> int:
    """Bytes that the leaves of a tree take up."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def _axes(path: str) -> tuple[int, int] | None:
    """How many axes of the leaf are stacked and inputs; None where it cannot be quantized.

    The output matrix cannot: a loss takes it out of the model and differentiates it.
    """
    return None if path == OUTPUT else linear.axes(path)


def _misfit(path: str, leaf: Any, bits: int, group: int | None) -> str | None:
    found = _axes(path)
    if found is None:
        return f"{path}: only kernels of layers are, no embedding, norm or bias, and not {OUTPUT}"
    if isinstance(leaf, Quantized):
        return f"{path} is quantized already"
    sizes = leaf.shape[found[0] : sum(found)]
    if group is not None and (group < 1 or math.prod(sizes) % group):
        return f"{path} has {math.prod(sizes)} inputs, no multiple of group {group}"
    if bits == 4 and sizes[-1] % 2:
        return f"{path} has an odd last axis of inputs, {sizes[-1]}: two of them share a byte"
    return None


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _quantized(kernel: Array, stacked: int, inputs: int, bits: int, group: int | None) -> Quantized:
    return _over(stacked, functools.partial(_one, inputs=inputs, bits=bits, group=group))(kernel)


def _one(kernel: Array, inputs: int, bits: int, group: int | None) -> Quantized:
    """A kernel [*in, *out] that is not stacked."""
    groups = 1 if group is None else math.prod(kernel.shape[:inputs]) // group
    runs = kernel.astype(jnp.float32).reshape(groups, -1, *kernel.shape[inputs:])
    low, high, reach = runs.min(1), runs.max(1), 2 ** (bits - 1)
    farthest = jnp.where(-low > high, low, high)
    scale = jnp.where(farthest == 0, 1.0, farthest / -reach)
    values = jnp.clip(jnp.round(runs / scale[:, None]), -reach, reach - 1).astype(jnp.int8).reshape(kernel.shape)
    if bits == 8:
        return Quantized(values, scale)
    axis = inputs - 1
    first, second = (jax.lax.slice_in_dim(values, start, None, 2, axis) for start in (0, 1))
    return Quantized(first & 15 | second << 4, scale, axis - kernel.ndim)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _dense(kernel: Quantized, stacked: int, dtype: Any) -> Array:
    return _over(stacked, lambda one: one.dense(dtype))(kernel)


def _over(stacked: int, one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`one` over stacked axes, a kernel after the other: what it needs in float32 is there for one of them alone."""
    for _ in range(stacked):
        one = functools.partial(jax.lax.map, one)
    return one
