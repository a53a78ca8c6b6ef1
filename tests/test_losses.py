import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import losses
from jaxformer.losses import confusion, cross_entropy, distillation, token_log_probs
from jaxformer.nn.linear import Unembed
from jaxformer.sharding import MeshConfig, make_mesh

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


# A teacher, and single tokens -------------------------------------------------------------------------------

TEACHER_HIDDEN = jnp.asarray(random.normal(size=(B, T, D + 1)), jnp.float32)
PULL = jnp.asarray(random.normal(size=(B, T)), jnp.float32)
TEACHER = Unembed(jnp.asarray(random.normal(size=(V, D + 1)), jnp.float32), True)


def plain_distillation(hidden, unembed, teacher_hidden, teacher, weights, temperature):
    p = jax.nn.softmax(teacher(teacher_hidden) / temperature)
    log_q = jax.nn.log_softmax(unembed(hidden) / temperature)
    each = (p * (jnp.log(p) - log_q)).sum(-1) * temperature**2
    return (each * weights).sum() / weights.sum()


@pytest.mark.parametrize(("pieces", "temperature"), [(1, 1.0), (4, 3.0)])
@pytest.mark.parametrize("head", HEADS)
def test_distillation_is_the_plain_divergence(head, pieces, temperature, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 2 * -(-T // pieces) * B * V)

    def both(loss):
        value = lambda h, u: loss(h, u, TEACHER_HIDDEN, TEACHER, WEIGHTS, temperature=temperature)
        first = lambda h, u: out[0] if isinstance(out := value(h, u), tuple) else out
        return jax.jit(jax.value_and_grad(first, argnums=(0, 1)))(HIDDEN, HEADS[head])

    close(both(distillation), both(plain_distillation))


def test_distillation_by_hand():
    """The teacher says 3/4 and 1/4, the student is undecided; the second token is not there."""
    student, teacher = jnp.zeros((1, 2, 2)), jnp.log(jnp.asarray([[[3.0, 1.0], [9.0, 1.0]]]))
    same, weights = Unembed(jnp.eye(2), False), jnp.asarray([[2.0, 0.0]])
    by_student = jax.grad(lambda h: distillation(h, same, teacher, same, weights), has_aux=True)
    gradient, metrics = jax.jit(by_student)(student)
    divergence = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    close(metrics, {"loss": (np.float32(2 * divergence), 2.0), "agreement": (2.0, 2.0)})
    close(gradient, jnp.asarray([[[-0.25, 0.25], [0.0, 0.0]]]))
    warm = jax.jit(lambda h: distillation(h, same, teacher, same, weights, temperature=2.0))
    loss, metrics = warm(-teacher)
    p = np.sqrt(3) / (1 + np.sqrt(3))
    np.testing.assert_allclose(loss, 4 * (2 * p - 1) * np.log(3) / 2, rtol=1e-6)
    assert float(metrics["agreement"][0]) == 0


def test_at_a_high_temperature_distillation_matches_logits():
    """Hinton et al., 2015, section 2.1: the gradient nears (z - v) / V of logits of mean zero."""
    same, one = Unembed(jnp.eye(V), False), jnp.ones((1, 1))
    z, v = (x[:1, :1, :] - x[0, 0].mean() for x in (HIDDEN @ KERNEL, TEACHER(TEACHER_HIDDEN)))
    gradient = jax.jit(jax.grad(lambda z: distillation(z, same, v, same, one, temperature=300.0)[0]))(z)
    np.testing.assert_allclose(gradient, (z - v) / V, atol=5e-3)


def test_a_teacher_has_no_gradient_and_equals_itself():
    def loss(hidden, teacher_hidden, teacher):
        return distillation(hidden, HEADS["own"], teacher_hidden, teacher, WEIGHTS)[0]

    gradients = jax.jit(jax.grad(loss, argnums=(1, 2)))(HIDDEN, TEACHER_HIDDEN, TEACHER)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))
    value, gradient = jax.jit(jax.value_and_grad(loss))(HIDDEN, HIDDEN, HEADS["own"])
    np.testing.assert_allclose((value, np.abs(gradient).max()), (0, 0), atol=1e-6)


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("head", HEADS)
def test_log_probabilities_of_tokens_are_the_plain_ones_and_so_are_their_gradients(head, pieces, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", -(-T // pieces) * B * V)

    def by_softmax(hidden, unembed, targets):
        return jnp.take_along_axis(jax.nn.log_softmax(unembed(hidden)), targets[..., None], -1)[..., 0]

    def pulled(function):
        both = jax.value_and_grad(lambda h, u: (function(h, u, TARGETS) * PULL).sum(), argnums=(0, 1))
        return jax.jit(both)(HIDDEN, HEADS[head])

    of_some = [jax.jit(lambda h, u: f(h, u, TARGETS))(HIDDEN, HEADS[head]) for f in (token_log_probs, by_softmax)]
    close(*of_some)
    close(pulled(token_log_probs), pulled(by_softmax))


# A few numbers ----------------------------------------------------------------------------------------------

LN3 = float(np.log(3))
classification, contrastive, multi_label, regression = map(
    jax.jit, (losses.classification, losses.contrastive, losses.multi_label, losses.regression)
)
A_ROWS, B_ROWS = (jnp.asarray(random.normal(size=(6, D)), jnp.float32) for _ in range(2))


def test_classification_by_hand():
    """Two rows that count, of weights 1 and 3, between a third whose label is none."""
    logits = jnp.asarray([[LN3, 0.0], [5.0, 5.0], [0.0, LN3]])
    labels, weights = jnp.asarray([0, -100, 0]), jnp.asarray([1.0, 0.0, 3.0])
    gradient, metrics = jax.grad(lambda x: classification(x, labels, weights), has_aux=True)(logits)
    total = -np.log(0.75) - 3 * np.log(0.25)
    close(metrics, {"loss": (np.float32(total), 4.0), "accuracy": (1.0, 4.0)})
    close(gradient, jnp.asarray([[-0.25, 0.25], [0.0, 0.0], [-0.75, 0.75]]) * jnp.asarray([[1.0], [0.0], [3.0]]) / 4)
    close(classification(logits, labels, weights)[0], np.float32(total / 4))


def test_classification_smooths_as_cross_entropy_does_and_takes_tokens():
    logits, same = HIDDEN @ KERNEL, Unembed(jnp.eye(V), False)
    of_classes = lambda x: classification(x, TARGETS, WEIGHTS, label_smoothing=0.2)
    of_tokens = lambda x: cross_entropy(x, same, TARGETS, WEIGHTS, label_smoothing=0.2)
    close(*(jax.jit(jax.value_and_grad(loss, has_aux=True))(logits) for loss in (of_classes, of_tokens)))
    flat = classification(logits.reshape(-1, V), TARGETS.reshape(-1), WEIGHTS.reshape(-1), label_smoothing=0.2)
    close(flat, of_classes(logits))


def test_many_labels_by_hand():
    logits = jnp.asarray([[LN3, -LN3], [LN3, 0.0]])
    targets, weights = jnp.asarray([[1, 1], [0, 1]]), jnp.asarray([1.0, 2.0])
    gradient, metrics = jax.grad(lambda x: multi_label(x, targets, weights), has_aux=True)(logits)
    rows = -np.log([[0.75, 0.25], [0.25, 0.5]]).mean(1)
    close(metrics, {"loss": (np.float32(rows @ [1, 2]), 3.0), "accuracy": (0.5, 3.0)})
    close(gradient, jnp.asarray([[-0.25, -0.75], [0.75 * 2, -0.5 * 2]]) / 2 / 3)


def test_regression_by_hand():
    outputs, targets, weights = jnp.asarray([[1.0], [4.0], [9.0]]), 3 * jnp.ones(3), jnp.asarray([1, 3, 0])
    gradient, metrics = jax.grad(lambda x: regression(x, targets, weights), has_aux=True)(outputs)
    close(metrics, {"loss": (7.0, 4.0)})
    close(gradient, jnp.asarray([[-1.0], [1.5], [0.0]]))
    two = regression(jnp.asarray([[1.0, 2.0]]), jnp.asarray([[2.0, 5.0]]), jnp.ones(1))[0]
    assert float(two) == 5.0
    with pytest.raises(TypeError, match="reshape"):
        regression(jnp.ones((3, 2)), targets, weights)


def test_contrast_by_hand():
    """Two pairs at scores ln 3 for their own and 0 for the other's; and between them a row that is not there."""
    a = jnp.asarray([[1.0, 0.0], [7.0, 7.0], [0.0, 1.0]])
    weights = jnp.asarray([1.0, 0.0, 2.0])
    loss, metrics = contrastive(a, a, LN3, weights)
    close(metrics, {"loss": (np.float32(-3 * np.log(0.75)), 3.0), "accuracy": (3.0, 3.0)})
    close(loss, np.float32(-np.log(0.75)))
    loss, metrics = contrastive(a, a[::-1], LN3, weights)
    close((loss, metrics["accuracy"]), (np.float32(-np.log(0.25)), (0.0, 3.0)))
    slope = jax.grad(lambda scale: contrastive(a, a, scale, weights)[0])(LN3)
    np.testing.assert_allclose(slope, -0.25, rtol=1e-6)  # d/ds of -log(e^s / (e^s + 1))


def test_rows_that_are_not_there_contrast_with_nothing():
    a, b = A_ROWS, B_ROWS
    weights, kept = jnp.asarray([1.0, 0.0, 2.0, 0.5, 0.0, 1.0]), np.array([0, 2, 3, 5])
    value = jax.jit(jax.value_and_grad(lambda a, b, w: contrastive(a, b, 2.0, w), argnums=(0, 1), has_aux=True))
    (loss, metrics), gradients = value(a.at[1].set(1e3), b.at[4].set(1e3), weights)
    (want, wanted), expected = value(a[kept], b[kept], weights[kept])
    close((loss, metrics), (want, wanted))
    for gradient, exact in zip(gradients, expected, strict=True):
        close(gradient[kept], exact)
        assert not np.any(gradient[np.array([1, 4])])


def test_contrast_looks_both_ways():
    one, scores = jnp.ones(6), 3.0 * np.asarray(A_ROWS) @ np.asarray(B_ROWS).T
    both = [-np.diag(s - np.log(np.exp(s).sum(1, keepdims=True))).mean() for s in (scores, scores.T)]
    close(contrastive(A_ROWS, B_ROWS, 3.0, one)[0], np.float32(np.mean(both)))
    close(contrastive(B_ROWS, A_ROWS, 3.0, one)[0], np.float32(np.mean(both)))


def test_a_table_counts_what_was_taken_for_what():
    predicted, labels = jnp.asarray([[0, 2], [2, 1]]), jnp.asarray([[0, 2], [1, 1]])
    table, weight = confusion(predicted, labels, jnp.asarray([[1.0, 2.0], [0.5, 0.0]]), 3)
    np.testing.assert_array_equal(table, [[1, 0, 0], [0, 0, 0.5], [0, 0, 2]])
    assert float(weight) == 3.5
    each = jax.vmap(confusion, (1, 1, None, None), (0, None))
    tables, weight = each(jnp.asarray([[1, 0], [1, 1]]), jnp.asarray([[1, 1], [0, 1]]), jnp.asarray([1.0, 2.0]), 2)
    np.testing.assert_array_equal(tables, [[[0, 2], [0, 1]], [[0, 0], [1, 2]]])
    assert float(weight) == 3


ROWS = {
    "classification": lambda x, w: classification(x, jnp.zeros(3, jnp.int32), w, label_smoothing=0.1),
    "multi_label": lambda x, w: multi_label(x, jnp.ones((3, 4)), w),
    "regression": lambda x, w: regression(x, jnp.ones((3, 4)), w),
    "contrastive": lambda x, w: contrastive(x, 2 * x, 5.0, w),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_no_weight_and_of_huge_numbers_leave_all_finite(name):
    value = jax.jit(jax.value_and_grad(lambda x, w: ROWS[name](x, w)[0]))
    loss, gradient = value(A_ROWS[:3, :4], jnp.zeros(3))
    assert float(loss) == 0
    assert not np.any(gradient)
    huge = value(A_ROWS[:3, :4] * 1e3, jnp.ones(3))
    assert all(np.isfinite(leaf).all() for leaf in huge)


@pytest.mark.parametrize("name", ROWS)
def test_a_loss_is_the_mean_of_its_metric_and_float32_of_half_precision(name):
    loss, metrics = ROWS[name](A_ROWS[:3, :4].astype(jnp.bfloat16), jnp.asarray([1, 2, 0]))
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, metrics))} == {jnp.dtype("float32")}
    assert all(float(weight) == 3 for _, weight in metrics.values())
    if name != "classification":  # whose loss is smoothed
        np.testing.assert_allclose(loss, metrics["loss"][0] / 3, rtol=1e-6)


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


