"""The feed-forward sublayer. B batch, T length, D width, F mlp width."""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn
from jax import Array

from jaxformer.config import MlpConfig
from jaxformer.nn.axes import constrain
from jaxformer.nn.linear import Linear
from jaxformer.nn.taps import tap

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jax.numpy.tanh,
}


class Mlp(nn.Module):
    """Widen, activate, narrow; where gated, the activation of one projection multiplies another."""

    config: MlpConfig

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """[B, T, D] -> [B, T, D]."""
        c, width = self.config, x_BTD.shape[-1]
        widen = functools.partial(Linear, (width,), (c.width,), c.bias)
        h_BTF = ACTIVATIONS[c.activation](widen(name="gate" if c.gated else "up")(x_BTD))
        if c.gated:
            h_BTF *= widen(name="up")(x_BTD)
        h_BTF = tap(self, "activations", constrain(h_BTF, ("batch", "length", "mlp")))
        return Linear((c.width,), (width,), c.bias, name="down")(h_BTF)
