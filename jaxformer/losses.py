"""Losses; those over a vocabulary take hidden vectors, never a whole array of logits.

B batch, T length, D width, V vocabulary, N classes or outputs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxformer.nn.axes import shares
from jaxformer.nn.linear import Unembed

Metrics = dict[str, tuple[Array, Array]]
"""{name: (sum, weight)}: added over microbatches, hosts and batches, divided once. A loss is the mean of its own
metric "loss" but for what it adds to train by. A sum may be an array, such as a table of counts."""

CHUNK_ELEMENTS = 2**24
"""Logits that exist at a time on a device: 64 MiB in float32. Where devices share the rows it is as many as the
output matrix has numbers, if that is more: they gather it for each chunk, and smaller chunks would save little beside
it."""
MASKED = -1e30
"""The score of what cannot be chosen."""


# Over a vocabulary ------------------------------------------------------------------------------------------


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
    terms = functools.partial(_likelihood, smoothing=label_smoothing, z_loss=z_loss)
    total, (likelihood, correct) = _total(terms, hidden, unembed, (targets, weights), None)
    return _mean(total, weights), _metrics(weights, loss=likelihood, accuracy=correct)


def distillation(
    hidden: Array,
    unembed: Unembed,
    teacher_hidden: Array,
    teacher_unembed: Unembed,
    weights: Array,
    *,
    temperature: float = 1.0,
) -> tuple[Array, Metrics]:
    """Weighted mean divergence of a student's distributions from its teacher's, in nats, over chunks of the length.

    hidden [B, T, D]; teacher_hidden [B, T, D'], of the same vocabulary; weights [B, T]. KL(teacher || student) of
    the logits over `temperature`, times its square, so that gradients keep their size (Hinton et al., 2015, section
    2). The metric "agreement" is the share of tokens that both find likeliest.

    The teacher has no gradient. As in `cross_entropy`, [B, T, V] never exists, for the student nor the teacher.
    """
    weights = weights.astype(jnp.float32)
    terms = functools.partial(_divergence, temperature=temperature)
    total, (divergence, agreed) = _total(terms, hidden, unembed, (teacher_hidden, weights), teacher_unembed)
    return _mean(total, weights), _metrics(weights, loss=divergence, agreement=agreed)


def token_log_probs(hidden: Array, unembed: Unembed, targets: Array, *, temperature: Array | float = 1.0) -> Array:
    """The log-probability, in nats, of each target: float32 [B, T] of hidden [B, T, D] and targets int [B, T].

    The logits are divided by `temperature`. It goes over chunks of the length; its gradient computes each chunk's
    logits once more.
    """

    @jax.checkpoint
    def log_probs(h: Array, t: Array, unembed: Unembed) -> Array:
        logits = unembed(h) / temperature
        return _at(logits, t) - jax.nn.logsumexp(logits, axis=-1)

    chunk = lambda nothing, part: (nothing, log_probs(*part, unembed))
    return _over_chunks(chunk, None, (hidden, targets), _vocabulary(unembed))[1]


Terms = Callable[[Array, Any, Any], tuple[Any, Array]]
"""(logits [B, t, V], what goes with these tokens, what goes with all) -> ((the loss, (the metric "loss", hits)), each
weighted and summed, and the gradient of the first with respect to the logits)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(terms: Terms, hidden: Array, unembed: Unembed, beside: Any, fixed: Any) -> Any:
    """The sums of `terms` over all chunks; `beside`, arrays [B, T, ...], and `fixed`, a pytree, have no gradient."""

    def chunk(sums: Any, part: tuple[Array, Any]) -> tuple[Any, None]:
        h, b = part
        return jax.tree.map(jnp.add, sums, terms(unembed(h), b, fixed)[0]), None

    return _over_chunks(chunk, _zeros(), (hidden, beside), _vocabulary(unembed, fixed))[0]


def _forward(terms: Terms, hidden: Array, unembed: Unembed, beside: Any, fixed: Any) -> Any:
    def chunk(carry: Any, part: tuple[Array, Any]) -> tuple[Any, Array]:
        (sums, d_unembed), (h, b) = carry, part
        logits, pull = jax.vjp(lambda h, u: u(h), h, unembed)
        new, d_logits = terms(logits, b, fixed)
        d_h, d_u = pull(d_logits)
        return (jax.tree.map(jnp.add, sums, new), jax.tree.map(jnp.add, d_unembed, d_u)), d_h

    start = _zeros(), jax.tree.map(jnp.zeros_like, unembed)
    (sums, d_unembed), d_hidden = _over_chunks(chunk, start, (hidden, beside), _vocabulary(unembed, fixed))
    return sums, (d_hidden, d_unembed)


def _backward(terms: Terms, kept: Any, cotangent: Any) -> Any:
    (d_hidden, d_unembed), (g, _) = kept, cotangent
    scale = lambda leaf: (leaf * g).astype(leaf.dtype)
    return scale(d_hidden), jax.tree.map(scale, d_unembed), None, None


_total.defvjp(_forward, _backward)


def _zeros() -> tuple[Array, tuple[Array, Array]]:
    zero = jnp.zeros((), jnp.float32)
    return zero, (zero, zero)


def _likelihood(
    logits: Array, beside: tuple[Array, Array], fixed: None, smoothing: float, z_loss: float
) -> tuple[Any, Array]:
    targets, weights = beside
    top = logits.max(-1)
    raised = jnp.exp(logits - top[..., None])
    mass = raised.sum(-1)
    log_z = jnp.log(mass) + top
    hit = _hit(logits, targets)
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


def _divergence(
    logits: Array, beside: tuple[Array, Array], teacher_unembed: Unembed, temperature: float
) -> tuple[Any, Array]:
    teacher_hidden, weights = beside
    teacher = teacher_unembed(teacher_hidden)
    log_p, log_q = (jax.nn.log_softmax(x / temperature) for x in (teacher, logits))
    p = jnp.exp(log_p)
    loss = temperature**2 * ((p * (log_p - log_q)).sum(-1) * weights).sum()
    agreed = ((teacher.argmax(-1) == logits.argmax(-1)) * weights).sum()
    return (loss, (loss, agreed)), temperature * (jnp.exp(log_q) - p) * weights[..., None]


def _hit(logits: Array, targets: Array) -> Array:
    """Bool [..., V], true at the target: unlike a gathering it leaves a vocabulary split over devices as it is."""
    return jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]


