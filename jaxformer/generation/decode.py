"""Prefill in one pass, then one compiled loop. B rows, T prompt length, N new tokens, V vocabulary."""

import functools
import secrets
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from jaxformer.generation import prompts
from jaxformer.generation.sample import Greedy, Strategy, log_probability
from jaxformer.nn.cache import Cache
from jaxformer.nn.model import Model


@struct.dataclass
class Generated:
    """What `generate` gives back, on the host; a prompt's samples are rows side by side, B in all."""

    tokens: np.ndarray
    """int32 [B, max_new_tokens]: new tokens alone, `pad` after the one that ended the row."""
    lengths: np.ndarray
    """int32 [B]: new tokens in each row, the one that ended it included."""
    scores: np.ndarray
    """float32 [B, max_new_tokens]: log-probability of each token under the model, whatever the strategy.

    Natural logarithm; 0 after the row's end."""
    key: Array
    """The key that was used."""


@struct.dataclass
class Stop:
    """When a row ends, and what stands behind its end."""

    eos: Array
    """int32 [number of ids]: any of them ends a row."""
    pad: Array
    """int32 scalar."""
    limit: Array
    """int32 scalar: new tokens at most."""
    forced: Array
    """int32 [2]: the token that each row begins with and the one that its last column gets; -1 for none."""


@struct.dataclass
class State:
    """Decoding between two tokens; N columns are room, not a limit."""

    cache: Cache
    tokens: Array
    """int32 [B, N], pad where nothing stands yet."""
    scores: Array
    """float32 [B, N]."""
    lengths: Array
    """int32 [B]."""
    done: Array
    """bool [B]."""
    last: Array
    """int32 [B]: the newest tokens, which the model has not seen yet."""
    step: Array
    """int32 scalar: the columns that are filled."""


@struct.dataclass
class Request:
    """All that a compiled step needs beside the state: an argument, traced."""

    variables: dict[str, Any]
    strategy: Strategy
    stop: Stop
    key: Array


def generate(
    model: Model,
    params: Any,
    tokens: prompts.Prompts,
    max_new_tokens: int,
    mask: Any = None,
    strategy: Strategy = Greedy(),
    eos: int | Sequence[int] | None = None,
    pad: int | None = None,
    decoder_tokens: Any = None,
    samples: int = 1,
    key: Array | None = None,
    adapter: Any = None,
) -> Generated:
    """Continue prompts until each row has met an eos, or holds `max_new_tokens` new tokens.

    With an encoder, `tokens` are what it reads, and what is continued are `decoder_tokens` (lists of ids or an
    array without padding); None is the card's decoder_start token for each row.

    `tokens`: lists of ids, or an integer array [B, T] whose `mask` [B, T] is False on padding, on either
    side. `eos`: the ids that end a row; None takes those of the model's card, `()` never stops. `pad`: None
    takes the card's, else the first eos, else 0. `samples`: rows made of each prompt. `key`: a jax key; None
    draws a fresh one from the system, and reports it. `adapter`: the collection "lora" (nn/linear.py).

    Raises ValueError, before any work, for prompts that are empty, hold ids that the model does not know, or
    do not fit its positions together with the new tokens, and for numbers out of their range.
    """
    state, request = start(
        model, params, tokens, max_new_tokens, mask, strategy, eos, pad, decoder_tokens, samples, key, adapter
    )
    state = steps(model, state, request, np.int32(max_new_tokens))
    new = slice(None), slice(max_new_tokens)
    return Generated(
        np.asarray(state.tokens)[new], np.asarray(state.lengths), np.asarray(state.scores)[new], request.key
    )


