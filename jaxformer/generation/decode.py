"""Prefill in one pass, then one compiled loop. B rows, T prompt length, N new tokens, V vocabulary."""

import functools
import secrets
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from jaxformer import distributed
from jaxformer.config import Card
from jaxformer.generation import beam, contrast, draw, guide, layout, process, prompts, speculate
from jaxformer.generation.beam import Beam, Search
from jaxformer.generation.contrast import Contrastive
from jaxformer.generation.guide import Guided
from jaxformer.generation.past import Past, behind
from jaxformer.generation.prefill import CHUNK, Plan, Rest, read
from jaxformer.generation.process import Processor
from jaxformer.generation.request import Request
from jaxformer.generation.sample import Greedy, Strategy
from jaxformer.generation.speculate import Draft, Lookup, Speculation
from jaxformer.nn.model import Model

LOOPS: dict[type, Any] = {Beam: beam, Lookup: speculate, Draft: speculate, Guided: guide, Contrastive: contrast}
"""How each strategy decodes; what is not here draws token by token."""


@struct.dataclass
class Generated:
    """What `generate` gives back, on the host; a prompt's samples are rows side by side, B in all."""

    tokens: np.ndarray
    """int32 [B, max_new_tokens]: new tokens alone, `pad` after the one that ended the row."""
    lengths: np.ndarray
    """int32 [B]: new tokens in each row, the one that ended it included."""
    scores: np.ndarray
    """float32 [B, max_new_tokens]: log-probability of each token under the model, whatever the strategy.

    Natural logarithm; 0 after the row's end."""
    key: Array
    """The key that was used."""
    ranks: np.ndarray | None = None
    """float32 [B]: what beam search ranked the rows of a prompt by, best first; None without it.

    -inf, at length 0, where fewer than `samples` continuations were possible."""
    alternatives: tuple[np.ndarray, np.ndarray] | None = None
    """The likeliest tokens under the model in place of each, likeliest first, and their log-probabilities: int32 and
    float32 [B, max_new_tokens, alternatives]; 0 after the row's end. None where none were asked for."""
    passes: int | None = None
    """Of the model, behind the prompts', where tokens were guessed ahead; None elsewhere."""


def generate(
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
    alternatives: int = 0,
    past: Past | None = None,
) -> Generated:
    """Continue prompts until each row has met an eos, or holds `max_new_tokens` new tokens.

    With an encoder, `tokens` are what it reads, and what is continued are `decoder_tokens` (lists of ids or an
    array without padding); None is the card's decoder_start token for each row.

    `tokens`: lists of ids, or an integer array [B, T] whose `mask` [B, T] is False on padding, on either
    side. `eos`: the ids that end a row; None takes those of the model's card, `()` never stops. `pad`: None
    takes the card's, else the first eos, else 0. `samples`: rows made of each prompt, of a beam search the best.
    `key`: a jax key; None draws a fresh one from the system, and reports it. `adapter`: the collection "lora"
    (nn/linear.py). `prefix`: a decoder's prompt is read in both directions, for models that were trained so (prefix
    language models: Raffel et al., 2020, section 3.2.1). `alternatives`: how many of the likeliest tokens are told
    for each new one; another number compiles anew. `past`: what all prompts begin with, by `remember`; the rest alone
    is read.

    Where the parameters are spread over several processes, all are to call this with the same arguments.

    Raises ValueError, before any work, for prompts that are empty, hold ids that the model does not know, or
    do not fit its positions together with the new tokens, and for numbers out of their range.
    """
    given = mask, strategy, eos, pad, decoder_tokens, samples, key, adapter, prefix, alternatives, past
    state, request = start(model, params, tokens, max_new_tokens, *given, whole=True)
    state = distributed.together(steps, model, state, request, np.int32(max_new_tokens))
    found = state.best(samples, request.strategy.width) if isinstance(state, Search) else state
    columns = found.tokens, found.scores, found.alternatives
    tokens, scores, likeliest = jax.tree.map(lambda leaf: distributed.read(leaf)[:, :max_new_tokens], columns)
    return Generated(
        tokens,
        distributed.read(found.lengths),
        scores,
        request.key,
        found.ranks if isinstance(state, Search) else None,
        likeliest,
        int(distributed.read(state.passes)) if isinstance(state, Speculation) else None,
    )


