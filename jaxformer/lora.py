"""Adapters: low-rank terms beside chosen kernels (LoRA: Hu et al., 2021, arXiv:2106.09685). L layers, R rank.

An adapter is the tree of the collection "lora" (nn/linear.py): under the path of each module a [L, in, R],
b [L, R, out] and scale [L], all float32, L only where the kernel is stacked.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxformer import tree
from jaxformer.nn import linear
from jaxformer.nn.linear import Quantized

ATTENTION = ("**/attention/{query,key,value,out}/kernel",)
ALL_LINEAR = ("**/blocks/{attention,cross,mlp}/{query,key,value,out,up,gate,down}/kernel",)
"""Every kernel of every block but those of experts."""
FACTORS = ("**/{a,b}",)
OUTPUT = "heads/lm"
"""The one product that a loss takes out of the model, and so without dropout."""


@dataclass(frozen=True)
class LoraConfig:
    """Which kernels get an adapter, and of what size."""

    rank: int = 8
    """Columns of a and rows of b."""
    alpha: float = 16.0
    """The term is multiplied by alpha / rank. For the scale of Kalajdzievski, 2023, give what is wanted times
    the root of the rank."""
    targets: tuple[str, ...] = ATTENTION
    """Path patterns of kernels."""
    dropout: float = 0.0
    """Share of the term's input that is dropped in training; the output matrix's is not."""


def problems(config: LoraConfig, params: Mapping[str, Any]) -> list[str]:
    """Every reason why these parameters (or their shapes) cannot have such an adapter."""
    paths = tree.flatten(params)
    chosen = {pattern: [path for path in paths if tree.matches(pattern, path)] for pattern in config.targets}
    idle = [
        f"targets: no parameter's path matches {pattern}; there are kernels {', '.join(filter(_axes, paths))}"
        for pattern, found in chosen.items()
        if not found
    ]
    unfit = [
        f"targets: {path} has no adapter: only kernels have one, and not those of experts"
        for path in sorted({path for found in chosen.values() for path in found})
        if _axes(path) is None
    ]
    bounds = [
        ("rank", config.rank >= 1, "at least 1"),
        ("alpha", config.alpha > 0, "above 0"),
        ("targets", len(config.targets) > 0, "a path pattern at least"),
        ("dropout", 0 <= config.dropout < 1, "at least 0 and below 1"),
    ]
    outside = [f"{name} is {getattr(config, name)}: make it {want}" for name, good, want in bounds if not good]
    return outside + idle + unfit


def init(config: LoraConfig, params: Mapping[str, Any], key: Array) -> dict[str, Any]:
    """A new adapter for these parameters (or their shapes), which changes nothing yet.

    b is 0 and a is drawn evenly from within in ** -0.5, as in the authors' program. What a path draws depends on
    nothing but the key and the path. Raises a ValueError that lists all that `problems` finds.
    """
    if found := problems(config, params):
        raise ValueError("no such adapter can be made:\n" + "\n".join(f"  - {line}" for line in found))
    adapter: dict[str, Any] = {}
    for path, kernel in tree.flatten(params).items():
        if not any(tree.matches(pattern, path) for pattern in config.targets):
            continue
        layers, inputs, outputs = sizes(path, kernel.shape)
        bound, own = inputs**-0.5, jax.random.fold_in(key, zlib.crc32(path.encode()))
        module = path.removesuffix("/kernel")
        adapter[f"{module}/a"] = jax.random.uniform(own, (*layers, inputs, config.rank), jnp.float32, -bound, bound)
        adapter[f"{module}/b"] = jnp.zeros((*layers, config.rank, outputs))
        adapter[f"{module}/scale"] = jnp.full(layers, config.alpha / config.rank)
        if config.dropout and module != OUTPUT:
            adapter[f"{module}/dropout"] = jnp.full(layers, config.dropout)
    return tree.unflatten(adapter)


def sizes(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """(the stacked axes, all inputs, all outputs) of a kernel at this path that may have an adapter."""
    found = _axes(path)
    assert found is not None, path
    stacked, inputs = found
    border = stacked + inputs
    return shape[:stacked], math.prod(shape[stacked:border]), math.prod(shape[border:])


def _axes(path: str) -> tuple[int, int] | None:
    """How many axes of the leaf are stacked and inputs; None where it can have no adapter."""
    found = linear.axes(path)
    return found if found is not None and found[0] < 2 else None


def count(adapter: Mapping[str, Any]) -> int:
    """How many numbers are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(split_scale(adapter)[0]))


def split_scale(adapter: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(a and b, which are trained; the scale, and the rate of dropout, which are not)."""
    return tree.split(adapter, FACTORS)


def join_scale(trained: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter that `split_scale` took apart."""
    return tree.merge(trained, fixed)


def merge(params: Mapping[str, Any], adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that alone do what these do with the adapter, in their stored dtype; each sum is rounded once.

    Raises a ValueError that lists the paths whose kernel is missing, does not fit, or is quantized.
    """
    flat, factors = tree.flatten(params), tree.flatten(adapter)
    modules = [path.removesuffix("/a") for path in factors if path.endswith("/a")]
    ones = {f"{module}/kernel": [factors[f"{module}/{name}"] for name in ("a", "b", "scale")] for module in modules}
    wrong = [line for path, one in ones.items() if (line := _misfit(path, flat.get(path), one))]
    if wrong:
        raise ValueError("the adapter cannot be merged:\n" + "\n".join(f"  - {line}" for line in sorted(wrong)))
    return tree.unflatten(flat | {path: _merged(flat[path], *one) for path, one in ones.items()})


@jax.jit
def _merged(kernel: Array, a: Array, b: Array, scale: Array) -> Array:
    change = jnp.matmul(a, b, precision="highest") * scale[..., None, None]
    return (kernel.astype(jnp.float32) + change.reshape(kernel.shape)).astype(kernel.dtype)


def _misfit(path: str, kernel: Any, one: list[Any]) -> str | None:
    if kernel is None:
        return f"{path}: no such parameter"
    if isinstance(kernel, Quantized):
        return f"{path} is quantized: merge into the kernels that it was made of, or dequantize it before"
    layers, inputs, outputs = sizes(path, kernel.shape)
    a, b = one[0].shape, one[1].shape
    if (*a[:-1], *b[:-2], b[-1]) != (*layers, inputs, *layers, outputs):
        wanted = f"a {(*layers, inputs, 'R')} and b {(*layers, 'R', outputs)}"
        return f"{path} {kernel.shape}: expected {wanted}, got {a} and {b}"
    return None
