"""Guess several tokens, look at all of them in one pass, keep those that the model itself could have picked.

"Fast Inference from Transformers via Speculative Decoding" (Leviathan et al., 2023), algorithm 1: what comes out is
distributed as if the model had picked each token itself, whatever the guesses. R rows, K guesses, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from jaxformer.generation import draw, layout
from jaxformer.generation.prefill import Prefilled, read
from jaxformer.generation.process import History, Processor
from jaxformer.generation.request import Request
from jaxformer.generation.sample import Greedy, Sample, drawn
from jaxformer.nn.cache import Cache
from jaxformer.nn.model import Model

GUESSES = 1 << 30
"""The stream of keys for guesses, behind any column's."""


@struct.dataclass
class Lookup:
    """Guess what followed the newest tokens where prompt or answer had them before (Saxena, 2023).

    Pays where answers repeat what they speak of: summaries, edits, code.
    """

    base: Greedy | Sample = Greedy()
    """How the model picks tokens, and its processors."""
    count: int = struct.field(pytree_node=False, default=7)
    """Tokens that are guessed at a time."""
    ngram: int = struct.field(pytree_node=False, default=3)
    """The most of the newest tokens that are looked for; where they are not found, fewer are."""

    @property
    def processors(self) -> Sequence[Processor]:
        """Those of how the model picks."""
        return self.base.processors

    def checked(self) -> "Lookup":
        """The same with numbers as arrays; raises ValueError for those that are out of their range."""
        _whole(self.count, "count", "tokens to guess")
        _whole(self.ngram, "ngram", "tokens to look for")
        return dataclasses.replace(self, base=_base(self.base))

    def begin(self, prefilled: Prefilled, request: Request) -> None:
        """It needs no memory but the text."""

    def guess(self, memory: None, last: Array, history: History, key: Array) -> tuple[None, Array, None]:
        """(memory, int32 [R, K], None: they are certain) behind what stands."""
        tokens_RS = jnp.pad(history.tokens(), ((0, 0), (0, self.count)), constant_values=-1)
        length = tokens_RS.shape[1] - self.count
        end = history.prompt.shape[1] + history.step
        best_R = jnp.full(tokens_RS.shape[0], -1)
        for size in range(self.ngram, 0, -1):
            tail_RM = history.last(size)
            same_RS = jnp.all(tail_RM >= 0, axis=1, keepdims=True) & (jnp.arange(length) + size < end)[None, :]
            for i in range(size):
                same_RS &= jnp.roll(tokens_RS, -i, axis=1)[:, :length] == tail_RM[:, i : i + 1]
            place_R = jnp.max(jnp.where(same_RS, jnp.arange(length)[None, :] + size, -1), axis=1)
            best_R = jnp.where(best_R < 0, place_R, best_R)
        found_RK = jnp.take_along_axis(tokens_RS, best_R[:, None] + jnp.arange(self.count)[None, :], axis=1)
        return memory, jnp.where((best_R[:, None] >= 0) & (found_RK >= 0), found_RK, last[:, None]), None


