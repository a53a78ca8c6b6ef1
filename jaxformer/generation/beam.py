"""Beam search: several continuations of a prompt at once, of which the likeliest whole one is kept.

B prompts, W beams of each, R = B * W rows, K candidates of a prompt, N columns, V vocabulary. Candidates, ends and
ranks are those of the reference implementation.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from jaxformer.generation import process
from jaxformer.generation.prefill import Prefilled
from jaxformer.generation.process import History, Processor
from jaxformer.generation.request import Request
from jaxformer.nn.cache import Cache
from jaxformer.nn.model import Model


@struct.dataclass
class Beam:
    """Carry on the `width` likeliest continuations of each prompt, and keep as many that have ended.

    Those that ended are ranked by the sum of their log-probabilities / length ** length_penalty, the eos counted
    and forced tokens taken as certain. `samples` of `generate`, at most `width`, are the best of them.
    """

    width: int = struct.field(pytree_node=False, default=4)
    length_penalty: float | Array = 1.0
    """0 ranks by the sum, 1 by the mean; the larger, the longer are the continuations that win."""
    early_stopping: bool | Literal["never"] = struct.field(pytree_node=False, default=False)
    """When a prompt's search ends, once `width` continuations have. True: at once. False: when the best that goes
    on is not above the worst of them at its present length. "never": when it is not at the best length it may get.
    """
    processors: Sequence[Processor] = ()
    """What changes log-probabilities before the beams are ranked by them."""

    def checked(self) -> "Beam":
        """The same with its number as an array; raises one ValueError that lists all that is out of its range."""
        wrong = []
        if self.width != int(self.width) or self.width < 1:
            wrong.append(f"width is {self.width}: give the number of beams, at least 1")
        if not np.isfinite(self.length_penalty):
            wrong.append(f"length_penalty is {self.length_penalty}: give a number, 0 for none")
        if self.early_stopping not in (True, False, "never"):
            wrong.append(f'early_stopping is {self.early_stopping!r}: give True, False or "never"')
        if wrong:
            raise ValueError("this strategy cannot search:\n" + "\n".join(f"  - {line}" for line in wrong))
        rule = self.early_stopping if self.early_stopping == "never" else bool(self.early_stopping)
        return Beam(int(self.width), np.float32(self.length_penalty), rule)

    def rows(self, samples: int, whole: bool) -> int:
        """Rows that a prompt takes while it is decoded, whose `samples` best are asked for.

        Raises ValueError where these are more, and where tokens are wanted before the `whole` is known.
        """
        if not whole:
            raise ValueError("beam search knows its tokens only at the end, and cannot be streamed: call generate")
        if samples > self.width:
            raise ValueError(f"samples is {samples}: of {self.width} beams give at most {self.width}, or widen them")
        return self.width


@struct.dataclass
class Hypotheses:
    """W continuations of each prompt."""

    tokens: Array
    """int32 [B, W, N], pad behind the end."""
    scores: Array
    """float32 [B, W, N]: log-probability of each token under the model, 0 behind the end."""
    lengths: Array
    """int32 [B, W]."""
    ranks: Array
    """float32 [B, W]: the larger the better; -inf where there is no hypothesis."""
    alternatives: None = struct.field(pytree_node=False, default=None)

    def picked(self, index_BK: Array) -> "Hypotheses":
        """K of each prompt's W."""

        def pick(leaf: Array) -> Array:
            return jnp.take_along_axis(leaf, index_BK.reshape(index_BK.shape + (1,) * (leaf.ndim - 2)), axis=1)

        return jax.tree.map(pick, self)

    def written(self, step: Array, token_BW: Array, score_BW: Array, rank_BW: Array) -> "Hypotheses":
        """Each with a token in column `step`."""

        def put(leaf: Array, new_BW: Array) -> Array:
            return lax.dynamic_update_slice(leaf, new_BW[:, :, None], (0, 0, step))

        tokens, scores = put(self.tokens, token_BW), put(self.scores, score_BW)
        return Hypotheses(tokens, scores, jnp.full_like(token_BW, step + 1), rank_BW)


