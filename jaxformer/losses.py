"""Losses on hidden vectors, never on a whole array of logits. B batch, T length, D width, V vocabulary."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxformer.nn.linear import Unembed

Metrics = dict[str, tuple[Array, Array]]
"""{name: (sum, weight)}: added over microbatches, hosts and batches, divided once."""

CHUNK_ELEMENTS = 2**24
"""Logits that exist at a time: 64 MiB in float32."""


def cross_entropy(
    hidden: Array,
    unembed: Unembed,
    targets: Array,
    weights: Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Array, Metrics]:
    """Weighted mean negative log-likelihood, in nats, over chunks of the length.

    hidden [B, T, D], targets int [B, T], weights [B, T] (0 leaves a target out). `label_smoothing` spreads that
    share of the target's probability evenly over the vocabulary (Szegedy et al., 2016, section 7); `z_loss` times
    the squared log-partition is added (PaLM: Chowdhery et al., 2022, section 5). Both count in the returned loss;
    the metrics "loss" and "accuracy" are of the plain likelihood.

    The gradient is made in the forward pass, chunk by chunk, so that logits are computed once and [B, T, V] never
    exists; second derivatives are not defined.
    """
    weights = weights.astype(jnp.float32)
    total, (likelihood, correct) = _total(hidden, unembed, targets, weights, label_smoothing, z_loss)
    weight = weights.sum()
    return total / jnp.maximum(weight, 1e-9), {"loss": (likelihood, weight), "accuracy": (correct, weight)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _total(
    hidden: Array, unembed: Unembed, targets: Array, weights: Array, smoothing: float, z_loss: float
) -> tuple[Array, tuple[Array, Array]]:
    """(sum of the loss, (sum of the negative log-likelihood, count of right guesses)), each weighted."""

    def chunk(sums: Any, part: tuple[Array, Array, Array]) -> tuple[Any, None]:
        h, t, w = part
        return jax.tree.map(jnp.add, sums, _terms(unembed(h), t, w, smoothing, z_loss)[0]), None

    return _over_chunks(chunk, _zeros(), hidden, targets, weights, unembed)[0]


def _forward(hidden: Array, unembed: Unembed, targets: Array, weights: Array, smoothing: float, z_loss: float) -> Any:
    def chunk(carry: Any, part: tuple[Array, Array, Array]) -> tuple[Any, Array]:
        (sums, d_unembed), (h, t, w) = carry, part
        logits, pull = jax.vjp(lambda h, u: u(h), h, unembed)
        terms, d_logits = _terms(logits, t, w, smoothing, z_loss)
        d_h, d_u = pull(d_logits)
        return (jax.tree.map(jnp.add, sums, terms), jax.tree.map(jnp.add, d_unembed, d_u)), d_h

    start = _zeros(), jax.tree.map(jnp.zeros_like, unembed)
    (sums, d_unembed), d_hidden = _over_chunks(chunk, start, hidden, targets, weights, unembed)
    return sums, (d_hidden, d_unembed, targets.shape)


def _backward(smoothing: float, z_loss: float, kept: Any, cotangent: Any) -> Any:
    (d_hidden, d_unembed, shape), (g, _) = kept, cotangent
    scale = lambda leaf: (leaf * g).astype(leaf.dtype)
    return scale(d_hidden), jax.tree.map(scale, d_unembed), None, jnp.zeros(shape, jnp.float32)


_total.defvjp(_forward, _backward)


def _zeros() -> tuple[Array, tuple[Array, Array]]:
    zero = jnp.zeros((), jnp.float32)
    return zero, (zero, zero)


def _terms(logits: Array, targets: Array, weights: Array, smoothing: float, z_loss: float) -> Any:
    """The chunk's weighted sums, and the gradient of the first with respect to the logits."""
    top = logits.max(-1)
    raised = jnp.exp(logits - top[..., None])
    mass = raised.sum(-1)
    log_z = jnp.log(mass) + top
    hit = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
    target = jnp.where(hit, logits, 0).sum(-1)
    likelihood = log_z - target
    loss = likelihood + z_loss * jnp.square(log_z)
    wanted = hit.astype(jnp.float32)
    if smoothing:
        loss += smoothing * (log_z - logits.mean(-1) - likelihood)
        wanted = wanted * (1 - smoothing) + smoothing / logits.shape[-1]
    pull = (1 + 2 * z_loss * log_z) / mass * weights
    d_logits = raised * pull[..., None] - wanted * weights[..., None]
    correct = (target >= top).astype(jnp.float32)
    return ((loss * weights).sum(), ((likelihood * weights).sum(), (correct * weights).sum())), d_logits


def _over_chunks(chunk: Any, start: Any, hidden: Array, targets: Array, weights: Array, unembed: Unembed) -> Any:
    """Scan `chunk` over pieces of the length, so that a batch split over devices stays where it is."""
    batch, length = targets.shape
    vocab = unembed.kernel.shape[0 if unembed.tied else 1]
    longest = max(1, CHUNK_ELEMENTS // (batch * vocab))
    pieces = -(-length // longest)
    if pieces == 1:
        return chunk(start, (hidden, targets, weights))
    size = -(-length // pieces)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, pieces * size - length)) + ((0, 0),) * (x.ndim - 2))
        return padded.reshape(batch, pieces, size, *x.shape[2:]).swapaxes(0, 1)

    carry, out = jax.lax.scan(chunk, start, (cut(hidden), cut(targets), cut(weights)))
    return carry, None if out is None else out.swapaxes(0, 1).reshape(batch, -1, hidden.shape[-1])[:, :length]
