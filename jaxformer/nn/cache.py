"""What decoding remembers. L layers, B batch, S slots, R places, T new tokens, K key heads, C head dim.

A layer keeps slot a in place a % R. It has a place for each slot, or with a window those alone that a query may
still need: a ring, in which the newest tokens take the places of the oldest ("Mistral 7B", Jiang et al., 2023,
section 2: rolling buffer cache).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from jaxformer.config import StackConfig


@struct.dataclass
class LayerCache:
    """Keys (after rotation) and values: [L, B, K, R, C] for layers of one window, or [B, K, R, C] for one layer.

    Heads before places: attention multiplies head by head, and so reads each head's places as they lie.
    """

    key: Array
    value: Array
    window: int | None = struct.field(pytree_node=False, default=None)
    """The layers': older slots than its last serve no query."""

    @property
    def places(self) -> int:
        """R."""
        return self.key.shape[-2]

    def write(
        self,
        key_BTKC: Array,
        value_BTKC: Array,
        start: Array | int,
        layer: Array | None,
        valid_BR: Array | None = None,
    ) -> "LayerCache":
        """Put T new tokens into the slots from `start`; `layer` picks the layer of a whole stack.

        `valid_BR`, for a ring: which places hold real tokens once the new ones are there. Several tokens go round
        its end, and padding among them is left out: it takes no place from a row that is yet to be moved.
        """
        tokens = key_BTKC.shape[1]
        first = start if valid_BR is None else start % self.places

        def put(old: Array, new: Array) -> Array:
            new = new.astype(old.dtype).swapaxes(1, 2)
            at = (0, 0, first, 0) if layer is None else (layer, 0, 0, first, 0)
            return lax.dynamic_update_slice(old, new.reshape((1,) * (old.ndim - 4) + new.shape), at)

        def put_round(old: Array, new: Array) -> Array:
            at_T = (first + jnp.arange(tokens)) % self.places
            real_TB = jnp.take(valid_BR, at_T, axis=1, mode="clip").T
            there = (old[None] if layer is None else old).at[0 if layer is None else layer, :, :, at_T]  # T B K C
            new = jnp.where(real_TB[:, :, None, None], new.astype(old.dtype).swapaxes(0, 1), there.get(mode="clip"))
            return there.set(new, mode="clip", unique_indices=True).reshape(old.shape)

        put = put if valid_BR is None or tokens == 1 else put_round
        return LayerCache(put(self.key, key_BTKC), put(self.value, value_BTKC), self.window)

    def read(self, layer: Array | None) -> tuple[Array, Array]:
        """All places of one layer: keys and values [B, R, K, C]."""
        key, value = self.key, self.value
        if layer is not None:
            key, value = (lax.dynamic_index_in_dim(leaf, layer, keepdims=False) for leaf in (key, value))
        return key.swapaxes(1, 2), value.swapaxes(1, 2)


