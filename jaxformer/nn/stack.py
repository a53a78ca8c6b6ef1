"""A stack of blocks, its input and its final norm. L layers, B batch, T length, D width, E embedding width."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxformer import tree
from jaxformer.config import AlibiConfig, ExpertsConfig, LearnedConfig, RelativeConfig, SinusoidConfig, StackConfig
from jaxformer.nn.attention import View
from jaxformer.nn.axes import constrain
from jaxformer.nn.block import Block, Memory
from jaxformer.nn.experts import Aux
from jaxformer.nn.linear import PRODUCT, Embed, Linear
from jaxformer.nn.norm import Norm
from jaxformer.nn.positions import alibi, relative_bias, rotation, sinusoid
from jaxformer.nn.taps import EDITS, TAPS, tap

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
    embedding_width: int
    remat: Remat = "none"
    unroll: int = 1
    kernel: str = "auto"

    @nn.compact
    def __call__(
        self,
        x_BTE: Array,
        positions_BT: Array,
        view: View,
        cross_view: View | None = None,
        memory: Memory = Memory(),
        types_BT: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, Memory, Aux | None]:
        """Return ([B, T, D], the caches with the new keys and values, sums over the routers)."""
        c = self.config
        x_BTD = tap(self, "embedded", self._input(x_BTE, positions_BT, types_BT, deterministic))
        view = dataclasses.replace(view, bias_HTS=self._bias(x_BTD.shape[1], view, memory))
        if self.is_initializing():
            first = dataclasses.replace(view, bias_HTS=None)
            self.param(
                "blocks",
                functools.partial(self._init_blocks, x_BTD[:, :1], positions_BT[:, :1], first, cross_view),
            )
        blocks = {name: held["blocks"] for name, held in self.variables.items() if "blocks" in held}
        edits = blocks.pop(EDITS, {})
        taps = () if self.is_initializing() else tuple(name for name in TAPS if self.is_mutable_collection(name))
        key = None if deterministic else self.make_rng("dropout")
        views = self._views(positions_BT, view, memory)
        layer = functools.partial(self._layer, views=views, cross_view=cross_view, key=key, taps=taps)
        run = _loop if isinstance(blocks["params"], list) else functools.partial(_scan, unroll=self.unroll)
        x_BTD, memory, aux, seen = run(_remat(layer, self.remat), blocks, edits, x_BTD, memory, c)
        for name, of_blocks in seen.items():
            self.put_variable(name, "blocks", of_blocks)
        # What comes behind may be split over its width; left free, all layers would pass that on to each other.
        x_BTD = constrain(x_BTD, ("batch", "length", "width"))
        return x_BTD if c.final_norm is None else Norm(c.final_norm, name="norm")(x_BTD), memory, aux

    def _input(self, x_BTE: Array, positions_BT: Array, types_BT: Array | None, deterministic: bool) -> Array:
        c = self.config.input
        if c.scale != 1.0:
            x_BTE *= jnp.asarray(c.scale, x_BTE.dtype)
        if c.projection_first:
            x_BTE = self._projected(x_BTE)
        width = x_BTE.shape[-1]
        if isinstance(c.positions, LearnedConfig):
            table = Embed(c.positions.length + c.positions.offset, width, name="position")
            x_BTE += table(positions_BT + c.positions.offset, x_BTE.dtype)
        elif isinstance(c.positions, SinusoidConfig):
            x_BTE += sinusoid(positions_BT, width, c.positions).astype(x_BTE.dtype)
        if c.segments:
            types_BT = jnp.zeros(x_BTE.shape[:2], jnp.int32) if types_BT is None else types_BT
            x_BTE += Embed(c.segments, width, name="segment")(types_BT, x_BTE.dtype)
        if c.norm is not None:
            x_BTE = Norm(c.norm, name="input_norm")(x_BTE)
        x_BTE = nn.Dropout(c.dropout, deterministic=deterministic)(x_BTE)
        return constrain(self._projected(x_BTE), ("batch", "length", "width"))

    def _projected(self, x_BTE: Array) -> Array:
        """[B, T, E] -> [B, T, D], where they differ."""
        width, bias = x_BTE.shape[-1], self.config.input.projection_bias
        if width == self.width:
            return x_BTE
        return Linear((width,), (self.width,), bias, name="input_projection")(x_BTE)

    def _bias(self, length: int, view: View, memory: Memory) -> Array | None:
        """What distances add to the scores of every layer, [H, T, S]; S are the cache's slots where there is one."""
        c = self.config
        if c.bias is None:
            return None
        heads, start = c.pattern[0].attention.heads, view.visibility.start
        keys = length if memory.attention is None else view.visibility.valid_k.shape[1]
        start = 0 if start is None else start
        if isinstance(c.bias, AlibiConfig):
            return alibi(heads, length, keys, start)
        assert isinstance(c.bias, RelativeConfig)
        table = Embed(c.bias.buckets, heads, name="relative").embedding
        return relative_bias(table, length, keys, start, c.causal, c.bias)

    def _views(self, positions_BT: Array, view: View, memory: Memory) -> list[View]:
        """The view of each block of the pattern: its window, rotation and ring, computed once for all layers."""
        turns = {
            (a.rope, a.head_dim): rotation(positions_BT, a.head_dim, a.rope)
            for a in (block.attention for block in self.config.pattern)
            if a.rope is not None
        }
        views = [
            dataclasses.replace(
                view,
                visibility=dataclasses.replace(view.visibility, window=block.attention.window),
                rotation=turns.get((block.attention.rope, block.attention.head_dim)),
                kernel=self.kernel,
            )
            for block in self.config.pattern
        ]
        if memory.attention is None:
            return views
        held = memory.attention if isinstance(memory.attention, list) else [memory.attention]
        slots, length = view.visibility.valid_k.shape[1], positions_BT.shape[1]
        rings = {layer.window: layer.places for layer in held if layer.places < slots}
        return [own.on_ring(rings[w], length) if (w := own.visibility.window) in rings else own for own in views]

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
        taps: tuple[str, ...],
    ) -> tuple[Array, Memory, Aux | None, dict[str, Any]]:
        """Block `index`, the pattern's `place`-th; `slot` is its layer in its stack of caches.

        Comes with {name: what passed in the block} of the `taps`.
        """
        block = Block(self.config.pattern[place], deterministic=key is None, parent=None)
        rngs = None if key is None else {"dropout": jax.random.fold_in(key, index)}
        given = (x_BTD, views[place], cross_view, memory, slot)
        done: Any = block.apply(variables, *given, rngs=rngs, mutable=taps or False)
        (x_BTD, memory, aux), seen = done if taps else (done, {})
        return x_BTD, memory, aux, seen

    def _init_blocks(self, x_BTD: Array, positions_BT: Array, view: View, cross_view: View | None, key: Array) -> Any:
        """Independent draws of the block; what writes to the residual stream is scaled by (2L) ** -0.5.

        The scaling is that of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), 2.3.
        """
        c = self.config
        block, views = Block(c.pattern[0], parent=None), self._views(positions_BT, view, Memory())
        one = lambda key: block.init(key, x_BTD, views[0], cross_view, Memory(), None)["params"]
        drawn = jax.vmap(one)(jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(c.leading)))
        outputs, others = tree.split(drawn, RESIDUAL_OUTPUTS)
        return tree.merge(jax.tree.map(lambda leaf: leaf * (2 * c.layers) ** -0.5, outputs), others)


