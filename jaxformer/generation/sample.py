"""From logits to the next token. R rows, V vocabulary.

A strategy is a pytree: its numbers are traced, so that another temperature compiles nothing. What narrows the choice
of `Sample` acts in the order of its fields, as in the reference implementation, behind all processors.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from jaxformer.generation.process import Processor

GROUP = 256
"""Neighbouring tokens whose probabilities are added up first when one is drawn."""


class Strategy(Protocol):
    """What `generate` asks of a strategy."""

    @property
    def processors(self) -> Sequence[Processor]:
        """What changes the logits before."""

    def checked(self) -> "Strategy":
        """The same with numbers as arrays; raises one ValueError that lists every number out of its range.

        Processors, which are checked apart from it, are left out.
        """


class Picker(Strategy, Protocol):
    """A strategy that picks each token by the logits alone."""

    def __call__(self, key: Array, logits: Array) -> Array:
        """The next token int32 [R] for float32 logits [R, V]."""


@struct.dataclass
class Greedy:
    """The most probable token; of equal ones the first."""

    processors: Sequence[Processor] = ()

    def checked(self) -> "Greedy":
        """It has no numbers."""
        return Greedy()

    def __call__(self, key: Array, logits: Array) -> Array:
        """Logits [R, V] -> tokens int32 [R]."""
        return first_largest(logits)

    def log_probabilities(self, logits: Array) -> Array:
        """Of each token to be picked: float32 [R, V], 0 for one of them."""
        return certain(first_largest(logits), logits.shape[-1])


@struct.dataclass
class Sample:
    """A token drawn from softmax(logits / temperature), restricted to its more probable part.

    The likeliest is never cut off.
    """

    temperature: float | Array = 1.0
    """0 is greedy."""
    top_k: int | Array = 0
    """Only the k most probable tokens, and what equals the last of them (Fan et al., 2018); 0 is all."""
    top_p: float | Array = 1.0
    """Only the fewest tokens that hold probability p (Holtzman et al., 2020, section 3.1); 1 is all."""
    min_p: float | Array = 0.0
    """Only tokens at least so many times as probable as the likeliest (Nguyen et al., 2024, section 3); 0 is all."""
    typical_p: float | Array = 1.0
    """Only the fewest tokens that hold probability p, those first whose surprise is nearest to the distribution's
    entropy (Meister et al., 2023, section 3); 1 is all."""
    epsilon: float | Array = 0.0
    """Only tokens at least so probable (Hewitt et al., 2022, section 4.1); 0 is all."""
    eta: float | Array = 0.0
    """Only tokens at least as probable as the smaller of eta and sqrt(eta) * exp(-entropy) (the same, section 4.2);
    0 is all."""
    processors: Sequence[Processor] = ()

    def checked(self) -> "Sample":
        """The same with numbers as arrays; raises one ValueError that lists every number out of its range."""
        wrong = []
        if not self.temperature >= 0:
            wrong.append(f"temperature is {self.temperature}: give 0 (greedy) or more")
        if not self.top_k >= 0 or self.top_k != int(self.top_k):
            wrong.append(f"top_k is {self.top_k}: give the number of tokens to keep, or 0 for all")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                wrong.append(f"{name} is {getattr(self, name)}: give a probability above 0, up to 1 for all")
        for name in ("min_p", "epsilon", "eta"):
            if not 0 <= getattr(self, name) < 1:
                wrong.append(f"{name} is {getattr(self, name)}: give a probability below 1, 0 for none")
        if wrong:
            raise ValueError("this strategy cannot sample:\n" + "\n".join(f"  - {line}" for line in wrong))
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("top_k", "processors")]
        numbers = {name: np.float32(getattr(self, name)) for name in names}
        return Sample(**numbers, top_k=np.int32(self.top_k))

    def __call__(self, key: Array, logits: Array) -> Array:
        """Logits [R, V] -> tokens int32 [R]."""

        def draw() -> Array:
            return drawn(key, self.narrowed(logits))

        return lax.cond(self.temperature > 0, draw, lambda: first_largest(logits))

    def log_probabilities(self, logits: Array) -> Array:
        """Of each token to be drawn: float32 [R, V]."""
        drawn = lambda: jax.nn.log_softmax(self.narrowed(logits))
        return lax.cond(self.temperature > 0, drawn, lambda: certain(first_largest(logits), logits.shape[-1]))

    def narrowed(self, logits: Array) -> Array:
        """The logits [R, V] of the distribution that is drawn from; -inf is never drawn."""
        logits = logits / self.temperature
        stages: tuple[tuple[Array | bool, Callable[[Array], Array]], ...] = (
            (self.top_k > 0, lambda x: keep_top_k(x, self.top_k)),
            (self.top_p < 1, lambda x: keep_top_p(x, self.top_p)),
            (self.min_p > 0, lambda x: keep_min_p(x, self.min_p)),
            (self.typical_p < 1, lambda x: keep_typical(x, self.typical_p)),
            (self.epsilon > 0, lambda x: keep_probable(x, self.epsilon)),
            (self.eta > 0, lambda x: keep_eta(x, self.eta)),
        )
        for wanted, keep in stages:
            logits = lax.cond(wanted, keep, lambda x: x, logits)
        return logits


def keep_top_k(logits: Array, k: Array | int) -> Array:
    """Logits [R, V] with -inf for all below the k-th largest of their row."""
    return _from_cutoff(logits, logits, jnp.ones_like(logits), jnp.minimum(k, logits.shape[-1]))


def keep_top_p(logits: Array, p: Array | float) -> Array:
    """Logits [R, V] with -inf for all before which the row's larger ones already hold probability p."""
    return _from_cutoff(logits, logits, jax.nn.softmax(logits, axis=-1), p)