def _at(logits: Array, targets: Array) -> Array:
    return jnp.where(_hit(logits, targets), logits, 0).sum(-1)


def _vocabulary(*unembeds: Unembed | None) -> int:
    """Logits of one token."""
    return sum(u.kernel.shape[0 if u.tied else 1] for u in unembeds if u is not None)


def _over_chunks(chunk: Any, start: Any, arrays: Any, vocabulary: int) -> tuple[Any, Any]:
    """Scan `chunk` over pieces of the length of arrays [B, T, ...], so that a batch split over devices stays where it
    is; what it gives for each piece is put together as [B, T, ...].
    """
    batch, length, width = jax.tree.leaves(arrays)[0].shape
    devices = shares((batch, length, vocabulary), ("batch", "length", "vocab"))
    elements = CHUNK_ELEMENTS if devices == 1 else max(CHUNK_ELEMENTS, width * vocabulary)
    longest = max(1, elements * devices // (batch * vocabulary))
    pieces = -(-length // longest)
    if pieces == 1:
        return chunk(start, arrays)
    size = -(-length // pieces)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, pieces * size - length)) + ((0, 0),) * (x.ndim - 2))
        return padded.reshape(batch, pieces, size, *x.shape[2:]).swapaxes(0, 1)

    def joined(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(batch, -1, *x.shape[3:])[:, :length]

    carry, out = jax.lax.scan(chunk, start, jax.tree.map(cut, arrays))
    return carry, jax.tree.map(joined, out)


# Over a few numbers -----------------------------------------------------------------------------------------


def classification(
    logits: Array, labels: Array, weights: Array, *, label_smoothing: float = 0.0
) -> tuple[Array, Metrics]:
    """Weighted mean negative log-likelihood, in nats, of one class each.

    logits [B, N] or [B, T, N]; labels int and weights [B] or [B, T]. As in `cross_entropy`, the metrics are of the
    plain likelihood.
    """
    weights, logits = weights.astype(jnp.float32), logits.astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits)
    likelihood = -_at(log_p, labels)
    loss = (1 - label_smoothing) * likelihood - label_smoothing * log_p.mean(-1)
    correct = logits.argmax(-1) == labels
    return _mean((loss * weights).sum(), weights), _metrics(
        weights, loss=(likelihood * weights).sum(), accuracy=(correct * weights).sum()
    )


def multi_label(logits: Array, targets: Array, weights: Array) -> tuple[Array, Metrics]:
    """Weighted mean, over rows, of the mean negative log-likelihood of N labels that each hold or not.

    logits [B, N], targets [B, N] of 0 and 1, weights [B]. The metric "accuracy" is the share of labels got right.
    """
    weights, logits = weights.astype(jnp.float32), logits.astype(jnp.float32)
    likelihood = (jax.nn.softplus(logits) - targets * logits).mean(-1)
    correct = ((logits > 0) == (targets > 0)).mean(-1)
    total = (likelihood * weights).sum()
    return _mean(total, weights), _metrics(weights, loss=total, accuracy=(correct * weights).sum())


def regression(outputs: Array, targets: Array, weights: Array) -> tuple[Array, Metrics]:
    """Weighted mean, over rows, of the mean squared error.

    outputs [B, N], targets float [B, N] (or [B] where N is 1), weights [B].
    """
    weights, outputs = weights.astype(jnp.float32), outputs.astype(jnp.float32)
    error = jnp.square(outputs - targets.reshape(outputs.shape)).mean(-1)
    total = (error * weights).sum()
    return _mean(total, weights), _metrics(weights, loss=total)


def contrastive(a: Array, b: Array, scale: Array | float, weights: Array) -> tuple[Array, Metrics]:
    """Each row of a is to find its own row among those of b by scale * (a . b), and the other way round: the mean of
    both negative log-likelihoods (Radford et al., 2021, section 2.3).

    a and b [B, D], compared as they come: of length 1 for cosines. Rows of weight 0 in weights [B] are neither sought
    nor found. The metric "accuracy" is of a's rows. Only rows of one microbatch meet: here accumulation changes what
    is learned.
    """
    weights, a, b = weights.astype(jnp.float32), a.astype(jnp.float32), b.astype(jnp.float32)
    seen, own = weights > 0, jnp.arange(len(weights))
    scores = scale * (a @ b.T)
    there, back = (jnp.where(seen[None], s, MASKED) for s in (scores, scores.T))
    likelihood = -sum(_at(jax.nn.log_softmax(s), own) for s in (there, back)) / 2
    total = jnp.where(seen, likelihood * weights, 0).sum()
    correct = ((there.argmax(-1) == own) * weights).sum()
    return _mean(total, weights), _metrics(weights, loss=total, accuracy=correct)


def confusion(predicted: Array, labels: Array, weights: Array, classes: int) -> tuple[Array, Array]:
    """A metric: ([N, N], weight), how much weight each label (first axis) had that was predicted as each class.

    predicted and labels int, weights, all of one shape. Where N labels hold or not, `jax.vmap` makes a table of each.
    """
    weights = weights.astype(jnp.float32)
    true, seen = (jax.nn.one_hot(x.reshape(-1), classes) for x in (labels, predicted))
    return (true * weights.reshape(-1, 1)).T @ seen, weights.sum()


def _mean(total: Array, weights: Array) -> Array:
    return total / jnp.maximum(weights.sum(), 1e-9)


def _metrics(weights: Array, **sums: Array) -> Metrics:
    weight = weights.sum()
    return {name: (total, weight) for name, total in sums.items()}
