"""What decoding remembers. L layers, B batch, S slots, T new tokens, K key heads, C head dim."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from jaxformer.config import StackConfig


@struct.dataclass
class LayerCache:
    """Keys (after rotation) and values: [L, B, K, S, C] for a whole stack, or [B, K, S, C] for one layer.

    Heads before slots: attention multiplies head by head, and so reads each head's slots as they lie.
    """

    key: Array
    value: Array

    def write(self, key_BTKC: Array, value_BTKC: Array, start: Array | int, layer: Array | None) -> "LayerCache":
        """Put T new tokens into the slots from `start`; `layer` picks the layer of a whole stack."""

        def put(old: Array, new: Array) -> Array:
            new = new.astype(old.dtype).swapaxes(1, 2)
            at = (0, 0, start, 0) if layer is None else (layer, 0, 0, start, 0)
            return lax.dynamic_update_slice(old, new.reshape((1,) * (old.ndim - 4) + new.shape), at)

        return LayerCache(put(self.key, key_BTKC), put(self.value, value_BTKC))

    def read(self, layer: Array | None) -> tuple[Array, Array]:
        """All slots of one layer: keys and values [B, S, K, C]."""
        key, value = self.key, self.value
        if layer is not None:
            key, value = (lax.dynamic_index_in_dim(leaf, layer, keepdims=False) for leaf in (key, value))
        return key.swapaxes(1, 2), value.swapaxes(1, 2)


@struct.dataclass
class Cache:
    """The state of decoding a batch; slots from `end` on are free.

    `layers` and `cross` are stacked, or lists of one LayerCache a layer where the parameters are such lists.
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

    def grown(self, slots: int) -> "Cache":
        """The same contents with `slots` slots, free ones added at the end."""

        def pad(leaf: Array, axis: int) -> Array:
            widths = [(0, 0)] * leaf.ndim
            widths[axis] = (0, slots - self.slots)
            return jnp.pad(leaf, widths)

        return dataclasses.replace(
            self,
            layers=jax.tree.map(lambda leaf: pad(leaf, leaf.ndim - 2), self.layers),
            valid=pad(self.valid, 1),
            positions=pad(self.positions, 1),
        )

    def shortened(self, end: Array) -> "Cache":
        """The same with its slots from `end` on free again."""
        kept_S = jnp.arange(self.slots) < end
        return dataclasses.replace(self, valid=self.valid & kept_S[None, :], end=end)

    def cut(self, slots: int) -> "Cache":
        """The first `slots` slots alone, or with free ones behind."""
        if slots >= self.slots:
            return self.grown(slots)
        short = lambda leaf, axis: lax.slice_in_dim(leaf, 0, slots, axis=axis)
        return dataclasses.replace(
            self,
            layers=jax.tree.map(lambda leaf: short(leaf, leaf.ndim - 2), self.layers),
            valid=short(self.valid, 1),
            positions=short(self.positions, 1),
        )

    def rolled(self, shift: Array, end: Array | int) -> "Cache":
        """Each row's slots moved on by its `shift` (int32 [B]), round and round; all rows now end before `end`."""
        from_BS = (jnp.arange(self.slots)[None, :] - shift[:, None]) % self.slots

        def moved(leaf: Array, batch_axis: int, slot_axis: int) -> Array:
            pick = lambda row, index: jnp.take(row, index, axis=slot_axis - 1, mode="clip")
            return jax.vmap(pick, (batch_axis, 0), batch_axis)(leaf, from_BS)

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
            one = lax.dynamic_slice_in_dim(leaf, slot, 1, axis=leaf.ndim - 2)
            picked = jnp.take(one, rows, axis=leaf.ndim - 4, mode="clip")
            return lax.dynamic_update_slice_in_dim(leaf, picked, slot, axis=leaf.ndim - 2)

        return dataclasses.replace(self, layers=jax.tree.map(pick, self.layers))

    def gathered(self, rows: Array, start: int) -> "Cache":
        """Row i with the keys and values of row `rows[i]` (int32 [B]) in the slots from `start` on.

        For rows that continue one prompt: the slots before, the books and what the encoder gave are equal in them.
        """

        def pick(leaf: Array) -> Array:
            behind = lax.slice_in_dim(leaf, start, None, axis=leaf.ndim - 2)
            picked = jnp.take(behind, rows, axis=leaf.ndim - 4, mode="clip")
            return lax.dynamic_update_slice_in_dim(leaf, picked, start, axis=leaf.ndim - 2)

        return dataclasses.replace(self, layers=jax.tree.map(pick, self.layers))


def empty(config: StackConfig, batch: int, slots: int, dtype: Any, listed: bool = False, cross: int = 0) -> Cache:
    """A cache of nothing. `listed` gives one LayerCache a layer; `cross` is the encoder's length."""
    return Cache(
        layers=_layers(config, batch, slots, dtype, listed),
        valid=jnp.zeros((batch, slots), bool),
        positions=jnp.zeros((batch, slots), jnp.int32),
        end=jnp.zeros((), jnp.int32),
        cross=_layers(config, batch, cross, dtype, listed) if cross else None,
        cross_valid=jnp.zeros((batch, cross), bool) if cross else None,
    )


def _layers(config: StackConfig, batch: int, slots: int, dtype: Any, listed: bool) -> LayerCache | list[LayerCache]:
    attention = config.pattern[0].attention
    shape = (batch, attention.kv_heads, slots, attention.head_dim)
    if listed:
        return [LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers)]
    return LayerCache(jnp.zeros((config.layers, *shape), dtype), jnp.zeros((config.layers, *shape), dtype))