@struct.dataclass
class Search:
    """Beam search between two tokens."""

    cache: Cache
    """Of R rows, a prompt's beams side by side, in the order of the step before."""
    rows: Array
    """int32 [R]: the row of the cache that each beam has come from."""
    running: Hypotheses
    """What goes on, best first; all have `step` tokens."""
    finished: Hypotheses
    """The best that have ended, best first."""
    memory: tuple[Any, ...]
    """What each processor remembers, of R rows in the order of `running`."""
    done: Array
    """bool [B]: nothing can enter `finished` any more."""
    last: Array
    """int32 [R]: the newest tokens, which the model has not seen yet."""
    step: Array
    """int32 scalar: the columns that are filled."""

    def reordered(self) -> Cache:
        """The cache with each row's past in it; of the prompt's slots all beams have the same."""
        return self.cache.gathered(self.rows, self.cache.slots - self.running.tokens.shape[2])

    def best(self, count: int) -> Hypotheses:
        """The `count` best of each prompt that have ended, on the host, without the axis W: rows side by side."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:, :count].reshape(-1, *leaf.shape[2:]), self.finished)


def begin(model: Model, prefilled: Prefilled, request: Request) -> Search:
    """The search after its first token; of equal beams only the first one counts."""
    rows, room, width = prefilled.logits.shape[0], prefilled.plan.room, prefilled.plan.copies
    batch, step = rows // width, jnp.zeros((), jnp.int32)
    none = Hypotheses(
        tokens=jnp.full((batch, width, room), request.pad),
        scores=jnp.zeros((batch, width, room), jnp.float32),
        lengths=jnp.zeros((batch, width), jnp.int32),
        ranks=jnp.full((batch, width), -jnp.inf, jnp.float32),
    )
    search = Search(
        cache=prefilled.cache,
        rows=jnp.arange(rows, dtype=jnp.int32),
        running=dataclasses.replace(none, ranks=none.ranks.at[:, 0].set(0)),
        finished=none,
        memory=process.begun(request.processors, request.history(none.tokens.reshape(rows, room), step)),
        done=jnp.zeros(batch, bool),
        last=jnp.zeros(rows, jnp.int32),
        step=step,
    )
    return take(search, prefilled.logits, request)


def step(model: Model, search: Search, request: Request) -> Search:
    """The search after one more token."""
    out = model.apply(request.variables, search.last[:, None], cache=search.reordered(), method="decode")
    logits_RV = model.apply(request.variables, out.hidden[:, -1], method="unembed")
    return take(dataclasses.replace(search, cache=out.cache), logits_RV, request)


def take(search: Search, logits_RV: Array, request: Request) -> Search:
    """The search with one more column."""
    strategy, limit = request.strategy, request.limit
    batch, width, _ = search.running.tokens.shape
    candidates, parent_BK = _candidates(search, logits_RV, request)
    token_BK = lax.dynamic_index_in_dim(candidates.tokens, search.step, axis=2, keepdims=False)
    row_BK = parent_BK + width * jnp.arange(batch, dtype=jnp.int32)[:, None]
    states = process.rows(search.memory, row_BK.reshape(-1))
    states, ends = process.advanced(request.processors, states, token_BK.reshape(-1), request.eos)
    length = search.step + 1
    ended_BK = ends.reshape(token_BK.shape) | (length == limit)

    rank_BW, going_BW = lax.top_k(jnp.where(ended_BK, -jnp.inf, candidates.ranks), width)
    running = dataclasses.replace(candidates.picked(going_BW), ranks=rank_BW)

    # A candidate behind the width-th is there to go on in place of one that ended, and may not end itself.
    enters_BK = ended_BK & (jnp.arange(ended_BK.shape[1]) < width)[None, :] & ~search.done[:, None]
    rank_BK = jnp.where(enters_BK, candidates.ranks / length**strategy.length_penalty, -jnp.inf)
    both = jax.tree.map(
        lambda *pair: jnp.concatenate(pair, axis=1),
        search.finished,
        dataclasses.replace(candidates, ranks=rank_BK),
    )
    finished = both.picked(lax.top_k(both.ranks, width)[1])

    kept = ended_BK.shape[1] * jnp.arange(batch, dtype=jnp.int32)[:, None]
    return Search(
        cache=search.cache,
        rows=jnp.take_along_axis(row_BK, going_BW, axis=1).reshape(-1),
        running=running,
        finished=finished,
        memory=process.rows(states, (going_BW + kept).reshape(-1)),
        done=search.done | _over(running.ranks[:, 0], finished.ranks[:, -1], strategy, length, limit),
        last=jnp.take_along_axis(token_BK, going_BW, axis=1).reshape(-1),
        step=length,
    )


def _candidates(search: Search, logits_RV: Array, request: Request) -> tuple[Hypotheses, Array]:
    """(the K likeliest continuations by one token, best first, ranked by their sums; the beam each came from).

    K leaves W that go on, however many of the best have ended by one of the ids that end a row.
    """
    batch, width, room = search.running.tokens.shape
    vocab, ends = logits_RV.shape[-1], request.eos.size
    score_RV = jax.nn.log_softmax(logits_RV)
    history: History = request.history(search.running.tokens.reshape(-1, room), search.step)
    changed_RV = process.processed(request.processors, score_RV, history, search.memory)
    sum_RV = changed_RV + search.running.ranks.reshape(-1, 1)
    kept = width * min(max(2, 1 + ends), vocab)
    rank_BK, flat_BK = lax.top_k(sum_RV.reshape(batch, width * vocab), kept)
    parent_BK, token_BK = flat_BK // vocab, flat_BK % vocab
    score_BK = jnp.take_along_axis(score_RV.reshape(batch, width * vocab), flat_BK, axis=1)
    return search.running.picked(parent_BK).written(search.step, token_BK, score_BK, rank_BK), parent_BK


def _over(best_B: Array, worst_B: Array, strategy: Beam, length: Array, limit: Array) -> Array:
    """Where what goes on, its best sum `best_B`, may not displace the worst of W that have ended: bool [B].

    `worst_B` is -inf where fewer than W have ended, `best_B` where nothing goes on.
    """
    if strategy.early_stopping == "never":
        length = jnp.where(strategy.length_penalty > 0, limit, length)
    over_B = ~(best_B / length**strategy.length_penalty > worst_B)
    return over_B | (worst_B > -jnp.inf) if strategy.early_stopping is True else over_B
