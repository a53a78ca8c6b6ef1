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

from jaxformer.generation import beam, prompts
from jaxformer.generation.beam import Beam, Search
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
    ranks: np.ndarray | None = None
    """float32 [B]: what beam search ranked the rows of a prompt by, best first; None without it.

    -inf, at length 0, where fewer than `samples` continuations were possible."""


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

    def forced_at(self, step: Array) -> Array:
        """int32 scalar: the token that column `step` must get, -1 for none."""
        first, final = self.forced
        return jnp.where((step == self.limit - 1) & (final >= 0), final, jnp.where(step == 0, first, -1))


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
    strategy: Strategy | Beam
    stop: Stop
    key: Array


def generate(
    model: Model,
    params: Any,
    tokens: prompts.Prompts,
    max_new_tokens: int,
    mask: Any = None,
    strategy: Strategy | Beam = Greedy(),
    eos: int | Sequence[int] | None = None,
    pad: int | None = None,
    decoder_tokens: Any = None,
    samples: int = 1,
    key: Array | None = None,
    adapter: Any = None,
    prefix: bool = False,
) -> Generated:
    """Continue prompts until each row has met an eos, or holds `max_new_tokens` new tokens.

    With an encoder, `tokens` are what it reads, and what is continued are `decoder_tokens` (lists of ids or an
    array without padding); None is the card's decoder_start token for each row.

    `tokens`: lists of ids, or an integer array [B, T] whose `mask` [B, T] is False on padding, on either
    side. `eos`: the ids that end a row; None takes those of the model's card, `()` never stops. `pad`: None
    takes the card's, else the first eos, else 0. `samples`: rows made of each prompt, of a beam search the best.
    `key`: a jax key; None draws a fresh one from the system, and reports it. `adapter`: the collection "lora"
    (nn/linear.py). `prefix`: a decoder's prompt is read in both directions, for models that were trained so (prefix
    language models: Raffel et al., 2020, section 3.2.1).

    Raises ValueError, before any work, for prompts that are empty, hold ids that the model does not know, or
    do not fit its positions together with the new tokens, and for numbers out of their range.
    """
    given = mask, strategy, eos, pad, decoder_tokens, samples, key, adapter, prefix
    state, request = start(model, params, tokens, max_new_tokens, *given, whole=True)
    state = steps(model, state, request, np.int32(max_new_tokens))
    found, ranks = state, None
    if isinstance(state, Search):
        found = state.best(samples)
        ranks = found.ranks
    new = slice(None), slice(max_new_tokens)
    return Generated(
        np.asarray(found.tokens)[new], np.asarray(found.lengths), np.asarray(found.scores)[new], request.key, ranks
    )


def start(
    model: Model,
    params: Any,
    tokens: prompts.Prompts,
    max_new_tokens: int,
    mask: Any,
    strategy: Strategy | Beam,
    eos: int | Sequence[int] | None,
    pad: int | None,
    decoder_tokens: Any,
    samples: int,
    key: Array | None,
    adapter: Any,
    prefix: bool = False,
    whole: bool = False,
) -> tuple[State | Search, Request]:
    """Arguments of `generate`, checked -> the state after its first token, and what the next steps need.

    `whole`: nobody looks at tokens before the end, where alone a beam search knows them.
    """
    read, rows = prompts.read_and_continued(model, prompts.rows_of(tokens, mask), decoder_tokens)
    prompts.check(model, read, rows, max_new_tokens, samples)
    if prefix and read is not None:
        raise ValueError("prefix is for a decoder alone: what this model reads in both directions is its encoder's")
    strategy, copies = strategy.checked(), samples
    if isinstance(strategy, Beam):
        copies = strategy.rows(samples, whole)
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
    return prefill(model, source, *prompts.right_aligned(rows), request, room, copies, prefix), request


@functools.partial(jax.jit, static_argnames=("model", "room", "copies", "prefix"))
def prefill(
    model: Model,
    source: tuple[Array, Array] | None,
    tokens: Array,
    mask: Array,
    request: Request,
    room: int,
    copies: int,
    prefix: bool,
) -> State | Search:
    """Read the prompts [B, T] in one pass, make `copies` rows of each with `room` for N tokens, draw the first.

    `source`: what an encoder reads and its mask, each [B, S]. `prefix`: the tokens of a prompt all see each other.
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
    encoded |= {"prefix": mask} if prefix else {}
    out = model.apply(request.variables, tokens, mask=mask, cache=cache, **encoded, method="decode")
    logits_BV = model.apply(request.variables, out.hidden[:, -1], method="unembed")
    rows = batch * copies
    cache = out.cache.repeated(copies).grown(length + room)
    logits_BV = jnp.repeat(logits_BV, copies, axis=0, total_repeat_length=rows)
    if isinstance(request.strategy, Beam):
        return take(beam.begin(cache, copies, room, request.stop.pad), logits_BV, request)
    state = State(
        cache=cache,
        tokens=jnp.full((rows, room), request.stop.pad),
        scores=jnp.zeros((rows, room), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        done=jnp.zeros(rows, bool),
        last=jnp.zeros(rows, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )
    return take(state, logits_BV, request)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def steps(model: Model, state: State | Search, request: Request, limit: Array) -> State | Search:
    """Decode until `limit` columns are filled, or every row is done."""

    def going(state: State | Search) -> Array:
        return (state.step < limit) & ~jnp.all(state.done)

    def step(state: State | Search) -> State | Search:
        cache = state.reordered() if isinstance(state, Search) else state.cache
        out = model.apply(request.variables, state.last[:, None], cache=cache, method="decode")
        logits_BV = model.apply(request.variables, out.hidden[:, -1], method="unembed")
        return take(state.replace(cache=out.cache), logits_BV, request)

    return lax.while_loop(going, step, state)


def take(state: State | Search, logits_BV: Array, request: Request) -> State | Search:
    """The state with one more column: the token that the strategy picks, in each row that goes on."""
    stop, strategy, forced = request.stop, request.strategy, request.stop.forced_at(state.step)
    if isinstance(strategy, Beam):
        return beam.take(state, logits_BV, strategy, stop.eos, forced, stop.limit)
    token_B = strategy(jax.random.fold_in(request.key, state.step), logits_BV)
    token_B = jnp.where(forced >= 0, forced, token_B)
    going_B = ~state.done
    columns = {
        "tokens": jnp.where(going_B, token_B, stop.pad),
        "scores": jnp.where(going_B, log_probability(logits_BV, token_B), 0.0),
    }
    ended_B = jnp.any(token_B[:, None] == stop.eos[None, :], axis=1)
    return state.replace(
        **{
            name: lax.dynamic_update_slice(getattr(state, name), new_B[:, None], (0, state.step))
            for name, new_B in columns.items()
        },
        lengths=state.lengths + going_B,
        done=state.done | ended_B,
        last=token_B,
        step=state.step + 1,
    )
