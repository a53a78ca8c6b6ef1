"""One vector of a text out of those of its tokens. B batch, T length, D width."""

import jax.numpy as jnp
from jax import Array, lax

from jaxformer.config import Sentences


def pool(hidden: Array, mask: Array, sentences: Sentences) -> Array:
    """Hidden [B, T, D] at the places where mask bool [B, T] holds, as one float32 [B, D].

    Padding may stand on either side. A row whose mask holds nowhere gives zeros.
    """
    x_BTD, seen_BT1 = hidden.astype(jnp.float32), mask[:, :, None]
    if sentences.pooling == "mean":
        x_BD = jnp.where(seen_BT1, x_BTD, 0).sum(1) / jnp.maximum(seen_BT1.sum(1), 1)
    elif sentences.pooling == "max":
        x_BD = jnp.where(seen_BT1, x_BTD, -jnp.inf).max(1)
    else:
        place_B = mask.argmax(1) if sentences.pooling == "first" else mask.shape[1] - 1 - mask[:, ::-1].argmax(1)
        x_BD = jnp.take_along_axis(x_BTD, place_B[:, None, None], axis=1)[:, 0]
    x_BD = jnp.where(mask.any(1, keepdims=True), x_BD, 0)
    if not sentences.normalize:
        return x_BD
    # The root of what is never 0: at a row of zeros the norm itself has no gradient.
    return x_BD * lax.rsqrt(jnp.maximum(jnp.square(x_BD).sum(1, keepdims=True), 1e-24))
