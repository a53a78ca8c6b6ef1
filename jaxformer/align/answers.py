"""What a model says of answers to prompts. B batch, P prompt, A answer, D width.

Prompts are int [B, P] with their mask, padding left; answers int [B, A], `written` bool [B, A] where there is a
token, padding right. One layout for decoders with an encoder and without: the answers' columns stand together, so
that no logits are computed of prompts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxformer.losses import token_log_probs
from jaxformer.nn.model import Model, Output
from jaxformer.objective import decoder_start, run, unembedded


def read(model: Model, held: Mapping[str, Any], key: Array, train: bool, batch: Mapping[str, Array]) -> Output:
    """The forward pass over prompts and answers; hidden [B, A, D], and what heads say of tokens, stand where each
    token of an answer is foretold: before it.

    batch: tokens, mask, answers, written; see the file. `held` is what `model.apply` takes.
    """
    tokens, mask, answers, written = (batch[name] for name in ("tokens", "mask", "answers", "written"))
    if model.config.encoder is None:
        whole = jnp.concatenate([tokens, answers[:, :-1]], axis=1)
        seen = jnp.concatenate([mask, written[:, :-1]], axis=1)
        out = run(model, held, key, train, tokens=whole, mask=seen)
        first = tokens.shape[1] - 1
        extra = None if out.extra is None else {name: x[:, first:] for name, x in out.extra.items() if x.ndim == 3}
        return dataclasses.replace(out, hidden=out.hidden[:, first:], extra=extra)
    shifted = jnp.pad(answers[:, :-1], ((0, 0), (1, 0)), constant_values=decoder_start(model))
    seen = jnp.pad(written[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return run(model, held, key, train, tokens=tokens, mask=mask, decoder_tokens=shifted, decoder_mask=seen)


def log_probs(
    model: Model, held: Mapping[str, Any], out: Output, answers: Array, *, temperature: Array | float = 1.0
) -> Array:
    """The log-probability, in nats, of each token of the answers: float32 [B, A], of what `read` gave.

    `temperature`: the logits are divided by it, as where answers were drawn so. Behind an answer's end the numbers
    mean nothing.
    """
    return token_log_probs(*unembedded(model, held, out), answers, temperature=temperature)


def summed(values: Array, written: Array) -> Array:
    """The sum [B] of values [B, A] over the tokens that are there."""
    return jnp.where(written, values, 0.0).sum(-1)


def averaged(values: Array, written: Array) -> Array:
    """The mean [B] of values [B, A] over the tokens that are there; 0 where there is none."""
    return summed(values, written) / jnp.maximum(written.sum(-1), 1)
