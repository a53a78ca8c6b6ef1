"""Tokens as they are produced. B rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax import Array

from jaxformer import distributed
from jaxformer.generation import decode, draw, prompts
from jaxformer.generation.past import Past
from jaxformer.generation.request import Request
from jaxformer.generation.sample import Greedy, Strategy
from jaxformer.nn.model import Model

LONGEST = 8
"""Tokens that are decoded between two looks at them: 1, 2, 4, then 8, so that the first come at once."""


def stream_tokens(
    model: Model,
    params: Any,
    tokens: prompts.Prompts,
    max_new_tokens: int,
    mask: Any = None,
    strategy: Strategy = Greedy(),
    eos: int | Sequence[int] | None = None,
    pad: int | None = None,
    decoder_tokens: Any = None,
    samples: int = 1,
    key: Array | None = None,
    adapter: Any = None,
    prefix: bool = False,
    past: Past | None = None,
) -> Iterator[np.ndarray]:
    """Give int32 [B], one more token of each row: the columns of `generate` for the same arguments and key.

    Arguments and errors are those of `generate`; errors come with the call. Ends when every row has ended;
    nothing more is computed once the generator is closed.
    """
    given = mask, strategy, eos, pad, decoder_tokens, samples, key, adapter, prefix, 0, past
    state, request = decode.start(model, params, tokens, max_new_tokens, *given)
    return _columns(model, state, request, max_new_tokens)


def _columns(model: Model, state: draw.State, request: Request, max_new_tokens: int) -> Iterator[np.ndarray]:
    given, chunk = 0, 1
    while True:
        lengths, tokens, done = map(distributed.read, (state.lengths, state.tokens, state.done))
        filled = int(lengths.max())  # the last step may have found no token for any row
        columns, ended = tokens[:, given:filled], bool(done.all())
        yield from columns.T.copy()
        if ended or filled == max_new_tokens:
            return
        limit = np.int32(min(filled + chunk, max_new_tokens))
        state = distributed.together(decode.steps, model, state, request, limit)
        given, chunk = filled, min(2 * chunk, LONGEST)
