"""Every product with a parameter. B batch, T length, D width, V vocabulary, R rank of an adapter."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxformer import tree
from jaxformer.nn.axes import constrain

FEW = 64
"""Rows of x up to which a turned kernel comes first in the product."""
PRODUCT = "product"
"""The name under which `jax.checkpoint` policies know the value of a product with a parameter."""
KERNELS: tree.Rules[tuple[int, int]] = (
    ("{encoder,decoder}/blocks/{attention,cross}/{query,key,value}/kernel", (1, 1)),
    ("{encoder,decoder}/blocks/{attention,cross}/out/kernel", (1, 2)),
    ("{encoder,decoder}/blocks/mlp/{up,gate,down,router}/kernel", (1, 1)),
    ("{encoder,decoder}/blocks/mlp/experts/{up,gate,down}/kernel", (2, 1)),
    ("{encoder,decoder}/input_projection/kernel", (0, 1)),
    ("heads/**/kernel", (0, 1)),
)
"""(path pattern, (stacked axes: layers, then experts; axes of inputs behind them)) of every kernel."""


def axes(path: str) -> tuple[int, int] | None:
    """How many axes of the kernel at this path are stacked, and how many behind them inputs; None for no kernel."""
    return next((found for pattern, found in KERNELS if tree.matches(pattern, path)), None)


@struct.dataclass
class Quantized:
    """A frozen kernel in few bits, in the place of its array: whole numbers, and what one of them is worth.

    The weights are made in the product, in x's dtype, and nowhere else; gradients flow through x alone.
    """

    values: Array
    """int8 [*in, *out]."""
    scale: Array
    """float32 [G, *out]: a factor for each output of each of G runs of neighbours among the flattened inputs."""
    packed: int | None = struct.field(pytree_node=False, default=None)
    """The axis of `values`, counted from the end, along which each byte holds two neighbours of 4 bits, the first
    in its low ones. Arrays of jax's int4 would do, but XLA's CPU compiler unpacks a whole stack of them at once."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's."""
        sizes = list(self.values.shape)
        if self.packed is not None:
            sizes[self.packed] *= 2
        return tuple(sizes)

    def dense(self, dtype: Any) -> Array:
        """The kernel; stacks of kernels want a `jax.vmap` for each stacked axis."""
        values = self.values
        if self.packed is not None:
            # Shifts of signed numbers carry the sign along. To put two arrays side by side takes many times as long.
            axis = values.ndim + self.packed + 1
            values = jnp.expand_dims(values, axis)
            shifts = 4 - 4 * jax.lax.broadcasted_iota(
                jnp.int8, (*values.shape[:axis], 2, *values.shape[axis + 1 :]), axis
            )
            values = values << shifts >> 4
        groups, *out = self.scale.shape
        runs = values.astype(jnp.float32).reshape(groups, -1, *out) * self.scale[:, None]
        return runs.reshape(self.shape).astype(dtype)


@struct.dataclass
class Turned:
    """A kernel with its outputs first, in the place of its array: for decoding a few rows on a CPU.

    There a product of few rows runs as the library multiplies a large matrix by a small one, and reads the large
    one best along its inputs. Nothing is differentiated by it.
    """

    values: Array
    """[*out, *in]."""

    def applied(self, x: Array, inputs: int) -> Array:
        """From x [..., *in] to [..., *out], in x's dtype."""
        values, rows, outputs = self.values.astype(x.dtype), x.ndim - inputs, self.values.ndim - inputs
        shared = tuple(range(outputs, values.ndim)), tuple(range(rows, x.ndim))
        if math.prod(x.shape[:rows]) > FEW:
            return jax.lax.dot_general(x, values, (shared[::-1], ((), ())))
        # Without the barrier XLA would put x first again, so as to have no transpose behind the product.
        y = jax.lax.optimization_barrier(jax.lax.dot_general(values, x, (shared, ((), ()))))
        return jnp.transpose(y, (*range(outputs, y.ndim), *range(outputs)))