def start(
    model: Model,
    params: Any,
    tokens: prompts.Prompts,
    max_new_tokens: int,
    mask: Any,
    strategy: Strategy,
    eos: int | Sequence[int] | None,
    pad: int | None,
    decoder_tokens: Any,
    samples: int,
    key: Array | None,
    adapter: Any,
    prefix: bool = False,
    alternatives: int = 0,
    past: Past | None = None,
    whole: bool = False,
) -> tuple[draw.State | Search, Request]:
    """Arguments of `generate`, checked -> the state after its first token, and what the next steps need.

    `whole`: nobody looks at tokens before the end, where alone a beam search knows them.
    """
    source, rows = prompts.read_and_continued(model, prompts.rows_of(tokens, mask), decoder_tokens)
    prompts.check(model, source, rows, max_new_tokens, samples, alternatives)
    if prefix and source is not None:
        raise ValueError("prefix is for a decoder alone: what this model reads in both directions is its encoder's")
    if past is not None and (prefix or source is not None):
        raise ValueError("a past is what a decoder has read from left to right: give none with prefix or encoder")
    asked, copies = strategy.checked(), samples
    if isinstance(asked, Beam | Contrastive):
        copies = asked.rows(samples, whole)
        if alternatives and isinstance(asked, Beam):
            raise ValueError("alternatives are those of a row that is drawn: a beam search has beams instead")
    ids = np.asarray(model.card.special("eos") if eos is None else eos, np.int32).reshape(-1)
    if isinstance(asked, Beam):
        asked = asked.planned(model.config.vocab, ids)
    if pad is None:
        pad = next(iter((*model.card.special("pad"), *ids)), 0)
    request = Request(
        layout.per_layer({"params": params} | ({} if adapter is None else {"lora": adapter})),
        asked,
        process.ordered((*strategy.processors, *forced(model.card, strategy.processors))),
        *prompts.right_aligned(rows),
        ids,
        np.int32(pad),
        np.int32(max_new_tokens),
        jax.random.key(_seed(params)) if key is None else key,
        alternatives,
    )
    guesses = getattr(asked, "count", 0)
    plan = Plan(prompts.bucket(max_new_tokens + guesses), 1 + guesses, copies, prefix)
    rest = None
    if past is not None:
        rest = behind(past, rows)
    elif source is None and not prefix and max(map(len, rows)) > CHUNK:
        rest = Rest(*prompts.left_aligned(rows, CHUNK), None)
    if rest is not None and isinstance(strategy, Contrastive):
        raise ValueError(f"contrastive search looks back at whole prompts: give no past, and at most {CHUNK} tokens")
    given = None if source is None else prompts.right_aligned(source), request, plan, rest
    return distributed.together(prefill, model, *given), request


def _seed(params: Any) -> int:
    """Drawn from the system; where the parameters are spread over several processes, in the first of them."""
    drawn = functools.partial(secrets.randbits, 31)
    return distributed.from_first(drawn) if distributed.is_spread(params) else drawn()


def forced(card: Card, given: Sequence[Processor]) -> list[Processor]:
    """The tokens that answers begin and end with, where the card says so and no given processor says otherwise."""
    kinds = {"forced_bos": process.ForcedFirst, "forced_eos": process.ForcedLast}
    return [
        kind(card.special(role)[0])
        for role, kind in kinds.items()
        if card.special(role) and kind not in map(type, given)
    ]


@functools.partial(jax.jit, static_argnames=("model", "plan"))
def prefill(model: Model, source: tuple[Array, Array] | None, request: Request, plan: Plan, rest: Rest | None) -> Any:
    """Read the prompts [B, T] and draw the first token; `source`: what an encoder reads and its mask."""
    return loop_of(request).begin(model, read(model, request.variables, source, request, plan, rest), request)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def steps(model: Model, state: draw.State | Search, request: Request, limit: Array) -> draw.State | Search:
    """Decode until `limit` columns are filled, or every row is done."""

    def going(state: draw.State | Search) -> Array:
        return (state.step < limit) & ~jnp.all(state.done)

    return lax.while_loop(going, lambda state: loop_of(request).step(model, state, request), state)


def loop_of(request: Request) -> Any:
    """The module that begins with prompts and takes steps as the request's strategy does."""
    return LOOPS.get(type(request.strategy), draw)