@struct.dataclass
class Draft:
    """Guess with a smaller model of the same vocabulary."""

    model: Model = struct.field(pytree_node=False)
    params: Any
    base: Greedy | Sample = Greedy()
    """How both models pick tokens, and the processors of the large one."""
    count: int = struct.field(pytree_node=False, default=4)
    """Tokens that are guessed at a time."""

    @property
    def processors(self) -> Sequence[Processor]:
        """Those of how the model picks."""
        return self.base.processors

    def checked(self) -> "Draft":
        """The same with numbers as arrays; raises ValueError for those that are out of their range."""
        _whole(self.count, "count", "tokens to guess")
        return dataclasses.replace(self, base=_base(self.base), params=layout.per_layer({"params": self.params}))

    def begin(self, prefilled: Prefilled, request: Request) -> Cache:
        """What the small model remembers of the prompts; raises ValueError where it has another vocabulary."""
        known, large = self.model.config.vocab, prefilled.logits.shape[-1]
        if known != large:
            raise ValueError(
                f"the model that guesses knows {known} tokens and the other {large}: give one with as many"
            )
        return read(self.model, self.params, prefilled.source, request, prefilled.plan).cache

    def guess(self, memory: Cache, last: Array, history: History, key: Array) -> tuple[Cache, Array, Array]:
        """(its cache with K + 1 more tokens, int32 [R, K], log-probabilities [R, K, V] that they were drawn by)."""
        position_RT = positions(memory, history, self.count + 1)

        def one(
            carry: tuple[Cache, Array], given: tuple[Array, Array]
        ) -> tuple[tuple[Cache, Array], tuple[Array, Array]]:
            (cache, token_R), (key, position_R) = carry, given
            place = {"positions": position_R[:, None], "cache": cache}
            out = self.model.apply(self.params, token_R[:, None], **place, method="decode")
            logits_RV = self.model.apply(self.params, out.hidden[:, -1], method="unembed")
            log_q_RV = self.base.log_probabilities(logits_RV)
            token_R = drawn(key, log_q_RV)
            return (out.cache, token_R), (token_R, log_q_RV)

        keys = jax.random.split(key, self.count + 1)  # the last guess is drawn for nothing, and read for its keys
        (cache, _), (token_KR, log_q_KRV) = lax.scan(one, (memory, last), (keys, position_RT.T))
        return cache, token_KR[:-1].T, log_q_KRV[:-1].swapaxes(0, 1)


@struct.dataclass
class Speculation(draw.State):
    """Decoding between two passes."""

    guesser: Any
    """What makes the guesses remembers."""
    passes: Array
    """int32 scalar: of the model, behind the prompts'."""


def begin(model: Model, prefilled: Prefilled, request: Request) -> Speculation:
    """The state after the first token, which the model picks by itself."""
    state = draw.take(draw.empty(prefilled, request), prefilled.logits, request, request.strategy.base)
    guesser = request.strategy.begin(prefilled, request)
    return draw.extended(state, Speculation, guesser=guesser, passes=jnp.zeros((), jnp.int32))


def step(model: Model, state: Speculation, request: Request) -> Speculation:
    """The state after one more pass, with 1 to K + 1 more columns: as many as every row that goes on can fill."""
    guess_key = jax.random.fold_in(jax.random.fold_in(request.key, GUESSES), state.step)
    history = request.history(state.tokens, state.step)
    guesser, guess_RK, log_q_RKV = request.strategy.guess(state.guesser, state.last, history, guess_key)
    read_RT = jnp.concatenate([state.last[:, None], guess_RK], axis=1)
    place = {"positions": positions(state.cache, history, read_RT.shape[1]), "cache": state.cache}
    out = model.apply(request.variables, read_RT, **place, method="decode")
    logits_RTV = model.apply(request.variables, out.hidden, method="unembed")
    bare = dataclasses.replace(state, cache=None, guesser=None)
    after, kept = judged(bare, request, guess_RK, log_q_RKV, logits_RTV)
    end = state.cache.end + kept
    guesser = guesser.shortened(end) if isinstance(guesser, Cache) else guesser
    return dataclasses.replace(after, cache=out.cache.shortened(end), guesser=guesser, passes=state.passes + 1)


def positions(cache: Cache, history: History, count: int) -> Array:
    """int32 [R, T] of the next tokens; of those behind the limit, whose columns never stay, that of the last."""
    ahead_T = jnp.minimum(jnp.arange(count), history.limit - history.step - 1)
    return jnp.sum(cache.valid, axis=1, dtype=jnp.int32)[:, None] + ahead_T[None, :]