Kernel = Array | Quantized | Turned


def product(x: Array, kernel: Kernel, inputs: int) -> Array:
    """Product of x [..., *in] and kernel [*in, *out], over their `inputs` shared axes, in x's dtype.

    Its gradient is written out for the order of the product that gives the kernel's: the inputs come first, as
    they lie. Jax would put the cotangent first, which XLA's CPU compiler then transposes element by element
    together with all that made it, at more than the product's own cost. The price: no forward-mode derivatives.
    """
    if isinstance(kernel, Turned):
        return kernel.applied(x, inputs)
    return checkpoint_name(_product(x, kernel, inputs), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, kernel: Array | Quantized, inputs: int) -> Array:
    shared = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    return jax.lax.dot_general(x, _dense(kernel, x.dtype), (shared, ((), ())))


def _product_forward(
    x: Array, kernel: Array | Quantized, inputs: int
) -> tuple[Array, tuple[Array, Array | Quantized]]:
    return _product(x, kernel, inputs), (x, kernel)


def _product_backward(inputs: int, kept: tuple[Array, Array | Quantized], ct: Array) -> tuple[Array, Array | None]:
    x, kernel = kept
    rows = tuple(range(x.ndim - inputs))
    shared = tuple(range(len(rows), ct.ndim)), tuple(range(inputs, len(kernel.shape)))
    d_x = jax.lax.dot_general(ct, _dense(kernel, ct.dtype), (shared, ((), ())))
    if isinstance(kernel, Quantized):
        return d_x, None
    d_kernel = jax.lax.dot_general(x, ct, ((rows, rows), ((), ())))
    return d_x, d_kernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def _dense(kernel: Array | Quantized, dtype: Any) -> Array:
    return kernel.dense(dtype) if isinstance(kernel, Quantized) else kernel.astype(dtype)


def adapted(x: Array, adapter: dict[str, Array], inputs: int, outputs: tuple[int, ...]) -> Array:
    """The low-rank term (x @ a) @ b * scale of LoRA (Hu et al., 2021, section 4.1): a [in, R], b [R, out]."""
    flat = x.reshape(*x.shape[: x.ndim - inputs], -1)
    y = product(product(flat, adapter["a"], 1), adapter["b"], 1) * adapter["scale"].astype(x.dtype)
    return y.reshape(*y.shape[:-1], *outputs)


class Linear(nn.Module):
    """A projection of the last axes of x, with a bias where wanted.

    Where the collection "lora" holds this path, the adapter's term is added; without it this is the base. Where
    the adapter holds a rate "dropout", the term sees an x of which that share is dropped, as long as others drop.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bias: bool = False
    gain: float = 1.0
    """What the kernel, as it is drawn, does to the size of a vector."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., *inputs] -> [..., *outputs], in x's dtype."""
        n, std = len(self.inputs), self.gain * math.prod(self.inputs) ** -0.5
        y = product(x, _kernel(self, std, (*self.inputs, *self.outputs)), n)
        if self.has_variable("lora", "a"):
            adapter = self.variables["lora"]
            if "dropout" in adapter and self.has_rng("dropout"):
                x = _dropped(x, adapter["dropout"], self.make_rng("dropout"))
            y += adapted(x, adapter, n, self.outputs)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, self.outputs)
            y += jnp.broadcast_to(bias.astype(y.dtype), y.shape)
        return y


def _dropped(x: Array, rate: Array, key: Array) -> Array:
    kept = 1 - rate
    return jnp.where(jax.random.bernoulli(key, kept, x.shape), x / kept.astype(x.dtype), 0)


def _kernel(module: nn.Module, std: float, shape: tuple[int, ...]) -> Kernel:
    """The module's kernel; flax would compare what stands in its place with its shape."""
    held: Any = module.get_variable("params", "kernel")
    if isinstance(held, Quantized | Turned):
        return held
    return module.param("kernel", nn.initializers.normal(std), shape)


