# N tokens, D width, E experts, K experts a token takes, F inner width, M = N * K
"""Feed-forwards of which each token takes a few. B batch, T length."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from jaxformer.config import ExpertsConfig
from jaxformer.nn.linear import GroupedLinear, Linear
from jaxformer.nn.mlp import ACTIVATIONS


@struct.dataclass
class Aux:
    """What routers add to the loss, float32 scalars; over a stack the sums of its layers."""

    load_balance: Array
    """experts * sum of (share of choices that fell on an expert * its mean probability): 1 where all are even.

    Fedus et al., 2021, equation 4, with the shares of all K choices counted together."""
    router_z: Array
    """Mean square of the router's log-partition (Zoph et al., 2022, equation 5)."""

    @classmethod
    def zero(cls) -> "Aux":
        """Nothing yet."""
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))


class Experts(nn.Module):
    """A router ranks the experts for each token; the best K work on it, weighted (Shazeer et al., 2017).

    No token is dropped: tokens are sorted by expert and each expert multiplies its own run of them.
    """

    config: ExpertsConfig

    @nn.compact
    def __call__(self, x_BTD: Array, real_BT: Array | None = None) -> tuple[Array, Aux]:
        """[B, T, D] -> ([B, T, D], Aux); padding, where `real_BT` is False, does not count in Aux."""
        c, width = self.config, x_BTD.shape[-1]
        x_ND = x_BTD.reshape(-1, width)
        with jax.default_matmul_precision("highest"):  # ranks among near equals hang on the last bits
            logits_NE = Linear((width,), (c.experts,), name="router")(x_ND.astype(jnp.float32))
        probabilities_NE = jax.nn.softmax(logits_NE)
        weights_NK, chosen_NK = jax.lax.top_k(probabilities_NE, c.top_k)
        if c.normalize:
            weights_NK /= jnp.sum(weights_NK, -1, keepdims=True)
        y_NKD = self._worked(x_ND, chosen_NK).astype(jnp.float32) * weights_NK[:, :, None]
        y_BTD = jnp.sum(y_NKD, 1).astype(x_BTD.dtype).reshape(x_BTD.shape)
        return y_BTD, _aux(logits_NE, probabilities_NE, chosen_NK, real_BT)

    def _worked(self, x_ND: Array, chosen_NK: Array) -> Array:
        """What each chosen expert makes of its token, [N, K, D]."""
        c, width = self.config, x_ND.shape[-1]
        order_M = jnp.argsort(chosen_NK.reshape(-1), stable=True)
        counts_E = jnp.bincount(chosen_NK.reshape(-1), length=c.experts).astype(jnp.int32)
        # Both ways a permutation: its gradient is one too, where sums over equal rows would be in no fixed order.
        x_MD = _permuted(jnp.repeat(x_ND, c.top_k, axis=0), order_M)
        y_MD = _Bank(c, name="experts")(x_MD, counts_E)
        return _permuted(y_MD, jnp.argsort(order_M)).reshape(-1, c.top_k, width)


class _Bank(nn.Module):
    """The experts' own parameters."""

    config: ExpertsConfig

    @nn.compact
    def __call__(self, x_MD: Array, counts_E: Array) -> Array:
        c, width = self.config, x_MD.shape[-1]
        if held := self.variables.get("lora"):
            raise ValueError(
                f"the adapter holds {', '.join(sorted(held))} of the experts, which are not adapted: "
                "train it without the paths **/experts/**"
            )
        gate, up = (GroupedLinear(c.experts, width, c.width, name=name) for name in ("gate", "up"))
        h_MF = ACTIVATIONS[c.activation](gate(x_MD, counts_E)) * up(x_MD, counts_E)
        return GroupedLinear(c.experts, c.width, width, name="down")(h_MF, counts_E)


def _permuted(x_MD: Array, order_M: Array) -> Array:
    return x_MD.at[order_M].get(unique_indices=True, mode="promise_in_bounds")


def _aux(logits_NE: Array, probabilities_NE: Array, chosen_NK: Array, real_BT: Array | None) -> Aux:
    experts, choices = logits_NE.shape[1], chosen_NK.shape[1]
    real_N = jnp.ones(len(logits_NE)) if real_BT is None else real_BT.reshape(-1).astype(jnp.float32)
    tokens = jnp.maximum(real_N.sum(), 1)
    taken_NE = jax.nn.one_hot(chosen_NK, experts).sum(1) / choices
    share_E, mean_E = (real_N @ taken_NE) / tokens, (real_N @ probabilities_NE) / tokens
    z_N = jax.nn.logsumexp(logits_NE, axis=-1)
    return Aux(experts * jnp.sum(share_E * mean_E), jnp.sum(real_N * z_N**2) / tokens)