def start(
    model: Model,
    params: Any,
    tokens: prompts.Prompts,
    max_new_tokens: int,
    mask: Any,
    strategy: Strategy,
    eos: int | Sequence[int] | None,
    pad: int | None,
    decoder_tokens: Any,
    samples: int,
    key: Array | None,
    adapter: Any,
) -> tuple[State, Request]:
    """Arguments of `generate`, checked -> the state after its first token, and what the next steps need."""
    read, rows = prompts.read_and_continued(model, prompts.rows_of(tokens, mask), decoder_tokens)
    prompts.check(model, read, rows, max_new_tokens, samples)
    strategy = strategy.checked()
    ids = np.asarray(model.card.special("eos") if eos is None else eos, np.int32).reshape(-1)
    if pad is None:
        pad = next(iter((*model.card.special("pad"), *ids)), 0)
    first = model.card.special("forced_bos") if max(map(len, rows)) == 1 else ()
    forced = [next(iter(ids), -1) for ids in (first, model.card.special("forced_eos"))]
    request = Request(
        prompts.per_layer({"params": params} | ({} if adapter is None else {"lora": adapter})),
        strategy,
        Stop(ids, np.int32(pad), np.int32(max_new_tokens), np.array(forced, np.int32)),
        jax.random.key(secrets.randbits(31)) if key is None else key,
    )
    room = prompts.bucket(max_new_tokens)
    source = None if read is None else prompts.right_aligned(read)
    return prefill(model, source, *prompts.right_aligned(rows), request, room, samples), request


@functools.partial(jax.jit, static_argnames=("model", "room", "samples"))
def prefill(
    model: Model,
    source: tuple[Array, Array] | None,
    tokens: Array,
    mask: Array,
    request: Request,
    room: int,
    samples: int,
) -> State:
    """Read the prompts [B, T] in one pass, make `samples` rows of each with `room` for N tokens, draw the first.

    `source`: what an encoder reads and its mask, each [B, S].
    """
    batch, length = tokens.shape
    listed = isinstance(request.variables["params"]["decoder"]["blocks"], list)
    cache = model.empty_cache(
        batch, length, listed=listed, encoder_length=0 if source is None else source[0].shape[1]
    )
    encoded = {}
    if source is not None:
        hidden = model.apply(request.variables, source[0], mask=source[1], method="encode")
        encoded = {"encoder_hidden": hidden, "encoder_mask": source[1]}
    out = model.apply(request.variables, tokens, mask=mask, cache=cache, **encoded, method="decode")
    logits_BV = model.apply(request.variables, out.hidden[:, -1], method="unembed")
    rows = batch * samples
    state = State(
        cache=out.cache.repeated(samples).grown(length + room),
        tokens=jnp.full((rows, room), request.stop.pad),
        scores=jnp.zeros((rows, room), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        done=jnp.zeros(rows, bool),
        last=jnp.zeros(rows, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )
    return take(state, jnp.repeat(logits_BV, samples, axis=0, total_repeat_length=rows), request)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def steps(model: Model, state: State, request: Request, limit: Array) -> State:
    """Decode until `limit` columns are filled, or every row is done."""

    def going(state: State) -> Array:
        return (state.step < limit) & ~jnp.all(state.done)

    def step(state: State) -> State:
        out = model.apply(request.variables, state.last[:, None], cache=state.cache, method="decode")
        logits_BV = model.apply(request.variables, out.hidden[:, -1], method="unembed")
        return take(state.replace(cache=out.cache), logits_BV, request)  # type: ignore[attr-defined]

    return lax.while_loop(going, step, state)


def take(state: State, logits_BV: Array, request: Request) -> State:
    """The state with one more column: the token that the strategy picks, in each row that goes on."""
    token_B = request.strategy(jax.random.fold_in(request.key, state.step), logits_BV)
    for id, column in zip(request.stop.forced, (0, request.stop.limit - 1), strict=True):
        token_B = jnp.where((state.step == column) & (id >= 0), id, token_B)
    going_B = ~state.done
    columns = {
        "tokens": jnp.where(going_B, token_B, request.stop.pad),
        "scores": jnp.where(going_B, log_probability(logits_BV, token_B), 0.0),
    }
    ended_B = jnp.any(token_B[:, None] == request.stop.eos[None, :], axis=1)
    return state.replace(  # type: ignore[attr-defined]
        **{
            name: lax.dynamic_update_slice(getattr(state, name), new_B[:, None], (0, state.step))
            for name, new_B in columns.items()
        },
        lengths=state.lengths + going_B,
        done=state.done | ended_B,
        last=token_B,
        step=state.step + 1,
    )
