"""What changes the logits before a token is picked. R rows, T prompt length, N new tokens, V vocabulary.

A strategy holds processors; they act in the order of `ORDER`, which is the reference implementation's, and a user's
own behind them, as they were given. Their numbers are traced: another penalty compiles nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

NEVER = -jnp.inf


@struct.dataclass
class History:
    """What stands before the token that is to be picked; with an encoder, on the decoder's side."""

    prompt: Array
    """int32 [R, T], each row's end in the last column."""
    mask: Array
    """bool [R, T]: False is padding."""
    new: Array
    """int32 [R, N]; columns from `step` on hold nothing yet."""
    step: Array
    """int32 scalar: new tokens so far."""
    limit: Array
    """int32 scalar: new tokens at most."""
    eos: Array
    """int32 [number of ids]: what ends a row."""

    def tokens(self) -> Array:
        """int32 [R, T + N]: prompt and new tokens on end, -1 where nothing stands."""
        filled = jnp.arange(self.new.shape[1]) < self.step
        new = jnp.where(filled[None, :], self.new, -1)
        return jnp.concatenate([jnp.where(self.mask, self.prompt, -1), new], axis=1)

    def last(self, count: int) -> Array:
        """int32 [R, count]: the newest tokens, -1 for those before the prompt's first."""
        padded = jnp.pad(self.tokens(), ((0, 0), (count, 0)), constant_values=-1)
        return jax.lax.dynamic_slice_in_dim(padded, self.prompt.shape[1] + self.step, count, axis=1)


class Processor:
    """Base of what stands in a strategy's `processors`; one of your own redefines what it needs.

    It is a pytree of numbers (`flax.struct.dataclass`) or else hashable, when it is a constant of the compiled loop.
    """

    def checked(self) -> "Processor":
        """The same with numbers as arrays; raises ValueError for one that is out of its range."""
        return self

    def init(self, history: History) -> Any:
        """What it remembers of each row before the first new token: a pytree of arrays [R, ...]."""
        return ()

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """float32 [R, V] -> [R, V]; beam search hands in log-probabilities.

        -inf is never picked: where nothing else is left a row ends before it, with the tokens that it has.
        """
        return logits

    def advance(self, state: Any, token: Array) -> Any:
        """What it remembers once `token` int32 [R] was picked."""
        return state

    def ended(self, state: Any, token: Array) -> Array | None:
        """Bool [R]: where a row ends with `token`, which `state` knows already; None: it ends none."""
        return None


class Constraint(Processor):
    """Base of what says which tokens may stand at all: it acts behind penalties, and forced tokens go over it."""


@struct.dataclass
class RepetitionPenalty(Processor):
    """Logits of tokens that prompt or answer hold are divided by `penalty`, where negative multiplied by it.

    CTRL (Keskar et al., 2019), section 4.1.
    """

    penalty: float | Array = 1.0

    def checked(self) -> "RepetitionPenalty":
        """See Processor."""
        _require(self.penalty > 0, f"RepetitionPenalty is {self.penalty}: give a number above 0, 1 for none")
        return RepetitionPenalty(np.float32(self.penalty))

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        seen = counts(history.tokens(), logits.shape[-1]) > 0
        return jnp.where(seen, jnp.where(logits > 0, logits / self.penalty, logits * self.penalty), logits)


@struct.dataclass
class PresencePenalty(Processor):
    """`penalty` is subtracted from the logits of tokens that the answer holds; prompts do not count."""

    penalty: float | Array = 0.0

    def checked(self) -> "PresencePenalty":
        """See Processor."""
        _require(np.isfinite(self.penalty), f"PresencePenalty is {self.penalty}: give a finite number, 0 for none")
        return PresencePenalty(np.float32(self.penalty))

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        return logits - self.penalty * (_new_counts(logits, history) > 0)


@struct.dataclass
class FrequencyPenalty(Processor):
    """`penalty` is subtracted from a token's logit as often as the answer holds it; prompts do not count."""

    penalty: float | Array = 0.0

    def checked(self) -> "FrequencyPenalty":
        """See Processor."""
        _require(np.isfinite(self.penalty), f"FrequencyPenalty is {self.penalty}: give a finite number, 0 for none")
        return FrequencyPenalty(np.float32(self.penalty))

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        return logits - self.penalty * _new_counts(logits, history)


