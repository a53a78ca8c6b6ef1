"""What a model says comes: at a place, layer by layer, over a text. L layers, B batch, T length, V vocabulary, N
tokens, K choices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxformer.inspect.taps import look
from jaxformer.nn.model import Model
from jaxformer.nn.norm import Norm
from jaxformer.objective import decoder_start, needs, too_long


@struct.dataclass
class Choices:
    """The likeliest tokens of a distribution, likeliest first."""

    ids: Array
    """int [..., K]."""
    probability: Array
    """float32 [..., K], of the whole vocabulary's 1."""


@struct.dataclass
class Said:
    """What a model said of each token of a text before it was told."""

    tokens: Array
    """int [N], those that were to be found."""
    loss: Array
    """float32 [N], minus the logarithm of each one's probability, in nats."""
    choices: Choices
    """[N, K], what it had thought likeliest."""


def choices(logits: Array, count: int = 10) -> Choices:
    """The `count` likeliest tokens by logits [..., V].

    `out.logits[:, -1]` says what comes next, `out.logits[0, place]` of a masked model what stands under a mask.
    """
    log_p, ids = jax.lax.top_k(jax.nn.log_softmax(logits.astype(jnp.float32)), min(count, logits.shape[-1]))
    return Choices(ids, jnp.exp(log_p))


def lens(model: Model, params: Any, *tokens: Array, read: Callable[[Array], Any] = lambda x: x, **given: Any) -> Any:
    """The logit lens (nostalgebraist, 2020, "interpreting GPT: the logit lens"): what the model would say if it ended
    behind each layer, float32 [L + 1, B, T, V]; first what goes into the first block, last the model's own logits.

    The residual stream of each layer goes through the stack's final norm, where it has one, and through the head.
    `tokens` and `given` are what `model.apply` takes. `read` makes of each layer's logits [B, T, V] what is kept,
    such as `choices`: of a large vocabulary and many layers there is not room for all logits at a time. Pure.

    Of one that norms behind each sublayer the stream is normed already. Early layers are seen with the eyes of the
    last: what they hold in other directions is not seen.
    """
    main = model.config.main
    final, path = getattr(model.config, main).final_norm, f"{main}/blocks/residual"
    _, seen = look(model, params, *tokens, taps=[f"{main}/embedded", path], logits=False, **given)
    x_LBTD = jnp.concatenate([seen[f"{main}/embedded"][None], seen[path]])
    if final is not None:
        x_LBTD = Norm(final).apply({"params": params[main]["norm"]}, x_LBTD)  # type: ignore[assignment]
    return jax.lax.map(lambda x_BTD: read(_logits(model, params, x_BTD)), x_LBTD)


def losses(
    model: Model,
    params: Any,
    tokens: Array,
    *,
    targets: Array | None = None,
    mask: int | None = None,
    count: int = 5,
) -> Said:
    """How well the model foresaw each token of one text, int [T]; which tokens depends on what the model is.

    - a decoder: each but the first, from those before it; N = T - 1
    - an encoder and a decoder: each of `targets` [N], from `tokens` and the targets before it
    - an encoder: each token from all others, with `mask`, a token id, in its place; a batch of N = T rows of the text

    Raises ValueError where `targets` or `mask` is missing, or speaks of another kind of model.
    """
    tokens = jnp.asarray(tokens, jnp.int32)
    targets = None if targets is None else jnp.asarray(targets, jnp.int32)
    if wrong := _problems(model, tokens, targets, mask):
        raise ValueError("these losses cannot be had:\n" + "\n".join(f"  - {line}" for line in wrong))
    if targets is not None:
        hidden_ND = _behind_an_encoder(model, params, tokens, targets)
    elif mask is not None:
        hidden_ND, targets = _masked_in_turn(model, params, tokens, mask), tokens
    else:
        hidden_ND, targets = _hidden(model, params, tokens[None, :-1])[0], tokens[1:]
    logits_NV = _logits(model, params, hidden_ND)
    log_p_NV = jax.nn.log_softmax(logits_NV)
    return Said(targets, -jnp.take_along_axis(log_p_NV, targets[:, None], axis=1)[:, 0], choices(logits_NV, count))


def _problems(model: Model, tokens: Array, targets: Array | None, mask: int | None) -> list[str]:
    c = model.config
    encoder, decoder = c.encoder is not None, c.decoder is not None
    kind = " and ".join(name for name, there in (("an encoder", encoder), ("a decoder", decoder)) if there)
    expected = {"targets": (targets is not None, encoder and decoder), "mask": (mask is not None, not decoder)}
    found = needs(c, encoder=encoder, decoder=decoder)
    for name, (there, wanted) in expected.items():
        if there != wanted:
            found.append(f"{name} is {'given' if there else 'missing'}: the model has {kind}")
    for name, x in {"tokens": tokens, "targets": targets}.items():
        if x is not None and (x.ndim != 1 or not x.size):
            found.append(f"{name} must be [T], one text with a token at least, got {x.shape}")
    if found:
        return found
    if decoder and not encoder and len(tokens) < 2:
        return ["tokens: a single one has none before it, from which it could be foreseen"]
    return too_long(c, encoder=len(tokens), decoder=len(tokens) - 1 if targets is None else len(targets))


def _behind_an_encoder(model: Model, params: Any, tokens: Array, targets: Array) -> Array:
    before = jnp.concatenate([jnp.full((1,), decoder_start(model), targets.dtype), targets[:-1]])
    return _hidden(model, params, tokens[None], before[None])[0]


def _masked_in_turn(model: Model, params: Any, tokens: Array, mask: int) -> Array:
    """The hidden vector of each token where that one is masked."""
    own_NT = jnp.eye(len(tokens), dtype=bool)
    hidden_NTD = _hidden(model, params, jnp.where(own_NT, mask, tokens[None]))
    return jnp.take_along_axis(hidden_NTD, jnp.arange(len(tokens))[:, None, None], axis=1)[:, 0]


def _hidden(model: Model, params: Any, *tokens: Array) -> Array:
    return model.apply({"params": params}, *tokens, logits=False).hidden  # type: ignore[union-attr]


def _logits(model: Model, params: Any, hidden: Array) -> Array:
    return model.apply({"params": params}, hidden, method="unembed")  # type: ignore[return-value]
