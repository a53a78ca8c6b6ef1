"""Token by token: each row goes on by the token that its strategy picks. R rows, N columns, A alternatives."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from jaxformer.generation import process
from jaxformer.generation.prefill import Prefilled
from jaxformer.generation.request import Request
from jaxformer.generation.sample import log_probability
from jaxformer.nn.cache import Cache
from jaxformer.nn.model import Model

Pick = Callable[[Array, Array], Array]
"""(key, float32 logits [R, V]) -> int32 [R]."""


@struct.dataclass
class State:
    """Decoding between two tokens; N columns are room, not a limit."""

    cache: Cache
    tokens: Array
    """int32 [R, N], pad where nothing stands yet."""
    scores: Array
    """float32 [R, N]."""
    alternatives: tuple[Array, Array] | None
    """The A likeliest tokens of each column and their log-probabilities, int32 and float32 [R, N, A]."""
    lengths: Array
    """int32 [R]."""
    done: Array
    """bool [R]."""
    last: Array
    """int32 [R]: the newest tokens, which the model has not seen yet."""
    memory: tuple[Any, ...]
    """What each processor remembers."""
    step: Array
    """int32 scalar: the columns that are filled."""


S = TypeVar("S", bound=State)


def begin(model: Model, prefilled: Prefilled, request: Request) -> State:
    """The state after the first token."""
    return take(empty(prefilled, request), prefilled.logits, request, request.strategy)


def empty(prefilled: Prefilled, request: Request) -> State:
    """The state before the first token."""
    rows, room = prefilled.logits.shape[0], prefilled.plan.room
    tokens, step = jnp.full((rows, room), request.pad), jnp.zeros((), jnp.int32)
    table = rows, room, request.alternatives
    return State(
        cache=prefilled.cache,
        tokens=tokens,
        scores=jnp.zeros((rows, room), jnp.float32),
        alternatives=(jnp.zeros(table, jnp.int32), jnp.zeros(table, jnp.float32)) if request.alternatives else None,
        lengths=jnp.zeros(rows, jnp.int32),
        done=jnp.zeros(rows, bool),
        last=jnp.zeros(rows, jnp.int32),
        memory=process.begun(request.processors, request.history(tokens, step)),
        step=step,
    )


def extended(state: State, kind: type[S], **more: Any) -> S:
    """The same as a state of another kind, which holds `more`."""
    held = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return kind(**held, **more)


def step(model: Model, state: State, request: Request) -> State:
    """The state after one more token."""
    out = model.apply(request.variables, state.last[:, None], cache=state.cache, method="decode")
    logits_RV = model.apply(request.variables, out.hidden[:, -1], method="unembed")
    return take(dataclasses.replace(state, cache=out.cache), logits_RV, request, request.strategy)


def take(state: S, logits_RV: Array, request: Request, pick: Pick, from_RV: Array | None = None) -> S:
    """The state with one more column: the token that is picked, in each row that goes on.

    `logits_RV` are the model's, which scores are told by; `from_RV`: what is picked from, where it is not they.
    A row of which no token may be picked ends without one.
    """
    history = request.history(state.tokens, state.step)
    from_RV = logits_RV if from_RV is None else from_RV
    changed_RV = process.processed(request.processors, from_RV, history, state.memory)
    going_R = ~state.done & jnp.any(changed_RV > -jnp.inf, axis=-1)
    token_R = pick(jax.random.fold_in(request.key, state.step), changed_RV)
    memory, ended_R = process.advanced(request.processors, state.memory, token_R, request.eos)
    alternatives = state.alternatives
    if alternatives is not None:
        likeliest = lax.top_k(jax.nn.log_softmax(logits_RV), request.alternatives)
        score_RA, token_RA = (jnp.where(going_R[:, None], new, 0)[:, None] for new in likeliest)
        alternatives = _put(alternatives[0], token_RA, state.step), _put(alternatives[1], score_RA, state.step)
    scores_R = jnp.where(going_R, log_probability(logits_RV, token_R), 0.0)
    return dataclasses.replace(
        state,
        tokens=_put(state.tokens, jnp.where(going_R, token_R, request.pad)[:, None], state.step),
        scores=_put(state.scores, scores_R[:, None], state.step),
        alternatives=alternatives,
        lengths=state.lengths + going_R,
        done=~going_R | ended_R,
        last=token_R,
        memory=memory,
        step=state.step + 1,
    )


def _put(held: Array, new: Array, column: Array) -> Array:
    """[R, N, ...] with [R, 1, ...] in a column."""
    return lax.dynamic_update_slice(held, new.astype(held.dtype), (0, column) + (0,) * (held.ndim - 2))