@struct.dataclass
class NoRepeatNgram(Processor):
    """No `size` tokens in a row that prompt or answer hold already (Paulus et al., 2018, section 2.5)."""

    size: int = struct.field(pytree_node=False, default=3)

    def checked(self) -> "NoRepeatNgram":
        """See Processor."""
        _require(self.size == int(self.size) and self.size > 0, f"NoRepeatNgram is {self.size}: give 1 token or more")
        return NoRepeatNgram(int(self.size))

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        before = self.size - 1
        tokens_RS, tail_RM = history.tokens(), history.last(before)
        follows_RS = tokens_RS[:, before:]
        same_RS = follows_RS >= 0
        for i in range(before):
            same_RS &= tokens_RS[:, i : i + follows_RS.shape[1]] == tail_RM[:, i : i + 1]
        same_RS &= jnp.all(tail_RM >= 0, axis=1, keepdims=True)
        return jnp.where(counts(jnp.where(same_RS, follows_RS, -1), logits.shape[-1]) > 0, NEVER, logits)


@struct.dataclass
class BadWords(Processor):
    """None of these sequences of ids is ever completed; one that is a single eos has no effect."""

    words: Sequence[Sequence[int]] | Array = ()
    """Of any lengths; as an array int32 [W, M] they end in the last column, behind -1."""

    def checked(self) -> "BadWords":
        """See Processor."""
        if isinstance(self.words, np.ndarray | jax.Array):
            return self
        words = [[words] if isinstance(words, int | np.integer) else list(words) for words in self.words]
        _require(all(words) and bool(words), f"BadWords are {self.words}: give lists of ids, at least one id in each")
        width = max(map(len, words))
        return BadWords(np.array([[-1] * (width - len(word)) + word for word in words], np.int32))

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        words = jnp.asarray(self.words)
        *_, before = words[:, :-1].shape
        tail_R1M = history.last(before)[:, None, :]
        met_RW = jnp.all((words[None, :, :-1] == -1) | (words[None, :, :-1] == tail_R1M), axis=-1)
        ends_W = jnp.any(words[:, -1:] == history.eos[None, :], axis=1)
        alone_W = jnp.all(words[:, :-1] == -1, axis=1)
        met_RW &= ~(ends_W & alone_W)[None, :]
        return jnp.where(counts(jnp.where(met_RW, words[None, :, -1], -1), logits.shape[-1]) > 0, NEVER, logits)


@struct.dataclass
class MinLength(Processor):
    """No eos before prompt (with an encoder, the decoder's) and answer are `count` tokens long."""

    count: int | Array = 0

    def checked(self) -> "MinLength":
        """See Processor."""
        right = self.count >= 0 and self.count == int(self.count)
        _require(right, f"MinLength is {self.count}: give 0 tokens or more")
        return MinLength(np.int32(self.count))

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        length_R = jnp.sum(history.mask, axis=1) + history.step
        return jnp.where((length_R < self.count)[:, None] & _ends(logits, history), NEVER, logits)


@struct.dataclass
class MinNewTokens(Processor):
    """No eos before the answer is `count` tokens long."""

    count: int | Array = 0

    def checked(self) -> "MinNewTokens":
        """See Processor."""
        right = self.count >= 0 and self.count == int(self.count)
        _require(right, f"MinNewTokens is {self.count}: give 0 tokens or more")
        return MinNewTokens(np.int32(self.count))

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        return jnp.where((history.step < self.count) & _ends(logits, history), NEVER, logits)


@struct.dataclass
class ForcedFirst(Processor):
    """The answer's first token is `token`, where a prompt is a single token; beam search takes it as certain."""

    token: int | Array

    def checked(self) -> "ForcedFirst":
        """See Processor."""
        _require(self.token >= 0, f"ForcedFirst is {self.token}: give an id")
        return ForcedFirst(np.int32(self.token))

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        first_R = jnp.sum(history.mask, axis=1) + history.step == 1
        return jnp.where(first_R[:, None], _certain(logits, self.token), logits)


