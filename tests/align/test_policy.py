"""Losses of a policy beside values worked out by hand, and beside the gradient that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.align import policy

RANDOM = np.random.default_rng(2)
WRITTEN = jnp.asarray(np.arange(5)[None] < np.array([5, 2, 1])[:, None])
NEW, OLD = (jnp.asarray(RANDOM.normal(-2, 0.4, (3, 5)), jnp.float32) for _ in range(2))
ADVANTAGES = jnp.array([[1.0], [-2.0], [0.5]])


def test_a_ratio_counts_as_far_as_it_may():
    ratios = jnp.log(jnp.array([[0.5, 1.0, 1.5]]))
    there = jnp.ones((1, 3), bool)
    gained, clipped = policy.clipped(ratios, jnp.array([[1.0]]), there)
    np.testing.assert_allclose(gained, [[-0.5, -1.0, -1.2]], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [[False, False, True]])
    lost, clipped = policy.clipped(ratios, jnp.array([[-1.0]]), there)
    np.testing.assert_allclose(lost, [[0.8, 1.0, 1.5]], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [[True, False, False]])
    higher, _ = policy.clipped(ratios, jnp.array([[1.0]]), there, high=0.4)
    np.testing.assert_allclose(higher, [[-0.5, -1.0, -1.4]], rtol=1e-6)


def test_what_was_clipped_has_no_gradient():
    pull = jax.grad(lambda r: policy.clipped(r, jnp.array([[1.0]]), jnp.ones((1, 3), bool))[0].sum())
    np.testing.assert_allclose(pull(jnp.log(jnp.array([[0.5, 1.0, 1.5]]))), [[-0.5, -1.0, 0.0]], rtol=1e-6)


def test_where_nothing_moved_the_gradient_is_that_of_the_policys_reward():
    """At ratio 1 it is -A grad log p: REINFORCE."""

    def loss(new):
        ratios = policy.log_ratios(new, jax.lax.stop_gradient(new), WRITTEN)
        return policy.clipped(ratios, ADVANTAGES, WRITTEN)[0].sum()

    np.testing.assert_allclose(jax.grad(loss)(NEW), jnp.where(WRITTEN, -ADVANTAGES, 0.0), rtol=1e-6)


def test_the_ratio_of_a_whole_answer_is_one_number_whose_gradient_its_tokens_share():
    whole = policy.log_ratios(NEW, OLD, WRITTEN, whole=True)
    for row, size in enumerate((5, 2, 1)):
        want = (NEW - OLD)[row, :size].mean()
        np.testing.assert_allclose(whole[row, :size], want, rtol=1e-5)

    def sequence(new):  # GSPO, equation 5, written as it stands
        size = WRITTEN.sum(1)
        mean = jnp.where(WRITTEN, new - OLD, 0).sum(1) / size
        return (-ADVANTAGES[:, 0] * jnp.exp(mean)).mean()

    def ours(new):
        loss, _ = policy.clipped(
            policy.log_ratios(new, OLD, WRITTEN, whole=True), ADVANTAGES, WRITTEN, low=9.0, high=9.0
        )
        total, weight = policy.reduced(loss, WRITTEN, jnp.ones(3), "answer")
        return total / weight

    np.testing.assert_allclose(ours(NEW), sequence(NEW), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(NEW), jax.grad(sequence)(NEW), rtol=1e-4, atol=1e-7)


def test_a_value_is_held_near_the_old_one():
    there = jnp.ones((1, 3), bool)
    values, old, returns = jnp.array([[1.0, 0.1, 3.0]]), jnp.zeros((1, 3)), jnp.array([[1.0, 1.0, 1.0]])
    plain = policy.value_loss(values, old, returns, there, clip=None)
    np.testing.assert_allclose(plain, [[0.0, 0.405, 2.0]], rtol=1e-6)
    held = policy.value_loss(values, old, returns, there)
    np.testing.assert_allclose(held, [[0.32, 0.405, 2.0]], rtol=1e-6)


def test_losses_are_divided_by_what_is_asked_for():
    losses = jnp.where(WRITTEN, jnp.arange(15.0).reshape(3, 5), 0)  # rows 0..4, 5 6, 10
    weights = jnp.array([1.0, 1.0, 0.0])
    assert [float(x) for x in policy.reduced(losses, WRITTEN, weights, "token")] == [21.0, 7.0]
    assert [float(x) for x in policy.reduced(losses, WRITTEN, weights, "answer")] == [2.0 + 5.5, 2.0]
    assert [float(x) for x in policy.reduced(losses, WRITTEN, weights, "constant")] == [
        pytest.approx(2.0 + 2.2),
        2.0,
    ]


@pytest.mark.parametrize("how", ["token", "answer", "constant"])
@pytest.mark.parametrize("whole", [False, True])
def test_padding_has_no_loss_and_no_gradient(how, whole):
    def loss(new, old):
        ratios = policy.log_ratios(new, old, WRITTEN, whole=whole)
        each, _ = policy.clipped(ratios, ADVANTAGES, WRITTEN, low=0.9, high=9.0)
        total, weight = policy.reduced(each, WRITTEN, jnp.ones(3), how)
        return total / weight

    other = jnp.where(WRITTEN, NEW, 50.0)
    assert float(loss(other, OLD)) == float(loss(NEW, OLD))
    pull = jax.grad(loss)(other, OLD)
    assert not np.asarray(pull)[~np.asarray(WRITTEN)].any()
    assert np.asarray(pull)[np.asarray(WRITTEN)].all()