def keep_min_p(logits: Array, share: Array | float) -> Array:
    """Logits [R, V] with -inf for all that are less probable than `share` times the likeliest."""
    probability = jax.nn.softmax(logits, axis=-1)
    return jnp.where(probability >= share * jnp.max(probability, axis=-1, keepdims=True), logits, -jnp.inf)


def keep_typical(logits: Array, p: Array | float) -> Array:
    """Logits [R, V] with -inf for all before which tokens of more typical surprise already hold probability p."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    far = jnp.abs(-log_p - entropy(log_p))
    return _from_cutoff(logits, -far, jnp.exp(log_p), p)


def keep_probable(logits: Array, least: Array | float) -> Array:
    """Logits [R, V] with -inf for all of a probability below `least` [R, 1], the likeliest of a row excepted."""
    probable = jax.nn.softmax(logits, axis=-1) >= least
    return jnp.where(probable | (logits >= jnp.max(logits, axis=-1, keepdims=True)), logits, -jnp.inf)


def keep_eta(logits: Array, eta: Array | float) -> Array:
    """Logits [R, V] with -inf for all of a probability below min(eta, sqrt(eta) * exp(-entropy of the row))."""
    return keep_probable(logits, jnp.minimum(eta, jnp.sqrt(eta) * jnp.exp(-entropy(jax.nn.log_softmax(logits)))))


def entropy(log_p: Array) -> Array:
    """Of distributions, from their log-probabilities [R, V], in nats: [R, 1]."""
    return -jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0), axis=-1, keepdims=True)


def _from_cutoff(logits: Array, order: Array, weights: Array, target: Array | float) -> Array:
    """Keep what stands at t or above in `order`, t the largest for which the weights there add up to the target.

    t is found bit by bit, in 32 sums over the row: on a CPU that is faster than sorting a large vocabulary.
    """
    bits = lax.bitcast_convert_type(order, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)  # unsigned integers in the order of the floats

    def try_bit(i: Array, t_R1: Array) -> Array:
        candidate_R1 = t_R1 | (sign >> i.astype(jnp.uint32))
        above_R1 = jnp.sum(jnp.where(ordered >= candidate_R1, weights, 0), axis=-1, keepdims=True)
        return jnp.where(above_R1 >= target, candidate_R1, t_R1)

    t_R1 = lax.fori_loop(0, 32, try_bit, jnp.zeros((logits.shape[0], 1), jnp.uint32))
    return jnp.where(ordered >= t_R1, logits, -jnp.inf)


def first_largest(logits: Array) -> Array:
    """As `argmax` of [R, V] over V: int32 [R]. Two plain reductions: XLA's CPU compiler vectorizes no `argmax`."""
    vocab = logits.shape[-1]
    is_largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    place = jnp.min(jnp.where(is_largest, jnp.arange(vocab, dtype=jnp.int32)[None, :], vocab), axis=-1)
    return jnp.minimum(place, vocab - 1)


def drawn(key: Array, logits: Array) -> Array:
    """A token int32 [R] of softmax(logits [R, V]), by one uniform number a row; never one of -inf.

    It is where the running sum of probabilities passes that number, looked for among groups and then in its group:
    a noise for each token of a large vocabulary takes longer on a CPU.
    """
    rows, vocab = logits.shape
    p_RV = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    p_RGN = jnp.pad(p_RV, ((0, 0), (0, -vocab % GROUP))).reshape(rows, -1, GROUP)
    groups_RG = jnp.sum(p_RGN, axis=-1)
    ends_RG = jnp.cumsum(groups_RG, axis=-1)
    aim_R1 = jax.random.uniform(key, (rows, 1)) * ends_RG[:, -1:]
    group_R1 = _first_beyond(groups_RG, ends_RG, aim_R1)
    before_R1 = jnp.where(group_R1 > 0, jnp.take_along_axis(ends_RG, jnp.maximum(group_R1 - 1, 0), axis=1), 0)
    p_RN = jnp.take_along_axis(p_RGN, group_R1[:, :, None], axis=1)[:, 0]
    place_R1 = _first_beyond(p_RN, jnp.cumsum(p_RN, axis=-1), aim_R1 - before_R1)
    return (group_R1 * GROUP + place_R1)[:, 0]


def _first_beyond(parts: Array, ends: Array, aim: Array) -> Array:
    """Where the running sums `ends` of `parts` [R, N] first pass `aim` [R, 1]: int32 [R, 1].

    Where rounding lets none pass it, the last part that is not 0.
    """
    place = jnp.sum(ends <= aim, axis=-1, keepdims=True, dtype=jnp.int32)
    numbers = jnp.arange(parts.shape[-1], dtype=jnp.int32)[None, :]
    return jnp.minimum(place, jnp.max(jnp.where(parts > 0, numbers, 0), axis=-1, keepdims=True))


def certain(token: Array, vocab: int) -> Array:
    """Log-probabilities float32 [R, V] of which token int32 [R] has all."""
    return jnp.where(jnp.arange(vocab)[None, :] == token[:, None], 0.0, -jnp.inf)


def log_probability(logits: Array, token: Array) -> Array:
    """Log softmax(logits) [R, V] at token [R]: float32 [R]."""
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