class GroupedKernel(nn.Module):
    """A kernel for each of some groups of rows, which `grouped` multiplies by theirs."""

    groups: int
    inputs: int
    outputs: int

    @nn.compact
    def __call__(self) -> Kernel:
        """[groups, in, out]."""
        return _kernel(self, self.inputs**-0.5, (self.groups, self.inputs, self.outputs))


def grouped(x: Array, kernel: Kernel, sizes: Array) -> Array:
    """[M, in] -> [M, out], in x's dtype; the first sizes[0] rows are of group 0, the next sizes[1] of 1, ...
    What stands for rows behind the last group is not laid down.
    """
    assert not isinstance(kernel, Turned)
    if isinstance(kernel, Quantized):
        return _grouped(x, kernel, sizes)
    return jax.lax.ragged_dot(x, kernel.astype(x.dtype), sizes)


@jax.custom_vjp
def _grouped(x: Array, kernel: Quantized, sizes: Array) -> Array:
    """The products of `grouped` with quantized kernels, of which none is kept for the gradient."""
    return jax.lax.ragged_dot(x, jax.vmap(lambda one: one.dense(x.dtype))(kernel), sizes)


def _grouped_forward(x: Array, kernel: Quantized, sizes: Array) -> tuple[Array, tuple[Quantized, Array]]:
    return _grouped(x, kernel, sizes), (kernel, sizes)


def _grouped_backward(kept: tuple[Quantized, Array], ct: Array) -> tuple[Array, None, None]:
    kernel, sizes = kept
    turned = jax.vmap(lambda one: one.dense(ct.dtype).T)(kernel)
    return jax.lax.ragged_dot(ct, turned, sizes), None, None


_grouped.defvjp(_grouped_forward, _grouped_backward)


class Embed(nn.Module):
    """One row of a table for each index."""

    rows: int
    width: int

    def setup(self) -> None:
        """Make the table."""
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (self.rows, self.width))

    def __call__(self, index_BT: Array, dtype: Any) -> Array:
        """Index int [B, T] -> [B, T, D]; an index outside the table gives NaN.

        Over a mesh a device looks up its part of the width for the rows of all that have the other parts; then parts
        are exchanged for rows. Left to itself the compiler brings together the table, or what all looked up.
        """
        for rows in ("batch", "rows_by_table"):
            index_BT = constrain(index_BT, (rows, "length"))
        x_BTD = jnp.take(self.embedding, index_BT, axis=0, mode="fill").astype(dtype)
        x_BTD = constrain(x_BTD, ("rows_by_table", "length", "table_width"))
        return constrain(x_BTD, ("batch", "length", "width"))


@struct.dataclass
class Unembed:
    """The arrays that turn hidden vectors into logits, as a value: losses differentiate it without a model.

    A head with a transform wants it applied before (`Model.transform`).
    """

    kernel: Array
    """[D, V]; [V, D] where tied to the embedding."""
    tied: bool = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False, default=1.0)
    softcap: float | None = struct.field(pytree_node=False, default=None)
    adapter: dict[str, Array] | None = None
    bias: Array | None = None
    """[V]"""

    def __call__(self, hidden: Array) -> Array:
        """[..., D] -> float32 logits [..., V]; the product itself is in the dtype of `hidden`."""
        x = hidden if self.scale == 1.0 else hidden * self.scale
        shared = (x.ndim - 1,), (1 if self.tied else 0,)
        logits = jax.lax.dot_general(
            x, self.kernel.astype(x.dtype), (shared, ((), ())), preferred_element_type=jnp.float32
        )
        if self.adapter is not None:
            logits += adapted(x, self.adapter, 1, logits.shape[-1:]).astype(jnp.float32)
        if self.bias is not None:
            logits += jnp.broadcast_to(self.bias.astype(jnp.float32), logits.shape)
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)
