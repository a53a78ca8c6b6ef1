import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import losses
from jaxformer.losses import cross_entropy
from jaxformer.nn.linear import Unembed

B, T, D, V = 2, 7, 8, 11
random = np.random.default_rng(0)
HIDDEN, KERNEL = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((B, T, D), (D, V)))
TARGETS = jnp.asarray(random.integers(0, V, (B, T)))
WEIGHTS = jnp.asarray(random.uniform(0.2, 2, (B, T)) * (random.random((B, T)) > 0.3), jnp.float32)
ADAPTER = {
    "a": jnp.asarray(random.normal(size=(D, 2)), jnp.float32),
    "b": jnp.asarray(random.normal(size=(2, V)), jnp.float32),
    "scale": jnp.float32(0.5),
}
HEADS = {
    "own": Unembed(KERNEL, False),
    "tied, scaled and capped": Unembed(KERNEL.T, True, 0.5, 4.0),
    "adapted": Unembed(KERNEL, False, adapter=ADAPTER),
}
OPTIONS = [{}, {"label_smoothing": 0.1, "z_loss": 0.01}]


@pytest.fixture
def chunked(monkeypatch):
    """Two positions at a time: four pieces, the last of them padded."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 2 * B * V)


def plain(hidden, unembed, targets, weights, label_smoothing=0.0, z_loss=0.0):
    """The formulas, on whole logits and one-hot targets."""
    logits = unembed(hidden)
    logp = jax.nn.log_softmax(logits)
    wanted = jax.nn.one_hot(targets, V) * (1 - label_smoothing) + label_smoothing / V
    each = -(wanted * logp).sum(-1) + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    return (each * weights).sum() / weights.sum()


@functools.partial(jax.jit, static_argnums=0, static_argnames=("label_smoothing", "z_loss"))
def value_and_gradients(loss, hidden, unembed, weights=WEIGHTS, **options):
    def value(hidden, unembed):
        out = loss(hidden, unembed, TARGETS, weights, **options)
        return out[0] if isinstance(out, tuple) else out

    return jax.value_and_grad(value, argnums=(0, 1))(hidden, unembed)


def close(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_values_and_gradients_are_those_of_the_plain_form(head, options):
    close(
        value_and_gradients(cross_entropy, HIDDEN, HEADS[head], **options),
        value_and_gradients(plain, HIDDEN, HEADS[head], **options),
    )


@pytest.mark.parametrize("head", HEADS)
def test_chunks_change_nothing(head, chunked):
    fresh = lambda *args, **options: cross_entropy(*args, **options)  # traced anew, with the size of this test
    options = OPTIONS[1]
    close(
        value_and_gradients(fresh, HIDDEN, HEADS[head], **options),
        value_and_gradients(plain, HIDDEN, HEADS[head], **options),
    )


def test_metrics_are_of_the_plain_likelihood_whatever_the_loss_adds():
    logp = jax.nn.log_softmax(HIDDEN @ KERNEL)
    nll = -jnp.take_along_axis(logp, TARGETS[..., None], -1)[..., 0]
    hits = (logp.argmax(-1) == TARGETS) * WEIGHTS
    for options in OPTIONS:
        metrics = cross_entropy(HIDDEN, HEADS["own"], TARGETS, WEIGHTS, **options)[1]
        close(metrics, {"loss": ((nll * WEIGHTS).sum(), WEIGHTS.sum()), "accuracy": (hits.sum(), WEIGHTS.sum())})


def test_a_weight_of_zero_leaves_a_target_out():
    other = jnp.where(WEIGHTS > 0, TARGETS, (TARGETS + 1) % V)
    hidden = jnp.where((WEIGHTS > 0)[..., None], HIDDEN, 100.0)
    got, want = (cross_entropy(h, HEADS["own"], t, WEIGHTS) for h, t in ((hidden, other), (HIDDEN, TARGETS)))
    close(got, want)


def test_no_weight_at_all_gives_zero_and_no_gradient():
    loss, gradients = value_and_gradients(cross_entropy, HIDDEN, HEADS["own"], jnp.zeros((B, T)), z_loss=0.1)
    assert loss == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_huge_logits_stay_finite():
    loss, gradients = value_and_gradients(cross_entropy, HIDDEN * 1e4, HEADS["own"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, gradients)))


@pytest.mark.parametrize("tied", [True, False])
def test_half_precision_hidden_vectors_and_kernels_keep_their_dtypes(tied, chunked):
    half = Unembed((KERNEL.T if tied else KERNEL).astype(jnp.bfloat16), tied)
    loss, (d_hidden, d_unembed) = value_and_gradients(cross_entropy, HIDDEN.astype(jnp.bfloat16), half)
    assert (loss.dtype, d_hidden.dtype, d_unembed.kernel.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    exact = value_and_gradients(plain, HIDDEN, Unembed(KERNEL.T if tied else KERNEL, tied))
    np.testing.assert_allclose(d_unembed.kernel.astype(jnp.float32), exact[1][1].kernel, atol=0.01)


def test_a_constant_factor_scales_the_gradient():
    one = jax.jit(jax.grad(lambda h: cross_entropy(h, HEADS["own"], TARGETS, WEIGHTS)[0]))(HIDDEN)
    many = jax.jit(jax.grad(lambda h: 3.0 * cross_entropy(h, HEADS["own"], TARGETS, WEIGHTS)[0]))(HIDDEN)
    np.testing.assert_allclose(many, 3 * one, rtol=1e-6)


# What is never made -----------------------------------------------------------------------------------------


def equations(jaxpr):
    """Each equation of a program, those of its inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def largest(function, *args):
    jaxpr = jax.make_jaxpr(function)(*args)
    return max(v.aval.size for e in equations(jaxpr.jaxpr) for v in e.outvars if hasattr(v.aval, "size"))


def test_no_array_of_all_logits_exists_in_training(monkeypatch):
    length, vocab = 64, 500
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 8 * B * vocab)
    hidden, targets = jnp.ones((B, length, D)), jnp.zeros((B, length), jnp.int32)
    weights, unembed = jnp.ones((B, length)), Unembed(jnp.ones((D, vocab)), False)

    def gradients(loss):
        return jax.grad(lambda h, u: loss(h, u, targets, weights)[0], argnums=(0, 1))

    whole = lambda h, u, t, w: ((jax.nn.log_softmax(u(h))[..., 0] * w).sum(), None)
    assert largest(gradients(whole), hidden, unembed) >= B * length * vocab
    assert largest(gradients(cross_entropy), hidden, unembed) <= 8 * B * vocab


def products(function, *args):
    """Floating-point operations of the compiled program: scanned bodies count once in each, so that these compare."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("pieces", [1, 4])
def test_nothing_is_computed_that_was_not_asked_for(monkeypatch, pieces):
    """The value alone costs one product; a gradient for the hidden vectors alone two, not three."""
    size, vocab = 64, 512
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", B * size * vocab // pieces)
    hidden, targets = jnp.ones((B, size, size)), jnp.zeros((B, size), jnp.int32)
    one = 2 * B * size * size * vocab / pieces

    def loss(hidden, kernel):
        return cross_entropy(hidden, Unembed(kernel, False), targets, jnp.ones((B, size)))[0]

    kernel = jnp.ones((size, vocab))
    counts = [products(f, hidden, kernel) for f in (loss, jax.grad(loss), jax.grad(loss, argnums=(0, 1)))]
    for count, expected in zip(counts, (1, 2, 3), strict=True):
        assert expected * one <= count < (expected + 0.5) * one
