"""Of the likeliest tokens the one that is least like what stands already. B prompts, K candidates, R = B * K rows.

"A Contrastive Framework for Neural Text Generation" (Su et al., 2022), section 4. S tokens, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from jaxformer.generation import draw, process
from jaxformer.generation.prefill import Prefilled
from jaxformer.generation.process import Processor
from jaxformer.generation.request import Request
from jaxformer.nn.model import Model


@struct.dataclass
class Contrastive:
    """Pick, of the K likeliest tokens, the best by (1 - alpha) * probability - alpha * likeness.

    Likeness is the largest cosine between the token's hidden vector and that of any token before it.
    """

    alpha: float | Array = 0.6
    """0 is greedy."""
    top_k: int = struct.field(pytree_node=False, default=4)
    """K: as many rows are decoded for each prompt."""
    processors: Sequence[Processor] = ()

    def checked(self) -> "Contrastive":
        """The same with its numbers as arrays; raises one ValueError that lists all that is out of its range."""
        wrong = []
        if not 0 <= self.alpha <= 1:
            wrong.append(f"alpha is {self.alpha}: give 0 (greedy) to 1")
        if self.top_k != int(self.top_k) or self.top_k < 1:
            wrong.append(f"top_k is {self.top_k}: give the number of candidates, at least 1")
        if wrong:
            raise ValueError("this strategy cannot pick:\n" + "\n".join(f"  - {line}" for line in wrong))
        return Contrastive(np.float32(self.alpha), int(self.top_k))

    def rows(self, samples: int, whole: bool) -> int:
        """Rows that a prompt takes while it is decoded; raises ValueError where several samples are asked for."""
        if samples > 1:
            raise ValueError(f"samples is {samples}: contrastive search finds one continuation of a prompt")
        return self.top_k


@struct.dataclass
class State(draw.State):
    """Decoding between two tokens; the cache is of R rows, all else of B. `last` has been read already."""

    logits: Array
    """float32 [B, V]: of the token that comes next."""
    past: Array
    """[B, S, D]: hidden vectors of length 1, zeros where nothing stands; S as the cache's slots."""


def begin(model: Model, prefilled: Prefilled, request: Request) -> State:
    """The state before the first token."""
    logits_BV = prefilled.logits[:: prefilled.plan.copies]
    state = draw.empty(dataclasses.replace(prefilled, logits=logits_BV), request)
    past_BTD = jnp.where(request.mask[:, :, None], _unit(prefilled.hidden), 0)
    past_BSD = jnp.pad(past_BTD, ((0, 0), (0, prefilled.plan.room), (0, 0)))
    return draw.extended(state, State, logits=logits_BV, past=past_BSD)


def step(model: Model, state: State, request: Request) -> State:
    """The state after one more token."""
    strategy, (batch, *_) = request.strategy, state.logits.shape
    history = request.history(state.tokens, state.step)
    changed_BV = process.processed(request.processors, state.logits, history, state.memory)
    probability_BK, token_BK = lax.top_k(jax.nn.softmax(changed_BV), strategy.top_k)
    slot = state.cache.end
    out = model.apply(request.variables, token_BK.reshape(-1, 1), cache=state.cache, method="decode")
    hidden_BKD = out.hidden.reshape(batch, strategy.top_k, -1)
    unit_BKD = _unit(hidden_BKD)
    cosine_BKS = jnp.einsum("BKD,BSD->BKS", unit_BKD, state.past)
    stands_BS = jnp.any(state.past != 0, axis=-1)
    likeness_BK = jnp.max(jnp.where(stands_BS[:, None, :], cosine_BKS, -jnp.inf), axis=-1)
    best_B = jnp.argmax((1 - strategy.alpha) * probability_BK - strategy.alpha * likeness_BK, axis=-1)
    best_of = lambda x: jnp.take_along_axis(x, best_B.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)
    token_B = best_of(token_BK)[:, 0].astype(jnp.int32)
    state = draw.take(state, state.logits, request, lambda key, logits: token_B)
    rows_R = jnp.repeat(jnp.arange(batch) * strategy.top_k + best_B, strategy.top_k)
    return dataclasses.replace(
        state,
        cache=out.cache.copied(rows_R, slot),
        logits=model.apply(request.variables, best_of(hidden_BKD)[:, 0], method="unembed"),
        past=lax.dynamic_update_slice(state.past, best_of(unit_BKD), (0, slot, 0)),
    )


def _unit(hidden: Array) -> Array:
    return hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True)
