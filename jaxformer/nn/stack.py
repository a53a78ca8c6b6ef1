"""A stack of blocks, its input and its final norm. L layers, B batch, T length, D width."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxformer import tree
from jaxformer.config import LearnedConfig, SinusoidConfig, StackConfig
from jaxformer.nn.attention import View
from jaxformer.nn.axes import constrain
from jaxformer.nn.block import Block, Memory
from jaxformer.nn.linear import PRODUCT, Embed
from jaxformer.nn.norm import Norm
from jaxformer.nn.positions import rotation, sinusoid

Remat = Literal["none", "dots", "full"]
POLICIES = {"dots": jax.checkpoint_policies.save_only_these_names(PRODUCT), "full": None}
RESIDUAL_OUTPUTS = ("**/{out,down}/kernel",)


class Stack(nn.Module):
    """L blocks whose parameters are one leaf each, the layer axis first.

    The layout of the parameters says how they run: a dict of stacked leaves is scanned, a list of one dict a
    layer is looped over. Both give the same numbers to within rounding.
    """

    config: StackConfig
    width: int
    remat: Remat = "none"
    unroll: int = 1
    kernel: str = "auto"

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        positions_BT: Array,
        view: View,
        cross_view: View | None = None,
        memory: Memory = Memory(),
        deterministic: bool = True,
    ) -> tuple[Array, Memory]:
        """Return ([B, T, D], the caches with the new keys and values)."""
        c = self.config
        x_BTD = self._input(x_BTD, positions_BT, deterministic)
        if self.is_initializing():
            self.param(
                "blocks",
                functools.partial(self._init_blocks, x_BTD[:, :1], positions_BT[:, :1], view, cross_view),
            )
        blocks = {name: held["blocks"] for name, held in self.variables.items() if "blocks" in held}
        key = None if deterministic else self.make_rng("dropout")
        layer = functools.partial(self._layer, views=self._views(positions_BT, view), cross_view=cross_view, key=key)
        run = _loop if isinstance(blocks["params"], list) else functools.partial(_scan, unroll=self.unroll)
        x_BTD, memory = run(_remat(layer, self.remat), blocks, x_BTD, memory, len(c.pattern), c.layers)
        return (x_BTD if c.final_norm is None else Norm(c.final_norm, name="norm")(x_BTD)), memory

    def _input(self, x_BTD: Array, positions_BT: Array, deterministic: bool) -> Array:
        c = self.config.input
        if isinstance(c.positions, LearnedConfig):
            table = Embed(c.positions.length + c.positions.offset, self.width, name="position")
            x_BTD += table(positions_BT + c.positions.offset).astype(x_BTD.dtype)
        elif isinstance(c.positions, SinusoidConfig):
            x_BTD += sinusoid(positions_BT, self.width, c.positions).astype(x_BTD.dtype)
        if c.norm is not None:
            x_BTD = Norm(c.norm, name="input_norm")(x_BTD)
        x_BTD = nn.Dropout(c.dropout, deterministic=deterministic)(x_BTD)
        return constrain(x_BTD, ("batch", "length", "width"))

    def _views(self, positions_BT: Array, view: View) -> list[View]:
        """The view of each block of the pattern: its own window and rotation, computed once for all layers."""
        turns = {
            (a.rope, a.head_dim): rotation(positions_BT, a.head_dim, a.rope)
            for a in (block.attention for block in self.config.pattern)
            if a.rope is not None
        }
        return [
            dataclasses.replace(
                view,
                visibility=dataclasses.replace(view.visibility, window=block.attention.window),
                rotation=turns.get((block.attention.rope, block.attention.head_dim)),
                kernel=self.kernel,
            )
            for block in self.config.pattern
        ]

    def _layer(
        self,
        variables: dict[str, Any],
        x_BTD: Array,
        memory: Memory,
        slot: Array | None,
        index: Array | int,
        place: int,
        *,
        views: list[View],
        cross_view: View | None,
        key: Array | None,
    ) -> tuple[Array, Memory]:
        """Block `index`, the pattern's `place`-th; `slot` is its layer in a stacked cache."""
        block = Block(self.config.pattern[place], deterministic=key is None, parent=None)
        rngs = None if key is None else {"dropout": jax.random.fold_in(key, index)}
        return block.apply(variables, x_BTD, views[place], cross_view, memory, slot, rngs=rngs)  # type: ignore[return-value]

    def _init_blocks(self, x_BTD: Array, positions_BT: Array, view: View, cross_view: View | None, key: Array) -> Any:
        """L independent draws of the block; what writes to the residual stream is scaled by (2L) ** -0.5.

        The scaling is that of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), 2.3.
        """
        c = self.config
        block, views = Block(c.pattern[0], parent=None), self._views(positions_BT, view)
        one = lambda key: block.init(key, x_BTD, views[0], cross_view, Memory(), None)["params"]
        drawn = jax.vmap(one)(jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(c.layers)))
        outputs, others = tree.split(drawn, RESIDUAL_OUTPUTS)
        return tree.merge(jax.tree.map(lambda leaf: leaf * (2 * c.layers) ** -0.5, outputs), others)


def _remat(layer: Any, remat: Remat) -> Any:
    """The layer, its activations recomputed in the backward pass as `remat` says."""
    if remat == "none":
        return layer
    return jax.checkpoint(layer, prevent_cse=False, policy=POLICIES[remat], static_argnums=(5,))


def _scan(layer: Any, blocks: Any, x_BTD: Array, memory: Memory, period: int, layers: int, unroll: int) -> Any:
    """Walk the pattern over stacked leaves; caches ride in the carry and are updated in place."""

    def body(carry: tuple[Array, Memory], group: tuple[Any, Array]) -> tuple[tuple[Array, Memory], None]:
        (x_BTD, memory), (leaves, first) = carry, group
        for place in range(period):
            one = jax.tree.map(lambda leaf: leaf[place], leaves) if period > 1 else leaves
            index = first + place
            x_BTD, memory = layer(one, x_BTD, memory, index, index, place)
        return (x_BTD, memory), None

    if period > 1:
        blocks = jax.tree.map(lambda leaf: leaf.reshape(layers // period, period, *leaf.shape[1:]), blocks)
    (x_BTD, memory), _ = jax.lax.scan(
        body, (x_BTD, memory), (blocks, jnp.arange(0, layers, period)), unroll=min(unroll, layers // period)
    )
    return x_BTD, memory


def _loop(layer: Any, blocks: Any, x_BTD: Array, memory: Memory, period: int, layers: int) -> Any:
    """Walk over one dict of parameters, and one cache, a layer: never sliced inside a decoding loop."""
    kept = []
    for index in range(layers):
        one = {name: held[index] for name, held in blocks.items()}
        own = jax.tree.map(lambda listed: listed[index], memory, is_leaf=lambda node: isinstance(node, list))
        x_BTD, own = layer(one, x_BTD, own, None, index, index % period)
        kept.append(own)
    return x_BTD, Memory(*(_listed([getattr(own, name) for own in kept]) for name in ("attention", "cross")))


def _listed(caches: list[Any]) -> list[Any] | None:
    return None if caches[0] is None else caches
