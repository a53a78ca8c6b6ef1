"""Beam search: several continuations of a prompt at once, of which the likeliest whole one is kept.

B searches, one for each group of a prompt's beams, of W beams, R = B * W rows, K candidates of each, N columns,
V vocabulary. Candidates, ends and ranks are those of the reference implementation, but where phrases are asked for.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from jaxformer import distributed
from jaxformer.generation import phrases, process
from jaxformer.generation.phrases import Phrase
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
    groups: int = struct.field(pytree_node=False, default=1)
    """Searches of width / groups beams each, which differ: "Diverse Beam Search" (Vijayakumar et al., 2016)."""
    diversity_penalty: float | Array = 0.5
    """Taken from a token's log-probability, and so from the rank, for each beam of an earlier group that goes on by
    it in the same column; without effect on one group."""
    phrases: Sequence[Phrase] = ()
    """What each continuation must hold, behind the prompt: ids, or several lists of ids of which any will do, or what
    `constrain.containing` makes of text. As many new tokens as the shortest of each have together are enough for one
    continuation that does; give more beams than that, or the phrases come first and the rest behind."""

    def checked(self) -> "Beam":
        """The same with numbers as arrays, phrases as automata; one ValueError lists all that is wrong."""
        wrong = []
        if self.width != int(self.width) or self.width < 1:
            wrong.append(f"width is {self.width}: give the number of beams, at least 1")
        if not np.isfinite(self.length_penalty):
            wrong.append(f"length_penalty is {self.length_penalty}: give a number, 0 for none")
        if self.early_stopping not in (True, False, "never"):
            wrong.append(f'early_stopping is {self.early_stopping!r}: give True, False or "never"')
        if self.groups != int(self.groups) or self.groups < 1 or self.width % self.groups:
            wrong.append(f"groups is {self.groups}: give a number that divides the width, {self.width}")
        if self.groups > 1 and not 0 < self.diversity_penalty < np.inf:
            wrong.append(f"diversity_penalty is {self.diversity_penalty}: give a number above 0, or groups are alike")
        automata: Sequence[Phrase] = ()
        try:
            automata = phrases.checked(self.phrases)
        except ValueError as error:
            wrong.append(str(error))
        if wrong:
            raise ValueError("this strategy cannot search:\n" + "\n".join(f"  - {line}" for line in wrong))
        rule = self.early_stopping if self.early_stopping == "never" else bool(self.early_stopping)
        numbers = np.float32(self.length_penalty), rule, (), int(self.groups), np.float32(self.diversity_penalty)
        return Beam(int(self.width), *numbers, automata)

    def planned(self, vocab: int, ends: np.ndarray) -> "Beam":
        """For a model of `vocab` ids, of which `ends` end a row.

        Raises ValueError for phrases that it cannot write.
        """
        return dataclasses.replace(self, phrases=phrases.planned(self.phrases, vocab, ends) if self.phrases else ())

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
class Beams:
    """B searches between two tokens, without the model's part."""

    rows: Array
    """int32 [R]: the row of the cache that each beam has come from."""
    running: Hypotheses
    """What goes on, first what the next step would keep; all have as many tokens."""
    finished: Hypotheses
    """The best that have ended, best first."""
    memory: tuple[Any, ...]
    """What each processor remembers, of R rows in the order of `running`."""
    progress: tuple[Array, ...]
    """Where each phrase stands, as `memory`."""
    done: Array
    """bool [B]: nothing can enter `finished` any more."""
    last: Array
    """int32 [R]: the newest tokens, which the model has not seen yet."""


@struct.dataclass
class Search:
    """Beam search between two tokens."""

    cache: Cache
    """Of R rows, a prompt's beams side by side, in the order of the step before."""
    beams: Beams
    step: Array
    """int32 scalar: the columns that are filled."""

    @property
    def done(self) -> Array:
        """Bool [B]: what needs no further step."""
        return self.beams.done

    def reordered(self) -> Cache:
        """The cache with each row's past in it; of the prompt's slots all beams have the same."""
        return self.cache.gathered(self.beams.rows, self.cache.slots - self.beams.running.tokens.shape[2])

    def best(self, count: int, width: int) -> Hypotheses:
        """The `count` best that have ended of each prompt's `width` beams, on the host: rows side by side."""
        finished = jax.tree.map(
            lambda leaf: distributed.read(leaf).reshape(-1, width, *leaf.shape[2:]), self.beams.finished
        )
        order = np.argsort(-finished.ranks, axis=1, kind="stable")[:, :count]
        chosen = np.arange(len(order))[:, None], order
        return jax.tree.map(lambda leaf: leaf[chosen].reshape(-1, *leaf.shape[2:]), finished)