def _remat(layer: Any, remat: Remat) -> Any:
    """The layer, its activations recomputed in the backward pass as `remat` says."""
    if remat == "none":
        return layer
    return jax.checkpoint(layer, prevent_cse=False, policy=POLICIES[remat], static_argnums=(5,))


def _scan(layer: Any, blocks: Any, edits: Any, x_BTD: Array, memory: Memory, c: StackConfig, unroll: int) -> Any:
    """Walk the pattern over stacked leaves, then what is left of it; caches ride in the carry, updated in place."""
    shared, period = c.layers // c.leading, len(c.pattern)
    parted = isinstance(memory.attention, list)
    aux = Aux.zero() if _routed(c) else None

    def one(carry: Any, leaves: Any, edit: Any, index: Array | int, place: int) -> Any:
        x_BTD, memory, aux = carry
        slot = index // period if parted else index
        x_BTD, own, new, seen = layer(_edited(leaves, edit), x_BTD, _own(memory, place), slot, index, place)
        return (x_BTD, _kept(memory, place, own), jax.tree.map(jnp.add, aux, new)), seen

    def body(carry: Any, group: tuple[Any, Any, Array]) -> tuple[Any, Any]:
        leaves, edits, first = group
        if shared > 1:
            again = lambda carry, own: one(carry, leaves, own[1], first + own[0], 0)
            return jax.lax.scan(again, carry, (jnp.arange(shared), edits))
        seen = []
        for place in range(period):
            of_place = _at(leaves, place) if period > 1 else leaves
            carry, own = one(carry, of_place, _at(edits, place), first + place, place)
            seen.append(own)
        return carry, _stacked(seen)

    whole = c.leading - c.leading % period
    walked = jax.tree.map(lambda leaf: leaf[:whole] if whole < c.leading else leaf, blocks)
    if period > 1:
        walked = jax.tree.map(lambda leaf: leaf.reshape(whole // period, period, *leaf.shape[1:]), walked)
    steps = jnp.arange(0, whole, period) * shared
    grouped = jax.tree.map(lambda leaf: leaf[: whole * shared].reshape(len(steps), -1, *leaf.shape[1:]), edits)
    unroll = max(1, min(unroll, len(steps)))
    carry, seen = jax.lax.scan(body, (x_BTD, memory, aux), (walked, grouped, steps), unroll=unroll)
    seen = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), seen)
    for index in range(whole, c.leading):
        carry, own = one(carry, _at(blocks, index), _at(edits, index), jnp.asarray(index), index % period)
        seen = jax.tree.map(lambda leaf, last: jnp.concatenate([leaf, last[None]]), seen, own)
    return *carry, seen


