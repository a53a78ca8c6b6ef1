"""Phrases that a beam search has to write. B searches, R rows, P phrases, Q states, C classes, V vocabulary.

"Improved Lexically Constrained Decoding" (Hu et al., 2019), after "Fast Lexically Constrained Decoding with Dynamic
Beam Allocation" (Post and Vilar, 2018): beams that have written as much of them are a bank, and banks take turns.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from jaxformer.generation.automaton import TokenAutomaton, automaton, searching

Phrase = Sequence[int] | Sequence[Sequence[int]] | TokenAutomaton
"""Ids, or several lists of ids of which any will do, or an automaton of `constrain.containing`."""


@struct.dataclass
class Phrases:
    """What has to be written, as tables on the device."""

    automata: tuple[TokenAutomaton, ...]
    """P; each is in a final state for good once its phrase was found."""
    left: tuple[Array, ...]
    """int32 [Q] of each: in each state the fewest tokens that are still to come."""
    banks: int = struct.field(pytree_node=False)
    """1 + the tokens of all, each at its shortest."""

    def init(self, rows: int) -> tuple[Array, ...]:
        """Where each phrase stands before the first new token: int32 [R] of each."""
        return tuple(jnp.zeros(rows, jnp.int32) for _ in self.automata)

    def advance(self, states: Sequence[Array], token: Array) -> tuple[Array, ...]:
        """Where each stands behind `token` int32 [R]."""
        return tuple(each.advance(state, token) for each, state in zip(self.automata, states, strict=True))

    def written(self, states: Sequence[Array]) -> Array:
        """Bool [R]: where all phrases stand."""
        left = [left[state] for left, state in zip(self.left, states, strict=True)]
        return self._bank(left) == self.banks - 1

    def bank(self, states: Sequence[Array], room: Array) -> Array:
        """The bank of each row with each token, -1 where `room` more are too few for a phrase: int32 [R, V]."""
        left = []
        for each, left_Q, state in zip(self.automata, self.left, states, strict=True):
            after_RC = each.next[state]
            left_RC = left_Q[jnp.where(after_RC >= 0, after_RC, state[:, None])]
            left.append(jnp.take(left_RC, each.classes, axis=1))
        most_RV = functools.reduce(jnp.maximum, left)
        return jnp.where(most_RV <= room, self._bank(left), -1)

    def _bank(self, left: Sequence[Array]) -> Array:
        """Tokens of the phrases that stand, and of that one of the others which is written furthest.

        Of one other alone: what goes on with one may tear off another. So a token leads from each bank to a higher
        one, and nothing leads down from the highest.
        """
        whole = part = jnp.zeros_like(left[0])
        for each, left_Q in zip(left, self.left, strict=True):
            whole += jnp.where(each == 0, left_Q[0], 0)
            part = jnp.maximum(part, jnp.where(each == 0, 0, left_Q[0] - each))
        return whole + part


def allotted(sum_BF: Array, bank_BF: Array, banks: int, width: int, kept: int) -> tuple[Array, Array, Array]:
    """Of F continuations of each prompt the `kept` that come first where banks take turns, the fullest one begins,
    and each gives its best: (their sums, their places in F, bool: of the fullest bank, among its `width` best).
    """
    best_of = lambda bank: lax.top_k(jnp.where(bank_BF == bank, sum_BF, -jnp.inf), kept)
    best_GBK, place_GBK = lax.map(best_of, jnp.arange(banks - 1, -1, -1))
    best_BT, place_BT = (jnp.moveaxis(leaf, 0, 2).reshape(len(sum_BF), -1) for leaf in (best_GBK, place_GBK))
    turn_T = jnp.arange(best_BT.shape[1])
    order_BT = jnp.where(best_BT > -jnp.inf, 0, len(turn_T)) + turn_T[None, :]
    first_BK = lax.top_k(-order_BT, kept)[1]
    of_fullest_BK = (first_BK % banks == 0) & (first_BK // banks < width)
    best_BK, place_BK = (jnp.take_along_axis(leaf, first_BK, axis=1) for leaf in (best_BT, place_BT))
    return best_BK, place_BK, of_fullest_BK


def checked(phrases: Sequence[Phrase]) -> tuple[TokenAutomaton, ...]:
    """An automaton for each; raises ValueError for one that has no ids."""
    return tuple(each.checked() if isinstance(each, TokenAutomaton) else _of_ids(each) for each in phrases)


def planned(automata: Sequence[TokenAutomaton], vocab: int, ends: np.ndarray) -> Phrases:
    """For a model of `vocab` ids, of which `ends` end a row; raises ValueError for phrases that it cannot write."""
    automata = [dataclasses.replace(each, classes=each.class_of(vocab)) for each in automata]
    left = [_left(each, ends) for each in automata]
    wrong = [i for i, each in enumerate(left) if each[0] > len(each)]
    if wrong:
        raise ValueError(
            f"phrases {wrong} (the first is 0) cannot be written: the model knows ids below {vocab}, and "
            f"{ends.tolist()} end a row"
        )
    return Phrases(tuple(automata), tuple(map(jnp.asarray, left)), 1 + sum(int(each[0]) for each in left))


def _of_ids(phrase: Any) -> TokenAutomaton:
    several = [phrase] if len(phrase) > 0 and isinstance(phrase[0], int | np.integer) else phrase
    ways = [[int(id) for id in way] for way in several]
    if not ways or not all(ways) or min(map(min, ways)) < 0:
        raise ValueError(f"phrase is {phrase}: give ids, or several lists of ids of which any will do")
    known = sorted({id for way in ways for id in way})
    classes = np.zeros(known[-1] + 1, np.int32)
    classes[known] = np.arange(1, len(known) + 1)
    moves, found = searching([classes[way].tolist() for way in ways], len(known) + 1)
    return automaton(moves, classes, np.ones_like(found), found)


def _left(each: TokenAutomaton, ends: np.ndarray) -> np.ndarray:
    """Tokens from each state to a final one, at the fewest: int32 [Q], above Q where there is no way."""
    ids = np.setdiff1d(np.arange(len(each.classes)), ends)
    next = np.asarray(each.next)[:, np.unique(np.asarray(each.classes)[ids])]
    after = np.where(next >= 0, next, np.arange(len(next))[:, None])
    left = np.where(np.asarray(each.final), 0, len(next) + 1)
    for _ in left:
        left = np.minimum(left, 1 + left[after].min(axis=1))
    return np.minimum(left, left[0]).astype(np.int32)
