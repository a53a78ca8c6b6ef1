"""Advantages beside values worked out by hand, and beside loops that follow the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.align import advantage

RANDOM = np.random.default_rng(1)
REWARDS = RANDOM.normal(0, 2, 12).astype(np.float32)
WRITTEN = np.arange(7)[None] < np.array([7, 3, 1, 0])[:, None]


def test_leave_one_out_by_hand():
    found = advantage.leave_one_out(jnp.array([1.0, 0.0, 0.0, 5.0, 5.0, 5.0]), 3)
    np.testing.assert_allclose(found, [1, -0.5, -0.5, 0, 0, 0], atol=1e-6)


def test_group_relative_by_hand():
    rewards = jnp.array([1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    found = advantage.group_relative(rewards, 4, eps=0.0)[:4]
    np.testing.assert_allclose(found, np.array([0.5, -0.5, -0.5, 0.5]) / np.sqrt(1 / 3), rtol=1e-6)
    np.testing.assert_array_equal(advantage.group_relative(rewards, 4)[4:], np.zeros(4))
    np.testing.assert_allclose(advantage.group_relative(rewards, 4, scale=False)[:4], [0.5, -0.5, -0.5, 0.5])


@pytest.mark.parametrize("group", [2, 3, 6])
@pytest.mark.parametrize(
    "advantages",
    [
        advantage.leave_one_out,
        advantage.group_relative,
        lambda rewards, group: advantage.group_relative(rewards, group, scale=False),
    ],
)
def test_a_group_shares_out_nothing_whatever_all_gain(advantages, group):
    found = advantages(jnp.asarray(REWARDS), group)
    np.testing.assert_allclose(found.reshape(-1, group).sum(1), 0, atol=1e-4)
    np.testing.assert_allclose(advantages(jnp.asarray(REWARDS) + 100, group), found, atol=2e-4)
    turned = np.arange(12).reshape(-1, group)[:, ::-1].reshape(-1)
    np.testing.assert_allclose(advantages(jnp.asarray(REWARDS[turned]), group), found[turned], atol=1e-5)


def test_a_prompt_tells_something_where_its_answers_differ():
    found = advantage.telling(jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0]), 2)
    np.testing.assert_array_equal(found, [False, False, True, True, False, False])


def test_the_reward_comes_with_the_last_token_and_each_token_costs():
    found = advantage.token_rewards(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.full((4, 7), 0.1), jnp.asarray(WRITTEN))
    want = np.zeros((4, 7), np.float32)
    want[0], want[1, :3], want[2, 0] = -0.1, -0.1, -0.1
    want[0, 6] += 1
    want[1, 2] += 2
    want[2, 0] += 3
    np.testing.assert_allclose(found, want, rtol=1e-6)


def loop(rewards, values, sizes, discount, decay):
    """GAE as the sum over what follows, weighted (equation 16)."""
    out = np.zeros(rewards.shape)
    for b, size in enumerate(sizes):
        v = [*values[b, :size], 0.0]
        errors = [rewards[b, t] + discount * v[t + 1] - v[t] for t in range(size)]
        for t in range(size):
            out[b, t] = sum((discount * decay) ** k * errors[t + k] for k in range(size - t))
    return out


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_generalized_advantages_are_the_papers_sums(discount, decay):
    rewards, values = (RANDOM.normal(0, 1, (4, 7)).astype(np.float32) for _ in range(2))
    found, returns = advantage.generalized(
        jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(WRITTEN), discount=discount, decay=decay
    )
    want = loop(rewards, values, [7, 3, 1, 0], discount, decay)
    np.testing.assert_allclose(found, want, atol=1e-5)
    np.testing.assert_allclose(returns, want + np.where(WRITTEN, values, 0), atol=1e-5)


def test_with_full_decay_the_returns_are_what_was_gained_whatever_was_expected():
    rewards = RANDOM.normal(0, 1, (4, 7)).astype(np.float32)
    for values in (np.zeros((4, 7), np.float32), RANDOM.normal(0, 3, (4, 7)).astype(np.float32)):
        returns = advantage.generalized(*map(jnp.asarray, (rewards, values, WRITTEN)), decay=1.0)[1]
        gained = np.where(WRITTEN, rewards, 0)[:, ::-1].cumsum(1)[:, ::-1]
        np.testing.assert_allclose(returns, np.where(WRITTEN, gained, 0), atol=1e-5)


def test_whitened_values_have_mean_0_and_deviation_1_over_what_is_written():
    values = RANDOM.normal(3, 5, (4, 7)).astype(np.float32)
    found = np.asarray(advantage.whitened(jnp.asarray(values), jnp.asarray(WRITTEN)))
    assert found[WRITTEN].mean() == pytest.approx(0, abs=1e-5)
    assert found[WRITTEN].std() == pytest.approx(1, abs=1e-4)
    assert not found[~WRITTEN].any()
    kept = np.asarray(advantage.whitened(jnp.asarray(values), jnp.asarray(WRITTEN), center=False))
    assert kept[WRITTEN].mean() == pytest.approx(values[WRITTEN].mean(), rel=1e-4)


@pytest.mark.parametrize("name", advantage.KL)
def test_estimates_of_the_divergence_have_its_mean(name):
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.25, 0.35])
    ahead = np.log(p) - np.log(q)
    found = np.asarray(advantage.KL[name](jnp.asarray(ahead, jnp.float32)))
    want = (p * ahead).sum()
    assert (p * found).sum() == pytest.approx(want, rel=0.12 if name == "k2" else 1e-4)
    if name != "k1":
        assert (found >= 0).all()


def test_the_controller_is_pulled_to_its_target():
    adapt = jax.jit(advantage.adapted, static_argnums=(2, 3, 4))
    assert float(adapt(0.1, 12.0, 10.0, 1000.0, 100.0)) == pytest.approx(0.1 * 1.02)
    assert float(adapt(0.1, 100.0, 10.0, 1000.0, 100.0)) == pytest.approx(0.1 * 1.02)  # at most 0.2 off
    assert float(adapt(0.1, 9.0, 10.0, 1000.0, 100.0)) == pytest.approx(0.1 * 0.99)
    assert float(adapt(0.1, 10.0, 10.0, 1000.0, 100.0)) == pytest.approx(0.1)