def judged(
    state: Speculation, request: Request, guess_RK: Array, log_q_RKV: Array | None, logits_RTV: Array
) -> tuple[Speculation, Array]:
    """(the state with the columns that stay, how many these are), without caches; T = K + 1 columns are tried.

    A column stays where each row has ended before it, or has had all guesses before it accepted.
    """
    rows, count = guess_RK.shape

    def column(carry: Any, tried: Any) -> Any:
        state, stays_R, accepted_R = carry
        guess_R, log_q_RV, logits_RV, guessed = tried
        stays_R &= accepted_R | state.done
        judge = functools.partial(pick, request.strategy.base, guess_R, log_q_RV, guessed)
        state = draw.take(state, logits_RV, request, judge)
        accepted_R &= (state.last == guess_R) & guessed
        return (state, stays_R, accepted_R), ((state.lengths, state.done, state.last, state.memory), stays_R)

    tried = (
        jnp.pad(guess_RK, ((0, 0), (0, 1))).T,
        None if log_q_RKV is None else jnp.pad(log_q_RKV.swapaxes(0, 1), ((0, 1), (0, 0), (0, 0))),
        logits_RTV.swapaxes(0, 1),
        jnp.arange(count + 1) < count,
    )
    first = state, jnp.ones(rows, bool), jnp.ones(rows, bool)
    (after, _, _), (each, stays_TR) = lax.scan(column, first, tried)
    kept = jnp.minimum(jnp.sum(jnp.all(stays_TR, axis=1), dtype=jnp.int32), request.limit - state.step)
    lengths, done, last, memory = jax.tree.map(lambda leaf: leaf[kept - 1], each)
    filled_N = jnp.arange(state.tokens.shape[1]) < state.step + kept

    def blanked(leaf: Array, blank: Array | int) -> Array:
        return jnp.where(filled_N.reshape(-1, *(1,) * (leaf.ndim - 2)), leaf, blank)

    return dataclasses.replace(
        after,
        tokens=blanked(after.tokens, request.pad),
        scores=blanked(after.scores, 0),
        alternatives=jax.tree.map(lambda leaf: blanked(leaf, 0), after.alternatives),
        lengths=lengths,
        done=done,
        last=last,
        memory=memory,
        step=state.step + kept,
    ), kept


def pick(
    base: Greedy | Sample, guess_R: Array, log_q_RV: Array | None, guessed: Array, key: Array, logits_RV: Array
) -> Array:
    """The guess where it is accepted, else a token of what the model's distribution holds beyond the guesses'.

    `guessed` False: there is no guess for this column. A token that is not the guess was never an accepted one.
    """
    log_p_RV = base.log_probabilities(logits_RV)
    accept_key, draw_key = jax.random.split(key)
    is_guess_RV = jnp.arange(logits_RV.shape[-1])[None, :] == guess_R[:, None]
    at_guess = lambda x_RV: jnp.take_along_axis(x_RV, guess_R[:, None], axis=1)[:, 0]
    if log_q_RV is None:
        rest_RV, log_q_R = jnp.where(is_guess_RV, -jnp.inf, log_p_RV), jnp.zeros_like(guess_R, jnp.float32)
    else:
        rest_RV = jnp.log(jnp.maximum(jnp.exp(log_p_RV) - jnp.exp(log_q_RV), 0.0))
        log_q_R = at_guess(log_q_RV)
    log_u_R = jnp.log(jax.random.uniform(accept_key, guess_R.shape))
    accepted_R = guessed & (log_u_R < at_guess(log_p_RV) - log_q_R)
    rest_RV = jnp.where(guessed, rest_RV, log_p_RV)
    return jnp.where(accepted_R, guess_R, drawn(draw_key, rest_RV))


def _base(base: Greedy | Sample) -> Greedy | Sample:
    if not isinstance(base, Greedy | Sample):
        raise ValueError(f"guesses are judged by Greedy or Sample, got {type(base).__name__} as base")
    return base.checked()


def _whole(value: int, name: str, what: str) -> None:
    if value != int(value) or value < 1:
        raise ValueError(f"{name} is {value}: give the number of {what}, at least 1")
