"""The model's pass over rows of text, in batches of few shapes. B batch, T length, D width, P places, V vocabulary.

Compiled functions stand here, outside of pipelines: all of them, and all calls, share what was compiled. What is read
off the model's card is none of their business: it is not part of a model's identity.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer.config import Sentences
from jaxformer.generation.prompts import bucket
from jaxformer.nn.model import Model, Output
from jaxformer.nn.pooling import pool
from jaxformer.objective import at_places, reading, run
from jaxformer.pipelines.base import Row, positions
from jaxformer.pipelines.progress import tracked

Given = Mapping[str, Any]
"""What the model is called with, arrays [B, T]."""


@functools.partial(jax.jit, static_argnames=("model", "name"))
def extra(model: Model, params: Any, given: Given, name: str) -> Array:
    """What the extra head `name` says of rows: float32 [B, T, N] or [B, N]."""
    extra = _read(model, params, given).extra
    assert extra is not None  # see lacks_head
    return extra[name]


@functools.partial(jax.jit, static_argnames="model")
def hidden(model: Model, params: Any, given: Given) -> Array:
    """The last hidden vectors, float32 [B, T, D]."""
    return _read(model, params, given).hidden.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("model", "sentences"))
def vectors(model: Model, params: Any, given: Given, sentences: Sentences) -> Array:
    """A vector of each text, float32 [B, D]."""
    return pool(_read(model, params, given).hidden, given["mask"], sentences)


@functools.partial(jax.jit, static_argnames="model")
def probabilities(model: Model, params: Any, given: Given, places: Array) -> Array:
    """How probable each token is at places int [B, P]: float32 [B, P, V]."""
    out = at_places(_read(model, params, given), places)
    return jax.nn.softmax(model.apply({"params": params}, out.hidden, method="unembed"))  # type: ignore[arg-type]


def _read(model: Model, params: Any, given: Given) -> Output:
    return run(model, {"params": params}, jax.random.key(0), False, **given)


def in_batches(
    model: Model, rows: Sequence[Row], size: int, function: Callable[[Given, Sequence[int]], Array]
) -> list[np.ndarray]:
    """function(what the model is given, which rows these are) [B, ...] of all rows, as one array for each.

    Rows of like length stand side by side, at most `size` of them; B is `size` or a power of two, T a bucket.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    found: list[Any] = [None] * len(rows)
    for first in tracked(range(0, len(order), size)):
        some = order[first : first + size]
        filled = some + [some[-1]] * (filled_up(len(some), size) - len(some))
        given = reading(model, padded([rows[i] for i in filled], positions(model.config)))
        for i, values in zip(some, np.asarray(function(given, filled)), strict=False):
            found[i] = values
    return found


def filled_up(count: int, size: int) -> int:
    """The rows that stand for `count` of them: a power of two, at most `size`."""
    return min(size, 1 << (count - 1).bit_length())


def padded(rows: Sequence[Row], most: int | None) -> dict[str, Any]:
    """tokens, token_types int32 and mask bool [B, T], padding behind; T is a bucket, `most` at most."""
    longest = max(len(ids) for ids, _ in rows)
    length = bucket(longest) if most is None else min(bucket(longest), most)
    tokens, types = np.zeros((2, len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, (ids, kinds) in enumerate(rows):
        tokens[i, : len(ids)], types[i, : len(ids)], mask[i, : len(ids)] = ids, kinds, True
    return {"tokens": tokens, "token_types": types, "mask": mask}
