# D width, E experts, K experts a token takes, F inner width, M = B * T * K
"""Feed-forwards of which each token takes a few. B batch, T length."""

import functools
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array
from jax.sharding import PartitionSpec

from jaxformer.config import ExpertsConfig
from jaxformer.nn.axes import by_tokens, partition, split_axes
from jaxformer.nn.linear import GroupedKernel, Kernel, Linear, grouped
from jaxformer.nn.mlp import ACTIVATIONS
from jaxformer.nn.taps import tap


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
        with jax.default_matmul_precision("highest"):  # ranks among near equals hang on the last bits
            logits_BTE = Linear((width,), (c.experts,), name="router")(x_BTD.astype(jnp.float32))
        probabilities_BTE = tap(self, "router", jax.nn.softmax(logits_BTE))
        ranked = lambda probabilities, _: (jax.lax.top_k(probabilities, c.top_k), ())
        (weights_BTK, chosen_BTK), _ = by_tokens(ranked, probabilities_BTE, ())
        if c.normalize:
            weights_BTK /= jnp.sum(weights_BTK, -1, keepdims=True)
        y_BTD = _spread(c, (x_BTD, weights_BTK, chosen_BTK), _Bank(c, width, name="experts")())
        return y_BTD.astype(x_BTD.dtype), _aux(logits_BTE, probabilities_BTE, chosen_BTK, real_BT)


class _Bank(nn.Module):
    """The experts' own parameters."""

    config: ExpertsConfig
    width: int

    @nn.compact
    def __call__(self) -> tuple[Kernel, Kernel, Kernel]:
        """The kernels of gate, up and down, an expert each along their first axis."""
        c = self.config
        if held := self.variables.get("lora"):
            raise ValueError(
                f"the adapter holds {', '.join(sorted(held))} of the experts, which are not adapted: "
                "train it without the paths **/experts/**"
            )
        gate, up = (GroupedKernel(c.experts, self.width, c.width, name=name)() for name in ("gate", "up"))
        return gate, up, GroupedKernel(c.experts, c.width, self.width, name="down")()


def _spread(c: ExpertsConfig, routed: tuple[Array, Array, Array], kernels: Any) -> Array:
    """What `_worked` gives, on each device for its own tokens: left to itself the compiler would sort those of all.

    Devices that share the experts out bring each other their tokens, and add up for each what its experts made of
    them: an all-gather there, a reduce-scatter back.
    """
    axes = split_axes(routed[0].shape[:2], ("batch", "length"))
    sizes = jax.sharding.get_abstract_mesh().shape
    parts = sizes.get("expert", 1)
    if prod(sizes.values()) == 1 or not (axes or parts > 1):
        return _worked(c, routed, kernels, 0)
    if c.experts % parts:
        parts = 1

    def local(routed: tuple[Array, Array, Array], kernels: Any) -> Array:
        if parts == 1:
            return _worked(c, routed, kernels, 0)
        if "expert" in axes:
            routed = jax.tree.map(lambda x: jax.lax.all_gather(x, "expert", tiled=True), routed)
        y_BTD = _worked(c, routed, kernels, jax.lax.axis_index("expert") * (c.experts // parts))
        add = functools.partial(jax.lax.psum_scatter, tiled=True) if "expert" in axes else jax.lax.psum
        return add(y_BTD, "expert")

    own = partition(routed[0].shape[:2], ("batch", "length"))
    of_kernels = PartitionSpec("expert" if parts > 1 else None)
    manual = {*axes, *(("expert",) if parts > 1 else ())}
    mapped = jax.shard_map(local, in_specs=(own, of_kernels), out_specs=own, axis_names=manual, check_vma=False)
    return mapped(routed, kernels)


def _worked(c: ExpertsConfig, routed: tuple[Array, Array, Array], kernels: Any, first: Array | int) -> Array:
    """The weighted sum of what a token's experts make of it, float32 [B, T, D]; `kernels` are those of the `first`
    expert and some behind it, and the others give nothing. `routed`: x [B, T, D], weights and choices [B, T, K].
    """
    (x_BTD, weights_BTK, chosen_BTK), (gate, up, down) = routed, kernels
    here_M = (chosen_BTK.reshape(-1) - first) % c.experts
    order_M = jnp.argsort(here_M, stable=True)
    counts_E = jnp.bincount(here_M, length=c.experts).astype(jnp.int32)[: gate.shape[0]]
    # What a product makes of rows behind its groups is not laid down: nothing of it gets out, nor into a gradient.
    ours = lambda x_MD: x_MD if gate.shape[0] == c.experts else jnp.where(here_M[:, None] < gate.shape[0], x_MD, 0)
    # Both ways a permutation: its gradient is one too, where sums over equal rows would be in no fixed order.
    x_MD = _permuted(ours(jnp.repeat(x_BTD.reshape(-1, x_BTD.shape[-1]), c.top_k, axis=0)), order_M)
    h_MF = ACTIVATIONS[c.activation](grouped(x_MD, gate, counts_E)) * grouped(x_MD, up, counts_E)
    y_MD = ours(_permuted(grouped(h_MF, down, counts_E), jnp.argsort(order_M)).astype(jnp.float32))
    return jnp.sum(y_MD.reshape(*chosen_BTK.shape, -1) * weights_BTK[..., None], axis=2)


def _permuted(x_MD: Array, order_M: Array) -> Array:
    return x_MD.at[order_M].get(unique_indices=True, mode="promise_in_bounds")


def _aux(logits_BTE: Array, probabilities_BTE: Array, chosen_BTK: Array, real_BT: Array | None) -> Aux:
    experts, choices = logits_BTE.shape[-1], chosen_BTK.shape[-1]
    real_BT = jnp.ones(logits_BTE.shape[:2]) if real_BT is None else real_BT.astype(jnp.float32)
    tokens = jnp.maximum(real_BT.sum(), 1)
    taken_BTE = jax.nn.one_hot(chosen_BTK, experts).sum(2) / choices
    share_E, mean_E = (jnp.einsum("BT,BTE->E", real_BT, x) / tokens for x in (taken_BTE, probabilities_BTE))
    z_BT = jax.nn.logsumexp(logits_BTE, axis=-1)
    return Aux(experts * jnp.sum(share_E * mean_E), jnp.sum(real_BT * z_BT**2) / tokens)