@struct.dataclass
class ForcedLast(Processor):
    """The last token of those that there is room for is `token`; beam search takes it as certain."""

    token: int | Array

    def checked(self) -> "ForcedLast":
        """See Processor."""
        _require(self.token >= 0, f"ForcedLast is {self.token}: give an id")
        return ForcedLast(np.int32(self.token))

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        return jnp.where(history.step == history.limit - 1, _certain(logits, self.token), logits)


ORDER: tuple[type[Processor], ...] = (
    RepetitionPenalty,
    PresencePenalty,
    FrequencyPenalty,
    NoRepeatNgram,
    BadWords,
    MinLength,
    MinNewTokens,
    Constraint,
    ForcedFirst,
    ForcedLast,
)


@struct.dataclass
class Constant(Processor):
    """A processor that is hashable and no pytree: what it holds is part of the compiled program."""

    processor: Any = struct.field(pytree_node=False)

    def init(self, history: History) -> Any:
        """See Processor."""
        return self.processor.init(history)

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        return self.processor(logits, history, state)

    def advance(self, state: Any, token: Array) -> Any:
        """See Processor."""
        return self.processor.advance(state, token)

    def ended(self, state: Any, token: Array) -> Array | None:
        """See Processor."""
        return self.processor.ended(state, token)


def ordered(processors: Sequence[Any]) -> tuple[Processor, ...]:
    """Each checked, in the order in which they act; raises one ValueError that lists all that is wrong."""
    wrong, right = [], []
    for processor in processors:
        if not isinstance(processor, Processor):
            wrong.append(f"{processor!r} is no processor: let its class inherit jaxformer.generation.Processor")
            continue
        try:
            checked = processor.checked()
        except ValueError as error:
            wrong.append(str(error))
        else:
            right.append(Constant(checked) if jax.tree_util.all_leaves([checked]) else checked)
    if wrong:
        raise ValueError("these processors cannot be used:\n" + "\n".join(f"  - {line}" for line in wrong))
    return tuple(sorted(right, key=_place))


def _place(processor: Processor) -> int:
    """In ORDER; len(ORDER) for a user's own."""
    return next((i for i, kind in enumerate(ORDER) if isinstance(processor, kind)), len(ORDER))


def begun(processors: Sequence[Processor], history: History) -> tuple[Any, ...]:
    """What each remembers before the first token."""
    return tuple(processor.init(history) for processor in processors)


def processed(processors: Sequence[Processor], logits: Array, history: History, states: Sequence[Any]) -> Array:
    """Logits [R, V] as all of them leave them."""
    for processor, state in zip(processors, states, strict=True):
        logits = processor(logits, history, state)
    return logits


def advanced(
    processors: Sequence[Processor], states: Sequence[Any], token: Array, eos: Array
) -> tuple[tuple[Any, ...], Array]:
    """(what each remembers once `token` int32 [R] was picked, bool [R]: where a row ends with it)."""
    after = tuple(p.advance(state, token) for p, state in zip(processors, states, strict=True))
    ended_R = jnp.any(token[:, None] == eos[None, :], axis=1)
    for processor, state in zip(processors, after, strict=True):
        also_R = processor.ended(state, token)
        ended_R = ended_R if also_R is None else ended_R | also_R
    return after, ended_R


def rows(states: Any, index: Array) -> Any:
    """What is remembered of the rows `index` int32 [...]: leaves [R, ...] -> [..., ...]."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0, mode="clip"), states)


def counts(tokens: Array, vocab: int) -> Array:
    """How often each row [R, S] holds each id: int32 [R, V]; negative ids do not count."""
    row = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocab), jnp.int32).at[row, tokens].add(jnp.where(tokens >= 0, 1, 0))


def _new_counts(logits: Array, history: History) -> Array:
    return counts(dataclasses.replace(history, mask=jnp.zeros_like(history.mask)).tokens(), logits.shape[-1])


def _ends(logits: Array, history: History) -> Array:
    """Bool [1, V]: the ids that end a row."""
    return jnp.any(jnp.arange(logits.shape[-1])[None, :] == history.eos[:, None], axis=0, keepdims=True)


def _certain(logits: Array, token: Array | int) -> Array:
    """[1, V]: 0 at `token`, -inf elsewhere."""
    return jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, NEVER)[None, :]


def _require(right: bool, what: str) -> None:
    if not right:
        raise ValueError(what)