def begin(model: Model, prefilled: Prefilled, request: Request) -> Search:
    """The search after its first token; of equal beams only the first one counts."""
    rows, room, strategy = prefilled.logits.shape[0], prefilled.plan.room, request.strategy
    width, step = prefilled.plan.copies // strategy.groups, jnp.zeros((), jnp.int32)
    batch = rows // width
    none = Hypotheses(
        tokens=jnp.full((batch, width, room), request.pad),
        scores=jnp.zeros((batch, width, room), jnp.float32),
        lengths=jnp.zeros((batch, width), jnp.int32),
        ranks=jnp.full((batch, width), -jnp.inf, jnp.float32),
    )
    beams = Beams(
        rows=jnp.arange(rows, dtype=jnp.int32),
        running=dataclasses.replace(none, ranks=none.ranks.at[:, 0].set(0)),
        finished=none,
        memory=process.begun(request.processors, request.history(none.tokens.reshape(rows, room), step)),
        progress=strategy.phrases.init(rows) if strategy.phrases else (),
        done=jnp.zeros(batch, bool),
        last=jnp.zeros(rows, jnp.int32),
    )
    return take(Search(prefilled.cache, beams, step), prefilled.logits, request)


def step(model: Model, search: Search, request: Request) -> Search:
    """The search after one more token."""
    out = model.apply(request.variables, search.beams.last[:, None], cache=search.reordered(), method="decode")
    logits_RV = model.apply(request.variables, out.hidden[:, -1], method="unembed")
    return take(dataclasses.replace(search, cache=out.cache), logits_RV, request)


def take(search: Search, logits_RV: Array, request: Request) -> Search:
    """The search with one more column."""
    whole = search.beams, jax.nn.log_softmax(logits_RV)
    if request.strategy.groups == 1:
        beams = _further(*whole, 0.0, search.step, request)
    else:
        beams = _in_turn(*whole, search.step, request)
    return Search(search.cache, beams, search.step + 1)


