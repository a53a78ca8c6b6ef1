"""Every product with a parameter. B batch, T length, D width, V vocabulary, R rank of an adapter."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name

PRODUCT = "product"
"""The name under which `jax.checkpoint` policies know the value of a product with a parameter."""


def product(x: Array, kernel: Array, inputs: int) -> Array:
    """Product of x [..., *in] and kernel [*in, *out], over their `inputs` shared axes, in x's dtype.

    Its gradient is written out for the order of the product that gives the kernel's: the inputs come first, as
    they lie. Jax would put the cotangent first, which XLA's CPU compiler then transposes element by element
    together with all that made it, at more than the product's own cost. The price: no forward-mode derivatives.
    """
    return checkpoint_name(_product(x, kernel, inputs), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, kernel: Array, inputs: int) -> Array:
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    return jax.lax.dot_general(x, kernel.astype(x.dtype), (axes, ((), ())))


def _product_forward(x: Array, kernel: Array, inputs: int) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel, inputs), (x, kernel)


def _product_backward(inputs: int, kept: tuple[Array, Array], ct: Array) -> tuple[Array, Array]:
    x, kernel = kept
    rows = tuple(range(x.ndim - inputs))
    axes = tuple(range(len(rows), ct.ndim)), tuple(range(inputs, kernel.ndim))
    d_x = jax.lax.dot_general(ct, kernel.astype(ct.dtype), (axes, ((), ())))
    d_kernel = jax.lax.dot_general(x, ct, ((rows, rows), ((), ())))
    return d_x, d_kernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def adapted(x: Array, adapter: dict[str, Array], inputs: int, outputs: tuple[int, ...]) -> Array:
    """The low-rank term (x @ a) @ b * scale of LoRA (Hu et al., 2021, section 4.1): a [in, R], b [R, out]."""
    flat = x.reshape(*x.shape[: x.ndim - inputs], -1)
    y = product(product(flat, adapter["a"], 1), adapter["b"], 1) * adapter["scale"].astype(x.dtype)
    return y.reshape(*y.shape[:-1], *outputs)


class Linear(nn.Module):
    """A projection of the last axes of x, with a bias where wanted.

    Where the collection "lora" holds this path, the adapter's term is added; without it this is the base.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., *inputs] -> [..., *outputs], in x's dtype."""
        n = len(self.inputs)
        std = math.prod(self.inputs) ** -0.5
        y = product(x, self.param("kernel", nn.initializers.normal(std), (*self.inputs, *self.outputs)), n)
        if self.has_variable("lora", "a"):
            y += adapted(x, self.variables["lora"], n, self.outputs)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, self.outputs)
            y += jnp.broadcast_to(bias.astype(y.dtype), y.shape)
        return y


class GroupedLinear(nn.Module):
    """A projection with a kernel of its own for each group of rows."""

    groups: int
    inputs: int
    outputs: int

    @nn.compact
    def __call__(self, x: Array, sizes: Array) -> Array:
        """[M, in] -> [M, out], in x's dtype; the first sizes[0] rows are of group 0, the next sizes[1] of 1, ..."""
        shape = (self.groups, self.inputs, self.outputs)
        kernel = self.param("kernel", nn.initializers.normal(self.inputs**-0.5), shape)
        return jax.lax.ragged_dot(x, kernel.astype(x.dtype), sizes)


class Embed(nn.Module):
    """One row of a table for each index."""

    rows: int
    width: int

    def setup(self) -> None:
        """Make the table."""
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (self.rows, self.width))

    def __call__(self, index: Array) -> Array:
        """Index [...] int -> [..., D] in the table's dtype; an index outside the table gives NaN."""
        return jnp.take(self.embedding, index, axis=0, mode="fill")


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
        axes = (x.ndim - 1,), (1 if self.tied else 0,)
        logits = jax.lax.dot_general(
            x, self.kernel.astype(x.dtype), (axes, ((), ())), preferred_element_type=jnp.float32
        )
        if self.adapter is not None:
            logits += adapted(x, self.adapter, 1, logits.shape[-1:]).astype(jnp.float32)
        if self.bias is not None:
            logits += jnp.broadcast_to(self.bias.astype(jnp.float32), logits.shape)
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)
