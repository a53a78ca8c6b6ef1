"""Attention with its projections. B batch, T queries, S keys, D width, H heads, K key heads, C head dim."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from jaxformer.config import AttentionConfig
from jaxformer.nn.attend import attend
from jaxformer.nn.axes import constrain
from jaxformer.nn.cache import LayerCache, slots_of
from jaxformer.nn.linear import Linear
from jaxformer.nn.norm import Norm
from jaxformer.nn.positions import Rotation, rotate
from jaxformer.nn.taps import tap, watched
from jaxformer.nn.visibility import Visibility
from jaxformer.nn.weigh import probabilities, weighted


@struct.dataclass
class View:
    """What the attentions of a stack look at; the same for each layer but for the window and the rotation."""

    visibility: Visibility
    memory_BSD: Array | None = None
    """What cross attention looks at; None for itself, or where the cache holds its keys and values."""
    rotation: Rotation | None = None
    bias_HTS: Array | None = None
    """float32, added to the scores."""
    kernel: str = struct.field(pytree_node=False, default="auto")
    """That of whole rows; beside a cache it is chosen, since what reads whole rows can do no single tokens."""

    def on_ring(self, places: int, length: int) -> "View":
        """The same of `length` queries on keys that a ring of so many places holds; raises ValueError if too few."""
        seen = self.visibility
        assert seen.window is not None
        assert seen.start is not None
        if places < seen.window + length - 1:
            raise ValueError(
                f"{length} tokens at once do not fit a ring of {places} slots behind a window of {seen.window}: "
                f"write at most {places - seen.window + 1}, or give empty_cache and grown a larger `written`"
            )
        slots_R = slots_of(places, seen.start + length)

        def held(leaf: Any) -> Any:
            return None if leaf is None else jnp.take(leaf, slots_R, axis=-1, mode="clip")

        valid_BR = held(seen.valid_k) & (slots_R >= 0)[None, :]
        ring = dataclasses.replace(seen, valid_k=valid_BR, prefix_k=held(seen.prefix_k), slots_k=slots_R)
        return dataclasses.replace(self, visibility=ring, bias_HTS=held(self.bias_HTS))


class Attention(nn.Module):
    """Queries from x; keys and values from x, from a memory, or from a cache.

    "Attention Is All You Need" (Vaswani et al., 2017), section 3.2.2.
    """

    config: AttentionConfig
    cross: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: Array, view: View, cache: LayerCache | None = None, layer: Array | None = None
    ) -> tuple[Array, LayerCache | None]:
        """Return ([B, T, D], the cache with the new keys and values)."""
        c, width = self.config, x_BTD.shape[-1]
        scale = c.head_dim**-0.5 if c.scale is None else c.scale
        gain = c.head_dim**-0.5 / scale  # scores begin with unit variance: of T5, whose scale is 1, too
        query, key, value = (
            functools.partial(Linear((width,), (heads, c.head_dim), name in c.bias, gain, name=name))
            for name, heads, gain in (("query", c.heads, gain), ("key", c.kv_heads, 1.0), ("value", c.kv_heads, 1.0))
        )
        q_BTHC = self._normed("query", constrain(query(x_BTD), ("batch", "length", "heads", "head_dim")))
        if view.rotation is not None:
            q_BTHC = rotate(q_BTHC, view.rotation)
        q_BTHC = tap(self, "query", q_BTHC)
        source_BSD = view.memory_BSD if self.cross else x_BTD
        if source_BSD is not None:
            k_BSKC = self._normed("key", constrain(key(source_BSD), ("batch", "length", "kv_heads", "head_dim")))
            v_BSKC = constrain(value(source_BSD), ("batch", "length", "kv_heads", "head_dim"))
            if view.rotation is not None:
                k_BSKC = rotate(k_BSKC, view.rotation)
            k_BSKC, v_BSKC = tap(self, "key", k_BSKC), tap(self, "value", v_BSKC)
            if cache is not None:
                k_BSKC, v_BSKC = (constrain(x, ("batch", "keys", "kv_heads", "head_dim")) for x in (k_BSKC, v_BSKC))
                seen = view.visibility
                valid_BR = None if seen.slots_k is None else seen.valid_k
                cache = cache.write(k_BSKC, v_BSKC, 0 if self.cross else seen.start, layer, valid_BR)
        if cache is not None:
            k_BSKC, v_BSKC = cache.read(layer)
        terms: dict[str, Any] = {"scale": scale, "softcap": c.softcap, "bias_HTS": view.bias_HTS}
        if watched(self, "probabilities"):  # which a kernel need not lay down
            p_BHTS = probabilities(q_BTHC, k_BSKC, view.visibility, **terms)
            out_BTHC = weighted(tap(self, "probabilities", p_BHTS), v_BSKC)
        else:
            kernel = view.kernel if cache is None else "auto"
            out_BTHC = attend(q_BTHC, k_BSKC, v_BSKC, view.visibility, kernel=kernel, **terms)
        out_BTHC = tap(self, "heads", constrain(out_BTHC, ("batch", "length", "heads", "head_dim")))
        out = Linear((c.heads, c.head_dim), (width,), "out" in c.bias, name="out")
        return out(out_BTHC), cache

    def _normed(self, name: str, x_BTHC: Array) -> Array:
        norm = self.config.qk_norm
        return x_BTHC if norm is None else Norm(norm, name=f"{name}_norm")(x_BTHC)