def _in_turn(beams: Beams, score_RV: Array, step: Array, request: Request) -> Beams:
    """With one more column, in the second group of each prompt after its first, and so on."""
    strategy, prompts, vocab = request.strategy, request.prompt.shape[0], score_RV.shape[-1]
    groups, width = strategy.groups, strategy.width // strategy.groups

    def apart(leaf: Array) -> Array:
        split = leaf.reshape(prompts, groups, leaf.shape[0] // (prompts * groups), *leaf.shape[1:]).swapaxes(0, 1)
        return split.reshape(groups, leaf.shape[0] // groups, *leaf.shape[1:])

    def together(leaf: Array) -> Array:
        split = leaf.reshape(groups, prompts, leaf.shape[1] // prompts, *leaf.shape[2:]).swapaxes(0, 1)
        return split.reshape(groups * leaf.shape[1], *leaf.shape[2:])

    def one(count_PV: Array, group: tuple[Beams, Array, Array]) -> tuple[Array, Beams]:
        before, score_RV, first = group
        less_RV = jnp.repeat(strategy.diversity_penalty * count_PV, width, axis=0)
        after = _further(before, score_RV, less_RV, step, request)
        # As in the reference, a group that is done goes on by padding, which the next ones then avoid.
        token_PW = jnp.where(before.done[:, None], request.pad, after.last.reshape(prompts, width))
        rows = after.rows + after.rows // width * (strategy.width - width) + first
        return count_PV + process.counts(token_PW, vocab), dataclasses.replace(after, rows=rows)

    split = jax.tree.map(apart, (beams, score_RV))
    none = jnp.zeros((prompts, vocab), jnp.int32)
    return jax.tree.map(together, lax.scan(one, none, (*split, width * jnp.arange(groups)))[1])


def _further(beams: Beams, score_RV: Array, less: Array | float, step: Array, request: Request) -> Beams:
    """With one more column; `less` is taken from the model's log-probabilities `score_RV` before all else."""
    strategy, limit, length = request.strategy, request.limit, step + 1
    batch, width, _ = beams.running.tokens.shape
    sum_RV = _sums(beams, score_RV - less, step, request)
    candidates, parent_BK, may_BK = _candidates(beams, score_RV, sum_RV, step, request)
    token_BK = lax.dynamic_index_in_dim(candidates.tokens, step, axis=2, keepdims=False)
    row_BK = parent_BK + width * jnp.arange(batch, dtype=jnp.int32)[:, None]
    memory, progress = process.rows((beams.memory, beams.progress), row_BK.reshape(-1))
    memory, ends = process.advanced(request.processors, memory, token_BK.reshape(-1), request.eos)
    if strategy.phrases:
        progress = strategy.phrases.advance(progress, token_BK.reshape(-1))
    ends_BK = ends.reshape(token_BK.shape)

    # Candidates that end stand behind the others, each in its order.
    order_BK = jnp.arange(ends_BK.shape[1])[None, :] + ends_BK.shape[1] * ends_BK
    going_BW = lax.top_k(-order_BK, width)[1]
    running = candidates.picked(going_BW)
    goes_BW = ~(jnp.take_along_axis(ends_BK, going_BW, axis=1) | (length == limit))
    running = dataclasses.replace(running, ranks=jnp.where(goes_BW, running.ranks, -jnp.inf))

    rank_BK = candidates.ranks / length**strategy.length_penalty
    ended_BK = jnp.where(ends_BK & may_BK & ~beams.done[:, None], rank_BK, -jnp.inf)
    worst_B = lax.top_k(jnp.concatenate([beams.finished.ranks, ended_BK], axis=1), width)[0][:, -1]
    # The reference's groups look at what has ended too, and are done before the limit cuts what goes on.
    best_B = jnp.max(running.ranks if strategy.groups == 1 else candidates.ranks, axis=1)
    done_B = beams.done | _over(best_B, worst_B, strategy, length, limit)
    shut_B = beams.done if strategy.groups == 1 else done_B
    cut_BK = ~ends_BK & (length == limit) & may_BK & ~shut_B[:, None]
    entering = dataclasses.replace(candidates, ranks=jnp.where(cut_BK, rank_BK, ended_BK))
    both = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), beams.finished, entering)
    finished = both.picked(lax.top_k(both.ranks, width)[1])

    kept = ends_BK.shape[1] * jnp.arange(batch, dtype=jnp.int32)[:, None]
    memory, progress = process.rows((memory, progress), (going_BW + kept).reshape(-1))
    return Beams(
        rows=jnp.take_along_axis(row_BK, going_BW, axis=1).reshape(-1),
        running=running,
        finished=finished,
        memory=memory,
        progress=progress,
        done=done_B,
        last=jnp.take_along_axis(token_BK, going_BW, axis=1).reshape(-1),
    )


def _sums(beams: Beams, score_RV: Array, step: Array, request: Request) -> Array:
    """Of each beam with each token, by the log-probabilities that processors leave: float32 [R, V], -inf: never."""
    history: History = request.history(beams.running.tokens.reshape(len(score_RV), -1), step)
    changed_RV = process.processed(request.processors, score_RV, history, beams.memory)
    sum_RV = changed_RV + beams.running.ranks.reshape(-1, 1)
    if request.strategy.phrases:
        written_R = request.strategy.phrases.written(beams.progress)
        ended_RE = jnp.where(written_R[:, None], sum_RV[:, request.eos], -jnp.inf)
        sum_RV = sum_RV.at[:, request.eos].set(ended_RE)
    return sum_RV


def _candidates(
    beams: Beams, score_RV: Array, sum_RV: Array, step: Array, request: Request
) -> tuple[Hypotheses, Array, Array]:
    """(K continuations by one token, first those that are best to go on by, ranked by their sums; the beam each came
    from; bool [B, K]: whether it may end).

    K leaves W that go on, however many of the best have ended by one of the ids that end a row. A candidate behind
    the width-th is there to go on in place of one that ended, and may not end itself.
    """
    wanted, (batch, width, _) = request.strategy.phrases, beams.running.tokens.shape
    vocab = score_RV.shape[-1]
    kept = width * min(max(2, 1 + request.eos.size), vocab)
    sum_BF = sum_RV.reshape(batch, width * vocab)
    if wanted:
        bank_BF = wanted.bank(beams.progress, request.limit - step - 1).reshape(batch, width * vocab)
        rank_BK, flat_BK, may_BK = phrases.allotted(sum_BF, bank_BF, wanted.banks, width, kept)
    else:
        rank_BK, flat_BK = lax.top_k(sum_BF, kept)
        may_BK = jnp.broadcast_to(jnp.arange(kept) < width, rank_BK.shape)
    parent_BK, token_BK = flat_BK // vocab, flat_BK % vocab
    score_BK = jnp.take_along_axis(score_RV.reshape(batch, width * vocab), flat_BK, axis=1)
    return beams.running.picked(parent_BK).written(step, token_BK, score_BK, rank_BK), parent_BK, may_BK


def _over(best_B: Array, worst_B: Array, strategy: Beam, length: Array, limit: Array) -> Array:
    """Where what goes on, its best sum `best_B`, may not displace the worst of W that have ended: bool [B].

    `worst_B` is -inf where fewer than W have ended, `best_B` where nothing goes on.
    """
    if strategy.early_stopping == "never":
        length = jnp.where(strategy.length_penalty > 0, limit, length)
    over_B = ~(best_B / length**strategy.length_penalty > worst_B)
    return over_B | (worst_B > -jnp.inf) if strategy.early_stopping is True else over_B
