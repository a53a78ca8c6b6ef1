"""Which tokens may follow, asked of the host at every step. R rows, N columns for new tokens, V vocabulary."""

import functools
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer.generation.process import Constraint, History

Allowed = Callable[[tuple[int, ...]], tuple[np.ndarray, bool]]
"""New tokens of a row -> (bool [V], what may follow; whether the text is whole, and an eos may stand)."""

_NUMBERS = itertools.count()
_KNOWN: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


@jax.tree_util.register_pytree_node_class
class Hosted(Constraint):
    """Only what `allowed` says: a function of Python that the compiled loop calls at each step, for each row.

    It is known to the loop by a number, which is traced: another one compiles nothing. It must be pure, may not call
    jax, and lives as long as this object. Where nothing may follow, a row needs an eos, or ends without a token.
    """

    def __init__(self, allowed: Allowed) -> None:
        self.allowed, number = allowed, next(_NUMBERS)
        self.number: Any = np.int32(number)
        _KNOWN[number] = self

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        """The number alone."""
        return (self.number,), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any]) -> "Hosted":
        """As the loop sees it."""
        seen = object.__new__(cls)
        (seen.number,) = leaves
        return seen

    def __call__(self, logits: Array, history: History, state: Any) -> Array:
        """See Processor."""
        ask = functools.partial(_ask, logits.shape)
        shape = jax.ShapeDtypeStruct(logits.shape, bool)
        may_RV = jax.pure_callback(ask, shape, self.number, history.new, history.step, history.eos)
        return jnp.where(may_RV, logits, -jnp.inf)


def _ask(shape: tuple[int, int], number: Any, new_RN: Any, step: Any, eos: Any) -> np.ndarray:
    allowed, may_RV = _KNOWN[int(number)].allowed, np.zeros(shape, bool)
    ends = np.asarray(eos)
    for row, tokens in enumerate(np.asarray(new_RN)[:, : int(step)].tolist()):
        may, is_whole = allowed(tuple(tokens))
        known = min(len(may), shape[1])
        may_RV[row, :known] = may[:known]
        may_RV[row, ends[ends < shape[1]]] = is_whole
    return may_RV