WHOLE = (B, 512, 2000)  # rows, tokens, vocabulary
OVER_VOCABULARY = {
    "cross_entropy": lambda h, u: cross_entropy(h, u, jnp.zeros(WHOLE[:2], jnp.int32), jnp.ones(WHOLE[:2]))[0],
    "distillation": lambda h, u: distillation(h, u, 2 * h, u, jnp.ones(WHOLE[:2]))[0],
    "token_log_probs": lambda h, u: token_log_probs(h, u, jnp.zeros(WHOLE[:2], jnp.int32)).sum(),
}


def gradients_of_the_whole(loss):
    """(the compiled gradient, its largest array) for hidden vectors of the whole."""
    gradient = jax.grad(loss, argnums=(0, 1))
    hidden, unembed = jnp.ones((*WHOLE[:2], D)), Unembed(jnp.ones((D, WHOLE[2])), False)
    return jax.jit(gradient).lower(hidden, unembed).compile(), largest(gradient, hidden, unembed)


@pytest.mark.parametrize("name", OVER_VOCABULARY)
def test_no_array_of_all_logits_exists_in_training(name, monkeypatch):
    pieces, size = 16, int(np.prod(WHOLE))
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", size // pieces)
    compiled, most = gradients_of_the_whole(OVER_VOCABULARY[name])
    assert most <= size // pieces
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * size / 2
    compiled, most = gradients_of_the_whole(lambda h, u: jax.nn.log_softmax(u(h))[..., 0].sum())
    assert most >= size
    assert compiled.memory_analysis().temp_size_in_bytes >= 4 * size


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


@pytest.mark.parametrize(("devices", "pieces"), [(1, 32), (8, 4)])
def test_a_chunk_is_measured_by_what_one_device_holds_of_it(monkeypatch, devices, pieces):
    """One that all devices share would be cut as finely on a thousand as their rows are many, and each gathers the
    output matrix."""
    width, vocab = 2, 16
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 16 * vocab)
    hidden, targets = jnp.ones((16, 32, width)), jnp.zeros((16, 32), jnp.int32)
    unembed = Unembed(jnp.ones((width, vocab)), False)
    loss = lambda hidden: losses.cross_entropy(hidden, unembed, targets, jnp.ones((16, 32)))[0]
    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=-1), jax.devices()[:devices])):
        program = str(jax.make_jaxpr(loss)(hidden))
    assert f"length={pieces}" in program