@struct.dataclass
class Cache:
    """The state of decoding a batch; slots from `end` on are free.

    `layers` and `cross` are stacked; or lists of one LayerCache a layer where the parameters are such lists; or lists
    of one stack for each place of the pattern where its windows differ.
    """

    layers: LayerCache | list[LayerCache]
    valid: Array
    """bool [B, S]: the slot holds a real token."""
    positions: Array
    """int32 [B, S]: the token's position in its row."""
    end: Array
    """int32 scalar: the next slot to be written, of every row."""
    cross: LayerCache | list[LayerCache] | None = None
    """Keys and values of the encoder's output, made once."""
    cross_valid: Array | None = None
    """bool [B, S of the encoder]."""

    @property
    def slots(self) -> int:
        """S."""
        return self.valid.shape[1]

    def advance(self, mask_BT: Array, positions_BT: Array) -> "Cache":
        """The cache with T more tokens entered in the books; their keys are written by the layers."""
        return dataclasses.replace(
            self,
            valid=lax.dynamic_update_slice(self.valid, mask_BT, (0, self.end)),
            positions=lax.dynamic_update_slice(self.positions, positions_BT, (0, self.end)),
            end=self.end + mask_BT.shape[1],
        )

    def grown(self, slots: int, written: int | None = None) -> "Cache":
        """The same contents with `slots` slots, free ones added at the end.

        Layers with a window become rings for `written` tokens, as in `empty`; None: they stay as they are.
        """

        def pad(leaf: Array, axis: int) -> Array:
            widths = [(0, 0)] * leaf.ndim
            widths[axis] = (0, slots - self.slots)
            return jnp.pad(leaf, widths)

        def more(layer: LayerCache) -> LayerCache:
            is_ring = layer.places < self.slots
            places = layer.places if is_ring and written is None else places_of(layer.window, slots, written)
            if not is_ring and places == slots:
                return jax.tree.map(lambda leaf: pad(leaf, leaf.ndim - 2), layer)
            from_R = slots_of(places, self.end) % layer.places
            return jax.tree.map(lambda leaf: jnp.take(leaf, from_R, axis=leaf.ndim - 2, mode="clip"), layer)

        return dataclasses.replace(
            self,
            layers=jax.tree.map(more, self.layers, is_leaf=lambda node: isinstance(node, LayerCache)),
            valid=pad(self.valid, 1),
            positions=pad(self.positions, 1),
        )

    def shortened(self, end: Array) -> "Cache":
        """The same with its slots from `end` on free again; of rings only what was `written` at once may be."""
        kept_S = jnp.arange(self.slots) < end
        return dataclasses.replace(self, valid=self.valid & kept_S[None, :], end=end)

    def cut(self, slots: int) -> "Cache":
        """The first `slots` slots alone, or with free ones behind."""
        if slots >= self.slots:
            return self.grown(slots)
        short = lambda leaf, axis: lax.slice_in_dim(leaf, 0, min(slots, leaf.shape[axis]), axis=axis)
        return dataclasses.replace(
            self,
            layers=jax.tree.map(lambda leaf: short(leaf, leaf.ndim - 2), self.layers),
            valid=short(self.valid, 1),
            positions=short(self.positions, 1),
        )

    def rolled(self, shift: Array, end: Array | int) -> "Cache":
        """Each row's slots moved on by its `shift` (int32 [B]), round and round; all rows now end before `end`."""

        def moved(leaf: Array, batch_axis: int, slot_axis: int) -> Array:
            places = leaf.shape[slot_axis]
            from_BR = (jnp.arange(places)[None, :] - shift[:, None]) % places
            pick = lambda row, index: jnp.take(row, index, axis=slot_axis - 1, mode="clip")
            return jax.vmap(pick, (batch_axis, 0), batch_axis)(leaf, from_BR)

        return dataclasses.replace(
            self,
            layers=jax.tree.map(lambda leaf: moved(leaf, leaf.ndim - 4, leaf.ndim - 2), self.layers),
            valid=moved(self.valid, 0, 1),
            positions=moved(self.positions, 0, 1),
            end=jnp.asarray(end, jnp.int32),
        )

    def repeated(self, times: int) -> "Cache":
        """Each row `times` times, its copies side by side."""

        def rows(leaf: Array, axis: int) -> Array:
            return jnp.repeat(leaf, times, axis, total_repeat_length=leaf.shape[axis] * times)

        layers, cross = jax.tree.map(lambda leaf: rows(leaf, leaf.ndim - 4), (self.layers, self.cross))
        valid, positions, cross_valid = jax.tree.map(
            lambda leaf: rows(leaf, 0), (self.valid, self.positions, self.cross_valid)
        )
        return Cache(layers, valid, positions, self.end, cross, cross_valid)

    def copied(self, rows: Array, slot: Array) -> "Cache":
        """Row i with the keys and values of row `rows[i]` (int32 [B]) in one slot; in all else the two are equal."""

        def pick(leaf: Array) -> Array:
            place = slot % leaf.shape[-2]
            one = lax.dynamic_slice_in_dim(leaf, place, 1, axis=leaf.ndim - 2)
            picked = jnp.take(one, rows, axis=leaf.ndim - 4, mode="clip")
            return lax.dynamic_update_slice_in_dim(leaf, picked, place, axis=leaf.ndim - 2)

        return dataclasses.replace(self, layers=jax.tree.map(pick, self.layers))

    def gathered(self, rows: Array, start: int) -> "Cache":
        """Row i with the keys and values of row `rows[i]` (int32 [B]) in the slots from `start` on.

        For rows that continue one prompt: the slots before, the books and what the encoder gave are equal in them.
        """

        def pick(leaf: Array) -> Array:
            places, count = leaf.shape[-2], self.slots - start
            first = start % places if count < places else 0
            for low, high in ((first, min(first + count, places)), (0, min(first + count - places, first))):
                if low < high:
                    behind = lax.slice_in_dim(leaf, low, high, axis=leaf.ndim - 2)
                    picked = jnp.take(behind, rows, axis=leaf.ndim - 4, mode="clip")
                    leaf = lax.dynamic_update_slice_in_dim(leaf, picked, low, axis=leaf.ndim - 2)
            return leaf

        return dataclasses.replace(self, layers=jax.tree.map(pick, self.layers))


def empty(
    config: StackConfig,
    batch: int,
    slots: int,
    dtype: Any,
    listed: bool = False,
    cross: int = 0,
    written: int | None = None,
) -> Cache:
    """A cache of nothing. `listed` gives one LayerCache a layer; `cross` is the encoder's length.

    `written`: how many tokens one call writes, or takes back, at most; layers with a window are then rings.
    """
    return Cache(
        layers=_layers(config, batch, slots, dtype, listed, written),
        valid=jnp.zeros((batch, slots), bool),
        positions=jnp.zeros((batch, slots), jnp.int32),
        end=jnp.zeros((), jnp.int32),
        cross=_layers(config, batch, cross, dtype, listed, None) if cross else None,
        cross_valid=jnp.zeros((batch, cross), bool) if cross else None,
    )


def places_of(window: int | None, slots: int, written: int | None) -> int:
    """How many slots a layer keeps: `slots`, or those that queries need while `written` tokens come at once.

    The oldest of these sees window - 1 slots before it. Rounded up to a multiple of 32.
    """
    return slots if window is None or written is None else min(slots, -(-(window + written - 1) // 32) * 32)


def slots_of(places: int, end: Array | int) -> Array:
    """The slot that each place holds, int32 [R]: the newest before `end` that it may; negative: none yet."""
    newest = end - 1
    return newest - (newest - jnp.arange(places)) % places


def _layers(
    config: StackConfig, batch: int, slots: int, dtype: Any, listed: bool, written: int | None
) -> LayerCache | list[LayerCache]:
    attention, windows = config.pattern[0].attention, [block.attention.window for block in config.pattern]

    def zeros(window: int | None, *layers: int) -> LayerCache:
        shape = (*layers, batch, attention.kv_heads, places_of(window, slots, written), attention.head_dim)
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), window)

    period = len(windows)
    if listed:
        return [zeros(windows[index % period]) for index in range(config.layers)]
    if len(set(windows)) == 1:
        return zeros(windows[0], config.layers)
    layers = max(config.layers, period)  # a pattern may be longer than its stack
    return [zeros(window, len(range(place, layers, period))) for place, window in enumerate(windows)]
