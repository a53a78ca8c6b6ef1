"""Losses on preferences beside values worked out by hand, and beside definitions written another way."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.align import preference

RANDOM = np.random.default_rng(0)
MARGINS = jnp.asarray(RANDOM.normal(0, 5, 40), jnp.float32)


def sigma(x):
    return 1 / (1 + math.exp(-x))


def test_dpo_of_margins_worked_out_by_hand():
    # margin ln 3 / 0.5, beta 0.5: the chosen answer wins with 3 / 4.
    margin = jnp.array([0.0, math.log(3) / 0.5])
    np.testing.assert_allclose(preference.sigmoid(margin, 0.5), [math.log(2), math.log(4 / 3)], rtol=1e-6)
    wrong = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    np.testing.assert_allclose(preference.sigmoid(margin, 0.5, 0.1)[1], wrong, rtol=1e-6)


def test_ipo_and_hinge_end_where_they_say():
    np.testing.assert_allclose(preference.ipo(jnp.array([5.0, 0.0, 6.0]), 0.1), [0, 25, 1], atol=1e-5)
    np.testing.assert_allclose(preference.hinge(jnp.array([10.0, 0.0, -10.0, 20.0]), 0.1), [0, 1, 2, 0], atol=1e-6)


def test_simpo_wants_its_margin():
    both = jnp.array([-1.0]), jnp.array([-1.5])
    np.testing.assert_allclose(preference.simpo(*both, 2.0, 1.0), [math.log(2)], rtol=1e-6)


def test_the_odds_ratio_is_that_of_the_odds():
    chosen, rejected = np.log([0.75, 0.5, 0.999]), np.log([0.5, 0.75, 0.001])
    odds = np.exp(chosen) / (1 - np.exp(chosen)) / (np.exp(rejected) / (1 - np.exp(rejected)))
    want = -np.log(odds / (1 + odds))  # of 3: ln 4/3; of 1/3: ln 4
    found = preference.odds_ratio(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32))
    np.testing.assert_allclose(found, want, rtol=1e-3)
    np.testing.assert_allclose(found[:2], [math.log(4 / 3), math.log(4)], rtol=1e-5)


@pytest.mark.parametrize("x", [-1e-6, -0.01, -0.69, -0.7, -5.0, -80.0])
def test_the_odds_are_exact_near_certainty_and_far_from_it(x):
    want = math.log(-math.expm1(x))
    assert float(preference._log1mexp(jnp.float32(x))) == pytest.approx(want, rel=2e-5, abs=1e-30)
    assert math.isfinite(float(jax.grad(preference._log1mexp)(jnp.float32(x))))


def test_kto_of_values_worked_out_by_hand():
    ratios, good = jnp.array([2.0, 2.0, -1.0]), jnp.array([True, False, False])
    found = preference.kto(ratios, good, jnp.float32(0.5), 1.0, (1.0, 1.5))
    want = [1 - sigma(1.5), 1.5 * (1 - sigma(-1.5)), 1.5 * (1 - sigma(1.5))]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_ktos_baseline_is_a_mean_of_what_counts_never_below_0_and_does_not_move():
    values, weights = jnp.array([1.0, 3.0, 50.0]), jnp.array([1.0, 1.0, 0.0])
    assert float(preference.kto_baseline(values, weights)) == 2.0
    assert float(preference.kto_baseline(-values, weights)) == 0.0
    np.testing.assert_array_equal(jax.grad(preference.kto_baseline)(values, weights), np.zeros(3))


def test_bradley_terry_is_the_likelihood_of_the_verdict():
    chosen, rejected = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
    np.testing.assert_allclose(
        preference.bradley_terry(chosen, rejected), [-math.log(sigma(1)), -math.log(sigma(-2))], rtol=1e-6
    )
    np.testing.assert_allclose(preference.bradley_terry(chosen, rejected, 1.0)[0], math.log(2), rtol=1e-6)
    smooth = -0.8 * math.log(sigma(1)) - 0.2 * math.log(sigma(-1))
    np.testing.assert_allclose(preference.bradley_terry(chosen, rejected, 0.0, 0.2)[0], smooth, rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda m: preference.sigmoid(m, 0.3),
        lambda m: preference.sigmoid(m, 0.3, 0.2),
        lambda m: preference.ipo(m, 0.3),
        lambda m: preference.simpo(m - 9, -9 - jnp.zeros_like(m), 0.3, 1.0),
        lambda m: preference.bradley_terry(m, 0.0 * m),
        lambda m: preference.kto(m, m > 0, jnp.float32(0.4), 0.3),
    ],
)
def test_gradients_are_those_of_small_differences(loss):
    with jax.enable_x64(True):
        at = jnp.asarray(np.asarray(MARGINS), jnp.float64)
        step = 1e-5
        want = (loss(at + step) - loss(at - step)) / (2 * step)
        np.testing.assert_allclose(jax.grad(lambda m: loss(m).sum())(at), want, rtol=1e-5, atol=1e-8)


def test_swapping_both_answers_turns_the_gradient_round():
    pull = jax.grad(lambda a, b: preference.sigmoid(a - b, 0.2).sum(), (0, 1))
    a, b = pull(MARGINS, -MARGINS)
    np.testing.assert_allclose(a, -b, rtol=1e-6)
