"""What several prompts begin with, read once: a system prompt, the turns of a chat, examples before a question."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer.generation import layout, prompts
from jaxformer.generation.prefill import CHUNK, Rest, in_chunks
from jaxformer.nn.cache import Cache
from jaxformer.nn.model import Model


@dataclass(frozen=True, eq=False)
class Past:
    """The beginning of prompts, as a decoder has read it."""

    ids: np.ndarray
    """int32 [P]."""
    cache: Cache
    """Of one row, which ends with the last of them; without rings, for other prompts may share any part of it."""


def remember(model: Model, params: Any, tokens: Sequence[int], past: Past | None = None, adapter: Any = None) -> Past:
    """Read the beginning of prompts, to be given to `generate` and `stream` as `past`.

    What `tokens` share with an earlier `past`, of the same model, parameters and adapter, is not read again.
    Raises ValueError for a model with an encoder, and as `generate` for ids and lengths.
    """
    source, (row,) = prompts.read_and_continued(model, prompts.rows_of([tokens]), None)
    if source is not None:
        raise ValueError("a past is a decoder's alone: this model has an encoder, which reads a text at once")
    prompts.check(model, None, [row], 1, 1)
    shared = 0 if past is None else common(past.ids, row)
    if past is not None and shared == len(row):
        return Past(row, _shortened(past.cache, np.int32(shared)))
    before = None if past is None or shared == 0 else _shortened(past.cache, np.int32(shared))
    variables = layout.per_layer({"params": params} | ({} if adapter is None else {"lora": adapter}))
    rest = Rest(*prompts.left_aligned([row[shared:]], CHUNK), before)
    return Past(row, _read(model, variables, rest, prompts.bucket(len(row))))


def common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two rows begin with alike."""
    short = min(len(first), len(second))
    differ = np.flatnonzero(first[:short] != second[:short])
    return int(differ[0]) if len(differ) else short


def behind(past: Past, rows: list[np.ndarray]) -> Rest:
    """What of prompts is still to be read; raises ValueError for one that does not begin with the past."""
    others = [i for i, row in enumerate(rows) if common(past.ids, row) < len(past.ids)]
    if others:
        raise ValueError(f"prompt {others[0]} does not begin with the {len(past.ids)} tokens of the past")
    shared = len(past.ids) - any(len(row) == len(past.ids) for row in rows)  # of each row a token is left to read
    tokens, mask = prompts.left_aligned([row[shared:] for row in rows], CHUNK)
    return Rest(tokens, mask, _shortened(past.cache, np.int32(shared)) if shared else None)


@functools.partial(jax.jit, static_argnames=("model", "slots"))
def _read(model: Model, variables: dict[str, Any], rest: Rest, slots: int) -> Cache:
    """The cache of one row with these slots, its contents from the first slot on."""
    cache, _ = in_chunks(model, variables, rest, rings=False)
    length = jnp.sum(cache.valid, dtype=jnp.int32)
    return cache.rolled((length - cache.slots)[None], length).cut(slots)


@jax.jit
def _shortened(cache: Cache, end: Array) -> Cache:
    return cache.shortened(end)
