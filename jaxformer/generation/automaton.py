"""Which tokens may follow which, as tables on the device. R rows, Q states, C classes of tokens, V vocabulary."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxformer.generation.process import Constraint, History


@struct.dataclass
class TokenAutomaton(Constraint):
    """Only what a deterministic automaton over tokens has a way for; each row begins in state 0.

    Tokens that act alike in every state are one class, so that a step takes two gathers, of a row of `next` and of
    a column for each id (the index of Willard and Louf, 2023, section 3, over classes). `constrain` builds them of
    stop strings, patterns and schemas.

    Several in one strategy all hold. Where together they leave no token, the row ends there, and its text is whole
    for neither. At the limit of new tokens a row is cut, wherever it stands.
    """

    next: Array
    """int32 [Q, C]: the state behind a token of each class, -1 where none may stand."""
    classes: Array
    """int32 [V]: the class of each id; those of a model's further ids are 0."""
    accept: Array
    """bool [Q]: where an eos may stand, whatever its class. It leaves the state as it is."""
    final: Array
    """bool [Q]: where a row ends, once it is entered."""

    def checked(self) -> "TokenAutomaton":
        """See Processor."""
        states = len(self.next)
        shapes = {name: getattr(self, name).shape for name in ("next", "classes", "accept", "final")}
        right = len(shapes["next"]) == 2 and len(shapes["classes"]) == 1 and min(shapes["next"]) > 0
        if not right or {shapes["accept"], shapes["final"]} != {(states,)}:
            raise ValueError(
                f"TokenAutomaton has tables of {shapes}: expected next [states, classes], classes [vocabulary], "
                "accept and final [states]"
            )
        return self

    def class_of(self, vocab: int) -> Array:
        """The class of each id that a model of so many knows: int32 [vocab]."""
        return jnp.pad(self.classes[:vocab], (0, max(0, vocab - len(self.classes))))

    def init(self, history: History) -> Array:
        """The state of each row: int32 [R]."""
        return jnp.zeros(history.prompt.shape[0], jnp.int32)

    def __call__(self, logits: Array, history: History, state: Array) -> Array:
        """See Processor."""
        may_RV = jnp.take(self.next[state] >= 0, self.class_of(logits.shape[-1]), axis=1)
        may_RV = may_RV.at[:, history.eos].set(self.accept[state][:, None])
        return jnp.where(may_RV, logits, -jnp.inf)

    def advance(self, state: Array, token: Array) -> Array:
        """See Processor."""
        class_R = jnp.take(self.classes, token, mode="fill", fill_value=0)
        after_R = self.next[state, class_R]
        return jnp.where(after_R >= 0, after_R, state)

    def ended(self, state: Array, token: Array) -> Array:
        """See Processor."""
        return self.final[state]


def automaton(next: np.ndarray, classes: np.ndarray, accept: np.ndarray, final: np.ndarray) -> TokenAutomaton:
    """A TokenAutomaton of the tables that its fields describe, with room in them for others of about the size.

    States and classes are filled up to powers of two: automata of equal size share one compiled loop.
    """
    states, classes_of = (_room(length) for length in next.shape)
    table = np.full((states, classes_of), -1, np.int32)
    table[: next.shape[0], : next.shape[1]] = next
    flags = (np.pad(each, (0, states - len(each))) for each in (accept, final))
    return TokenAutomaton(jnp.asarray(table), jnp.asarray(classes, jnp.int32), *map(jnp.asarray, flags))


def searching(strings: Sequence[Sequence[int]], symbols: int) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [Q, symbols], where each symbol leads from each state, 0 the first; bool [Q], where one was read whole).

    `strings` hold symbols below `symbols`, one or more each. Nothing leads away from where one was found. "Efficient
    string matching" (Aho and Corasick, 1975).
    """
    children: list[dict[int, int]] = [{}]
    found = [False]
    for string in strings:
        at = 0
        for symbol in string:
            if symbol not in children[at]:
                children[at][symbol] = len(children)
                children.append({})
                found.append(False)
            at = children[at][symbol]
        found[at] = True
    moves, accept = np.zeros((len(children), symbols), np.int32), np.array(found)
    fallback = [0] * len(children)
    waiting = [0]
    for at in waiting:  # the shallow before the deep
        accept[at] |= accept[fallback[at]]
        moves[at] = moves[fallback[at]]
        for symbol, child in children[at].items():
            fallback[child] = int(moves[at, symbol])
            moves[at, symbol] = child
            waiting.append(child)
    (ends,) = np.nonzero(accept)
    moves[ends] = ends[:, None]
    return moves, accept


def _room(length: int) -> int:
    return max(64, 1 << (length - 1).bit_length())