def _loop(layer: Any, blocks: Any, edits: Any, x_BTD: Array, memory: Memory, c: StackConfig) -> Any:
    """Walk over one dict of parameters, and one cache, a layer: never sliced inside a decoding loop."""
    aux, seen = Aux.zero() if _routed(c) else None, []
    for index in range(c.layers):
        one = {name: held[index * c.leading // c.layers] for name, held in blocks.items()}
        one = _edited(one, _at(edits, index))
        x_BTD, own, new, passed = layer(one, x_BTD, _own(memory, index), None, index, index % len(c.pattern))
        aux = jax.tree.map(jnp.add, aux, new)
        memory = _kept(memory, index, own)
        seen.append(passed)
    return x_BTD, memory, aux, _stacked(seen)


def _edited(variables: dict[str, Any], edits: Any) -> dict[str, Any]:
    return variables | {EDITS: edits} if edits else variables


def _stacked(each: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def _own(memory: Memory, index: int) -> Memory:
    """The caches of one layer, or of one place of the pattern, where they are lists."""
    own = lambda held: held[index] if isinstance(held, list) else held
    return Memory(own(memory.attention), own(memory.cross))


def _kept(memory: Memory, index: int, new: Memory) -> Memory:
    """The memory with `new` for what `_own` gave."""
    put = lambda held, one: [*held[:index], one, *held[index + 1 :]] if isinstance(held, list) else one
    return Memory(put(memory.attention, new.attention), put(memory.cross, new.cross))


def _at(leaves: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], leaves)


def _routed(c: StackConfig) -> bool:
    return isinstance(c.pattern[0].mlp, ExpertsConfig)
