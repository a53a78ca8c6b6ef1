import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.generation.sample import (
    GROUP,
    Greedy,
    Sample,
    drawn,
    first_largest,
    keep_top_k,
    keep_top_p,
    log_probability,
)

ROWS, VOCAB = 3, 50


@pytest.fixture(scope="module")
def logits():
    return jnp.asarray(np.random.default_rng(0).normal(0, 3, (ROWS, VOCAB)), jnp.float32)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def plain_top_k(x, k):
    return np.where(x < np.sort(x, -1)[:, -k][:, None], -np.inf, x) if 0 < k < x.shape[-1] else x


def plain_top_p(x, p):
    order = np.argsort(-x, -1)
    probability = np.take_along_axis(softmax(x), order, -1)
    keep = np.empty_like(x, bool)
    np.put_along_axis(keep, order, np.cumsum(probability, -1) - probability < p, -1)
    return np.where(keep, x, -np.inf)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_divides_the_logits(logits, temperature):
    assert np.allclose(Sample(temperature).narrowed(logits), logits / temperature, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 7, VOCAB - 1, VOCAB, VOCAB + 3])
def test_top_k_keeps_the_k_largest(logits, k):
    assert np.array_equal(keep_top_k(logits, k), plain_top_k(np.asarray(logits), k))


def test_top_k_keeps_what_equals_the_last():
    assert np.array_equal(keep_top_k(jnp.array([[1.0, 2.0, 2.0, -1.0, 3.0]]), 2), [[-np.inf, 2, 2, -np.inf, 3]])


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_hold_p(logits, p):
    assert np.array_equal(keep_top_p(logits, p), plain_top_p(np.asarray(logits), p))


def test_the_order_is_temperature_then_top_k_then_top_p(logits):
    plain = np.asarray(logits)
    expected = plain_top_p(plain_top_k(plain / np.float32(1.7), 12), 0.8)
    actual = Sample(1.7, 12, 0.8).narrowed(logits)
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected))
    assert np.allclose(actual, expected, rtol=1e-6)
    assert not np.array_equal(np.isfinite(expected), np.isfinite(plain_top_p(plain, 0.8)))


def test_negative_logits_and_infinities_are_ordered_too():
    x = jnp.array([[-5.0, -1.0, -np.inf, -3.0, 0.0]])
    assert np.array_equal(keep_top_k(x, 2), [[-np.inf, -1, -np.inf, -np.inf, 0]])
    assert np.array_equal(keep_top_p(x, 1.0), x)


def test_temperature_zero_is_greedy_and_greedy_takes_the_first_of_equals(logits):
    key = jax.random.key(0)
    assert np.array_equal(Sample(0.0)(key, logits), np.argmax(logits, -1))
    assert np.array_equal(Greedy()(key, logits), np.argmax(logits, -1))
    assert Greedy()(key, jnp.array([[1.0, 4.0, 4.0]])).tolist() == [1]


def test_scores_are_log_softmax(logits):
    token = np.array([3, 0, 49])
    expected = np.log(softmax(np.asarray(logits, np.float64)))[np.arange(ROWS), token]
    assert np.allclose(log_probability(logits, token), expected, atol=1e-5)


@pytest.mark.parametrize("strategy", [Sample(), Sample(0.7), Sample(1.3, 5), Sample(1.0, 0, 0.6)], ids=str)
def test_draws_follow_the_processed_softmax(strategy):
    """Pearson's chi-square of 20,000 draws, below the 99.9% point of its distribution."""
    draws, x = 20_000, np.random.default_rng(1).normal(0, 1, (1, 10)).astype(np.float32)
    sampled = jax.jit(strategy)(jax.random.key(7), np.repeat(x, draws, axis=0))
    expected = draws * softmax(np.asarray(strategy.narrowed(jnp.asarray(x))))[0]
    counts, possible = np.bincount(sampled, minlength=10), expected > 0
    assert not counts[~possible].any()
    chi_square = np.sum((counts - expected)[possible] ** 2 / expected[possible])
    limit = {4: 18.5, 9: 27.9}  # degrees of freedom: 99.9% point
    assert chi_square < limit.get(possible.sum() - 1, 27.9)


def test_draws_over_several_groups_follow_the_softmax():
    """Pearson's chi-square of 50,000 draws, below the 99.9% point for 2 * GROUP + 36 degrees of freedom."""
    vocab = 2 * GROUP + 37
    row = 1.5 * jax.random.normal(jax.random.key(1), (vocab,))
    tokens = drawn(jax.random.key(0), jnp.broadcast_to(row[None, :], (50_000, vocab)))
    counts, expected = np.bincount(tokens, minlength=vocab), 50_000 * np.asarray(jax.nn.softmax(row))
    assert np.sum((counts - expected) ** 2 / expected) < 655  # scipy.stats.chi2.ppf(0.999, 548)


def test_what_is_impossible_is_never_drawn():
    random = np.random.default_rng(0)
    possible = random.random((5000, 3 * GROUP - 1)) < 0.01
    possible[:, 2 * GROUP + 5] = True
    tokens = drawn(jax.random.key(0), jnp.where(possible, 30 * random.standard_normal(possible.shape), -jnp.inf))
    assert possible[np.arange(5000), tokens].all()


def test_the_largest_is_the_first_of_equals_and_no_number_is_a_token():
    rows = np.array([[1, 3, 3, 2], [-np.inf] * 4, [np.inf, 0, np.inf, 0], [np.nan] * 4], np.float32)
    assert first_largest(jnp.asarray(rows)).tolist() == [1, 0, 0, 3]


def test_numbers_out_of_range_are_all_reported():
    with pytest.raises(ValueError) as error:
        Sample(-1.0, -3, 1.5).checked()
    assert all(name in str(error.value) for name in ("temperature is -1.0", "top_k is -3", "top_p is 1.5"))
    with pytest.raises(ValueError, match="top_p is 0"):
        Sample(top_p=0.0).checked()
    with pytest.raises(ValueError, match="temperature is nan"):
        Sample(float("nan")).checked()
