"""Away from what a model would say to another prompt: classifier-free guidance. B prompts, R rows, V vocabulary.

"Stay on topic with Classifier-Free Guidance" (Sanchez et al., 2023), section 3.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxformer.generation import draw, prompts
from jaxformer.generation.prefill import Prefilled, read
from jaxformer.generation.process import Processor
from jaxformer.generation.request import Request
from jaxformer.generation.sample import Greedy, Sample
from jaxformer.nn.cache import Cache
from jaxformer.nn.model import Model


@struct.dataclass
class Guided:
    """Pick from log-probabilities u + scale * (c - u), c behind the prompt and u behind the `negative` one.

    For decoders alone. Takes two passes a token.
    """

    scale: float | Array = 1.5
    """1 leaves the model as it is; more heeds the prompt more."""
    negative: Any = None
    """One prompt of ids for all rows, or one for each: what not to sound like; None: each prompt's last token."""
    base: Greedy | Sample = Greedy()
    """How tokens are picked, and its processors."""

    @property
    def processors(self) -> Sequence[Processor]:
        """Those of `base`, which see the guided log-probabilities."""
        return self.base.processors

    def checked(self) -> "Guided":
        """The same with numbers as arrays; raises ValueError for those that are out of their range."""
        if not np.isfinite(self.scale):
            raise ValueError(f"the scale of Guided is {self.scale}: give a number, 1 for no guidance")
        negative = self.negative
        if negative is not None and not isinstance(negative, tuple):
            single = len(negative) > 0 and isinstance(negative[0], int | np.integer)
            rows = prompts.rows_of([negative] if single else negative)
            if not rows or not all(map(len, rows)):
                raise ValueError(f"the negative prompt of Guided is {self.negative}: give at least one token")
            negative = prompts.right_aligned(rows)
        return Guided(np.float32(self.scale), negative, self.base.checked())


@struct.dataclass
class State(draw.State):
    """Decoding between two tokens."""

    negative: Cache
    """Of the rows behind their negative prompts."""


def begin(model: Model, prefilled: Prefilled, request: Request) -> State:
    """The state after the first token; raises ValueError for an encoder, and for another number of negatives."""
    if prefilled.source is not None:
        raise ValueError("Guided is for a decoder alone: this model has an encoder")
    strategy, count = request.strategy, request.prompt.shape[0]
    other = request.prompt[:, -1:], request.mask[:, -1:]
    if strategy.negative is not None:
        other = strategy.negative
        if other[0].shape[0] not in (1, count):
            raise ValueError(f"Guided has {other[0].shape[0]} negative prompts for {count}: give one, or as many")
    prompt, mask = (jnp.broadcast_to(leaf, (count, leaf.shape[1])) for leaf in other)
    asked = dataclasses.replace(request, prompt=prompt, mask=mask)
    negative = read(model, request.variables, None, asked, prefilled.plan)
    state = draw.empty(prefilled, request)
    return take(draw.extended(state, State, negative=negative.cache), prefilled.logits, negative.logits, request)


def step(model: Model, state: State, request: Request) -> State:
    """The state after one more token."""
    caches, logits = [], []
    for cache in (state.cache, state.negative):
        out = model.apply(request.variables, state.last[:, None], cache=cache, method="decode")
        caches.append(out.cache)
        logits.append(model.apply(request.variables, out.hidden[:, -1], method="unembed"))
    state = dataclasses.replace(state, cache=caches[0], negative=caches[1])
    return take(state, logits[0], logits[1], request)


def take(state: State, logits_RV: Array, negative_RV: Array, request: Request) -> State:
    """The state with one more column."""
    given_RV, other_RV = jax.nn.log_softmax(logits_RV), jax.nn.log_softmax(negative_RV)
    guided_RV = other_RV + request.strategy.scale * (given_RV - other_RV)
    return draw.take(state, given_RV, request, request.strategy.base, guided_RV)
