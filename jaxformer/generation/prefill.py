"""Read the prompts in one pass. B prompts, R rows, S source length, T prompt length, V vocabulary."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from jaxformer.generation.request import Request
from jaxformer.nn.axes import constrain
from jaxformer.nn.cache import Cache
from jaxformer.nn.model import Model

CHUNK = 512
"""Tokens of a prompt that are read in one pass at most: what a pass holds grows with it, its speed soon no more."""


@dataclass(frozen=True)
class Plan:
    """What is static about reading prompts."""

    room: int
    """Columns for new tokens."""
    written: int = 1
    """New tokens that are read in one pass, and may be taken back, at most."""
    copies: int = 1
    """Rows made of each prompt."""
    prefix: bool = False
    """The tokens of a prompt all see each other."""


@struct.dataclass
class Prefilled:
    """Prompts that the model has read."""

    cache: Cache
    """Of R rows, with room for the new tokens."""
    logits: Array
    """float32 [R, V]: of the token behind each prompt."""
    hidden: Array
    """[B, T, D]: of the prompts' tokens."""
    source: tuple[Array, Array] | None
    """What an encoder has read, and its mask: each [B, S]."""
    plan: Plan = struct.field(pytree_node=False)


@struct.dataclass
class Rest:
    """What is read a chunk at a time: long prompts, or what of them stands behind a past that they share."""

    tokens: Array
    """int32 [B, a multiple of the chunk], each row's first token in the first column."""
    mask: Array
    """bool, as tokens."""
    past: Cache | None
    """Of one row: what stands before these tokens in every prompt."""


def read(
    model: Model,
    variables: dict[str, Any],
    source: tuple[Array, Array] | None,
    request: Request,
    plan: Plan,
    rest: Rest | None = None,
) -> Prefilled:
    """Read a request's prompts, with an encoder behind a source and its mask, [B, S] each.

    `rest`: what of them is to be read where that is a part, or too long for one pass.
    """
    if rest is not None:
        cache, last_BD = in_chunks(model, variables, rest)
        hidden = last_BD[:, None]
    else:
        batch, length = request.prompt.shape
        encoder_length = 0 if source is None else source[0].shape[1]
        cache = model.empty_cache(batch, length, listed=_listed(variables), encoder_length=encoder_length)
        given: dict[str, Any] = {"prefix": request.mask} if plan.prefix else {}
        if source is not None:
            encoded = model.apply(variables, source[0], mask=source[1], method="encode")
            given |= {"encoder_hidden": encoded, "encoder_mask": source[1]}
        out = model.apply(variables, request.prompt, mask=request.mask, cache=cache, **given, method="decode")
        cache, hidden = out.cache, out.hidden
    logits_BV = model.apply(variables, hidden[:, -1], method="unembed")
    logits_RV = jnp.repeat(logits_BV, plan.copies, axis=0, total_repeat_length=len(logits_BV) * plan.copies)
    cache = cache.grown(cache.slots + plan.room, plan.written).repeated(plan.copies)
    return Prefilled(_placed(cache), logits_RV, hidden, source, plan)


def in_chunks(model: Model, variables: dict[str, Any], rest: Rest, rings: bool = True) -> tuple[Cache, Array]:
    """(the cache of B rows that all end in its last slot, the last tokens' hidden vectors [B, D]).

    Rows are read from their beginning, so that a past that they share stands in the same slots; then each is moved
    to the last slot. Without `rings` layers with a window keep all slots, too.
    """
    batch, width = rest.tokens.shape
    size = min(width, CHUNK)
    written = size if rings else None
    if rest.past is None:
        cache = model.empty_cache(batch, width, listed=_listed(variables), written=written)
    else:
        cache = rest.past.grown(rest.past.slots + width, written).repeated(batch)
    length_B = jnp.sum(rest.mask, axis=1, dtype=jnp.int32)
    chunks = [leaf.reshape(batch, -1, size).swapaxes(0, 1) for leaf in (rest.tokens, rest.mask)]
    starts = jnp.arange(0, width, size)

    def one(carry: tuple[Cache, Array], chunk: tuple[Array, Array, Array]) -> tuple[tuple[Cache, Array], None]:
        cache, last_BD = carry
        tokens_BT, mask_BT, start = chunk
        out = model.apply(variables, tokens_BT, mask=mask_BT, cache=cache, method="decode")
        place_B = length_B - 1 - start
        here_BD = jnp.take_along_axis(out.hidden, jnp.clip(place_B, 0, size - 1)[:, None, None], axis=1)[:, 0]
        is_here_B = (place_B >= 0) & (place_B < size)
        return (out.cache, jnp.where(is_here_B[:, None], here_BD, last_BD)), None

    last_BD = jnp.zeros((batch, model.config.width), model.dtype)
    (cache, last_BD), _ = lax.scan(one, (cache, last_BD), (*chunks, starts))
    ends_B = cache.end - width + length_B
    return cache.rolled(cache.slots - ends_B, cache.slots), last_BD


def _placed(cache: Cache) -> Cache:
    """The cache with its rows and key heads split over the mesh in force; the compiler alone would copy it whole."""

    def place(leaf: Array) -> Array:
        names = "batch", "kv_heads", "keys", "head_dim"
        return constrain(leaf, (*["width"] * (leaf.ndim - 4), *names)) if leaf.ndim > 3 else leaf

    return jax.tree.map(place, cache)


def _listed(variables: dict[str, Any]) -> bool:
    return isinstance(variables["params"]["decoder"]["blocks"], list)
