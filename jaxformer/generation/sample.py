"""From logits to the next token. B rows, V vocabulary.

A strategy is a pytree: its numbers are traced, so that another temperature compiles nothing. Temperature comes
first, then top_k, then top_p, as in the reference implementation.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax


class Strategy(Protocol):
    """What `generate` asks of a strategy."""

    def checked(self) -> "Strategy":
        """The same with numbers as arrays; raises one ValueError that lists every number out of its range."""

    def __call__(self, key: Array, logits: Array) -> Array:
        """The next token int32 [B] for float32 logits [B, V]."""


@struct.dataclass
class Greedy:
    """The most probable token; of equal ones the first."""

    def checked(self) -> "Greedy":
        """Itself: it has no numbers."""
        return self

    def __call__(self, key: Array, logits: Array) -> Array:
        """Logits [B, V] -> tokens int32 [B]."""
        return first_largest(logits)


@struct.dataclass
class Sample:
    """A token drawn from softmax(logits / temperature), restricted to its most probable part."""

    temperature: float | Array = 1.0
    """0 is greedy."""
    top_k: int | Array = 0
    """Only the k most probable tokens, and what equals the last of them (Fan et al., 2018); 0 is all."""
    top_p: float | Array = 1.0
    """Only the fewest tokens that hold probability p (Holtzman et al., 2020, section 3.1); 1 is all."""

    def checked(self) -> "Sample":
        """The same with numbers as arrays; raises one ValueError that lists every number out of its range."""
        wrong = []
        if not self.temperature >= 0:
            wrong.append(f"temperature is {self.temperature}: give 0 (greedy) or more")
        if not self.top_k >= 0 or self.top_k != int(self.top_k):
            wrong.append(f"top_k is {self.top_k}: give the number of tokens to keep, or 0 for all")
        if not 0 < self.top_p <= 1:
            wrong.append(f"top_p is {self.top_p}: give a probability above 0, up to 1 for all")
        if wrong:
            raise ValueError("this strategy cannot sample:\n" + "\n".join(f"  - {line}" for line in wrong))
        return Sample(np.float32(self.temperature), np.int32(self.top_k), np.float32(self.top_p))

    def __call__(self, key: Array, logits: Array) -> Array:
        """Logits [B, V] -> tokens int32 [B]."""

        def draw() -> Array:
            return jax.random.categorical(key, self.processed(logits)).astype(jnp.int32)

        return lax.cond(self.temperature > 0, draw, lambda: first_largest(logits))

    def processed(self, logits: Array) -> Array:
        """The logits [B, V] of the distribution that is drawn from; -inf is never drawn."""
        scaled = logits / self.temperature
        narrowed = lax.cond(self.top_k > 0, lambda: keep_top_k(scaled, self.top_k), lambda: scaled)
        return lax.cond(self.top_p < 1, lambda: keep_top_p(narrowed, self.top_p), lambda: narrowed)


def keep_top_k(logits: Array, k: Array | int) -> Array:
    """Logits [B, V] with -inf for all below the k-th largest of their row."""
    return _from_cutoff(logits, jnp.ones_like(logits), jnp.minimum(k, logits.shape[-1]))


def keep_top_p(logits: Array, p: Array | float) -> Array:
    """Logits [B, V] with -inf for all before which the row's larger ones already hold probability p."""
    return _from_cutoff(logits, jax.nn.softmax(logits, axis=-1), p)


def _from_cutoff(logits: Array, weights: Array, target: Array | float) -> Array:
    """Keep what is at least the largest t for which the weights of all logits >= t add up to the target.

    t is found bit by bit, in 32 sums over the row: on a CPU that is faster than sorting a large vocabulary.
    """
    bits = lax.bitcast_convert_type(logits, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)  # unsigned integers in the order of the floats

    def try_bit(i: Array, t_B1: Array) -> Array:
        candidate_B1 = t_B1 | (sign >> i.astype(jnp.uint32))
        above_B1 = jnp.sum(jnp.where(ordered >= candidate_B1, weights, 0), axis=-1, keepdims=True)
        return jnp.where(above_B1 >= target, candidate_B1, t_B1)

    t_B1 = lax.fori_loop(0, 32, try_bit, jnp.zeros((logits.shape[0], 1), jnp.uint32))
    return jnp.where(ordered >= t_B1, logits, -jnp.inf)


def first_largest(logits: Array) -> Array:
    """As `argmax` of [B, V] over V: int32 [B]."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def log_probability(logits: Array, token: Array) -> Array:
    """Log softmax(logits) [B, V] at token [B]: float32 [B]."""
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
