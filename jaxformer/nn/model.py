"""The whole Transformer. B batch, T length, S key length or slots, D width, V vocabulary."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array, lax

from jaxformer.config import Card, ModelConfig, StackConfig
from jaxformer.nn import cache as caches
from jaxformer.nn.attention import View
from jaxformer.nn.block import Memory
from jaxformer.nn.cache import Cache
from jaxformer.nn.experts import Aux
from jaxformer.nn.head import Heads
from jaxformer.nn.linear import Embed, Unembed
from jaxformer.nn.positions import count
from jaxformer.nn.stack import Remat, Stack
from jaxformer.nn.visibility import Visibility


@struct.dataclass
class Output:
    """What a model gives back."""

    hidden: Array
    """[B, T, D], after the final norm."""
    logits: Array | None = None
    """float32 [B, T, V]; None where not asked for, or where there is no head over the vocabulary."""
    pooled: Array | None = None
    """[B, D] where there is a pooler."""
    extra: dict[str, Array] | None = None
    """float32 [B, T, N] or [B, N] of each extra head, by its name."""
    aux: Aux | None = None
    """What the routers of experts add to a loss."""
    cache: Cache | None = None
    encoder_hidden: Array | None = None
    """[B, S, D] where there is an encoder and a decoder."""


class Model(nn.Module):
    """Encoder, decoder or both over one vocabulary; `config` is the architecture, the other fields how to run it.

    `apply({"params": params}, tokens)` for one stack, `apply(..., tokens, decoder_tokens)` for two. `mask`,
    `segments`, `positions`, `token_types`, `prefix` and `embeddings` speak of `tokens`, or of what stands for
    them. With a
    cache, `tokens` (`decoder_tokens`) are the new ones alone, and their keys go into the cache's next slots.
    """

    config: ModelConfig
    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    remat: Remat = "none"
    unroll: int = 1
    kernel: str = "auto"
    card: Card = dataclasses.field(default=Card(), compare=False, hash=False, repr=False)

    def setup(self) -> None:
        c = self.config.validate()
        width = c.embedding_width or c.width
        self.embed = Embed(c.vocab, width)
        if c.encoder is not None:
            self.encoder = Stack(c.encoder, c.width, width, self.remat, self.unroll, self.kernel)
        if c.decoder is not None:
            self.decoder = Stack(c.decoder, c.width, width, self.remat, self.unroll, self.kernel)
        self.heads = Heads(c)

    @property
    def dtype(self) -> Any:
        """The dtype of activations."""
        return jnp.dtype(auto_dtype() if self.compute == "auto" else self.compute)

    def __call__(
        self,
        tokens: Array | None = None,
        decoder_tokens: Array | None = None,
        *,
        logits: bool = True,
        deterministic: bool = True,
        **given: Any,
    ) -> Output:
        """Hidden vectors, and logits where wanted; `given` is what `encode` and `decode` take.

        With two stacks, what speaks of `decoder_tokens` is called decoder_mask, decoder_segments and
        decoder_positions, and encoder_embeddings stand for `tokens`.
        """
        run = self._both if self.config.encoder is not None and self.config.decoder is not None else self._one
        out = run(tokens, decoder_tokens, deterministic, **given)
        mask = given.get("decoder_mask" if decoder_tokens is not None else "mask")
        pooled, extra = self.heads.beside(out.hidden, mask)
        if self.config.head is None or not (logits or self.is_initializing()):
            return dataclasses.replace(out, pooled=pooled, extra=extra)
        return dataclasses.replace(out, logits=self.unembed(out.hidden), pooled=pooled, extra=extra)

    def _one(self, tokens: Array | None, decoder_tokens: Array | None, deterministic: bool, **given: Any) -> Output:
        second = {"decoder_tokens": decoder_tokens} | {
            name: given.pop(name) for name in list(given) if name.startswith(("decoder_", "encoder_"))
        }
        if stray := ", ".join(name for name, value in second.items() if value is not None):
            raise ValueError(f"{stray} given, but this model has one stack: speak of tokens alone")
        if self.config.decoder is not None:
            return self.decode(tokens, deterministic=deterministic, **given)
        if given.pop("cache", None) is not None:
            raise ValueError("cache given, but this model has no decoder: there is nothing to cache")
        return self._encode(tokens, deterministic=deterministic, **given)

    def _both(
        self,
        tokens: Array | None,
        decoder_tokens: Array | None,
        deterministic: bool,
        *,
        mask: Array | None = None,
        segments: Array | None = None,
        positions: Array | None = None,
        encoder_embeddings: Array | None = None,
        **given: Any,
    ) -> Output:
        of_tokens = {"mask": mask, "segments": segments, "positions": positions}
        memory = self.encode(tokens, embeddings=encoder_embeddings, deterministic=deterministic, **of_tokens)
        return self.decode(
            decoder_tokens,
            encoder_hidden=memory,
            encoder_mask=mask,
            encoder_segments=segments,
            deterministic=deterministic,
            **{name.removeprefix("decoder_"): value for name, value in given.items()},
        )

    def encode(
        self,
        tokens: Array | None,
        *,
        mask: Array | None = None,
        segments: Array | None = None,
        positions: Array | None = None,
        token_types: Array | None = None,
        embeddings: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Tokens int [B, T] -> the encoder's hidden vectors [B, T, D].

        mask bool [B, T]: False is padding; token_types int [B, T]: 0 where not given.
        """
        return self._encode(tokens, mask, segments, positions, token_types, embeddings, deterministic).hidden

    def _encode(
        self,
        tokens: Array | None,
        mask: Array | None = None,
        segments: Array | None = None,
        positions: Array | None = None,
        token_types: Array | None = None,
        embeddings: Array | None = None,
        deterministic: bool = True,
    ) -> Output:
        x_BTE = self._embed(tokens, embeddings)
        if positions is None:
            positions = count(x_BTE.shape[:2], mask, segments)
        causal = self.config.encoder.causal
        view = View(Visibility(causal=causal, valid_k=mask, segments_q=segments, segments_k=segments))
        hidden, _, aux = self.encoder(
            x_BTE,
            positions,
            view,
            types_BT=self._types(token_types, self.config.encoder),
            deterministic=deterministic,
        )
        return Output(hidden, aux=aux)

    def decode(
        self,
        tokens: Array | None,
        *,
        encoder_hidden: Array | None = None,
        encoder_mask: Array | None = None,
        encoder_segments: Array | None = None,
        mask: Array | None = None,
        segments: Array | None = None,
        positions: Array | None = None,
        token_types: Array | None = None,
        prefix: Array | None = None,
        embeddings: Array | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
    ) -> Output:
        """Tokens int [B, T] -> hidden vectors, without logits.

        prefix bool [B, T]: tokens that all see each other; those that a cache holds from an earlier call see none of
        them.
        """
        x_BTE = self._embed(tokens, embeddings)
        batch, length = x_BTE.shape[:2]
        types_BT = self._types(token_types, self.config.decoder)
        if cache is None:
            if positions is None:
                positions = count((batch, length), mask, segments)
            visibility = Visibility(
                causal=True,
                valid_k=mask,
                segments_q=segments,
                segments_k=segments,
                prefix_q=prefix,
                prefix_k=prefix,
            )
            cross = self._cross(encoder_hidden, encoder_mask, segments, encoder_segments)
            hidden, _, aux = self.decoder(
                x_BTE, positions, View(visibility), cross, types_BT=types_BT, deterministic=deterministic
            )
            return Output(hidden, aux=aux, encoder_hidden=encoder_hidden)
        if self.config.encoder is not None and cache.cross is None:
            raise ValueError("this cache has no room for the encoder's keys: give empty_cache its encoder_length")
        if segments is not None:
            raise ValueError("segments cannot be combined with a cache: decode one document a row")
        mask = jnp.ones((batch, length), bool) if mask is None else mask.astype(bool)
        if positions is None:
            past = jnp.sum(cache.valid, axis=1, dtype=jnp.int32, keepdims=True)
            positions = jnp.maximum(past + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        start, cache = cache.end, cache.advance(mask, positions)
        if cache.cross is not None and encoder_hidden is not None:
            seen = jnp.ones(encoder_hidden.shape[:2], bool) if encoder_mask is None else encoder_mask.astype(bool)
            cache = dataclasses.replace(cache, cross_valid=seen)
        ahead = None if prefix is None else lax.dynamic_update_slice(jnp.zeros_like(cache.valid), prefix, (0, start))
        view = View(Visibility(causal=True, valid_k=cache.valid, start=start, prefix_q=prefix, prefix_k=ahead))
        cross = None
        if self.config.encoder is not None:
            cross = View(Visibility(valid_k=cache.cross_valid), encoder_hidden)
        hidden, memory, aux = self.decoder(
            x_BTE, positions, view, cross, Memory(cache.layers, cache.cross), types_BT=types_BT
        )
        cache = dataclasses.replace(cache, layers=memory.attention, cross=memory.cross)
        return Output(hidden, aux=aux, cache=cache, encoder_hidden=encoder_hidden)

    def unembed(self, hidden: Array) -> Array:
        """Hidden vectors [..., D] -> float32 logits [..., V]."""
        return self.unembedding()(self.transform(hidden))

    def transform(self, hidden: Array) -> Array:
        """What the head does to hidden vectors [..., D] before its output matrix; most heads do nothing."""
        self._require_head()
        return self.heads.lm.transformed(hidden)

    def unembedding(self) -> Unembed:
        """The head as a value, for losses: `model.apply(variables, method="unembedding")`."""
        self._require_head()
        return self.heads.lm.value(self.embed.embedding)

    def _require_head(self) -> None:
        if self.config.head is None:
            raise ValueError("this model has no head over the vocabulary, and so no logits: its config.head is None")

    def _types(self, token_types: Array | None, stack: StackConfig | None) -> Array | None:
        if token_types is not None and not stack.input.segments:
            raise ValueError("token_types given, but this model does not tell kinds of token apart")
        return token_types

    def empty_cache(
        self, batch: int, slots: int, *, listed: bool = False, encoder_length: int = 0, written: int | None = None
    ) -> Cache:
        """A cache for `slots` tokens of `batch` rows, in the dtype of activations.

        `written`: how many tokens one call writes at most; layers with a window then keep only what that needs.
        """
        if self.config.decoder is None:
            raise ValueError("this model has no decoder: there is nothing to cache")
        return caches.empty(self.config.decoder, batch, slots, self.dtype, listed, encoder_length, written)

    def _embed(self, tokens: Array | None, embeddings: Array | None) -> Array:
        if (tokens is None) == (embeddings is None):
            raise ValueError("give either tokens [B, T] or embeddings [B, T, D], not both or neither")
        if tokens is not None and (tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer)):
            raise ValueError(f"tokens must be integers of shape [B, T], got {tokens.dtype} {tokens.shape}")
        return self.embed(tokens, self.dtype) if embeddings is None else embeddings.astype(self.dtype)

    def _cross(self, hidden: Array | None, mask: Any, segments: Any, encoder_segments: Any) -> View | None:
        if self.config.encoder is None:
            return None
        if hidden is None:
            raise ValueError("encoder_hidden is missing: this model's decoder looks at an encoder's output")
        return View(Visibility(valid_k=mask, segments_q=segments, segments_k=encoder_segments), hidden)


def auto_dtype() -> str:
    """bfloat16 on TPU and on GPUs from sm_80, float16 on older GPUs, float32 on CPU."""
    device = jax.devices()[0]
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "gpu":
        return "bfloat16" if float(getattr(device, "compute_capability", 0)) >= 8 else "float16"
    return "float32"
