"""A step on policy by itself: what it draws, what it keeps of that, and in which order it learns from it."""

import jax
import numpy as np
import optax
import pytest

from jaxformer.align import GRPO, PPO, FunctionReward
from jaxformer.align.learner import Learner
from jaxformer.align.rollout import Rollout

REWARD, ROWS, GROUP = (FunctionReward("exact"),), 4, 2


class Drawn:
    """In place of a model: answers that differ in reward to some prompts, which are numbers, and to no others."""

    def __init__(self, telling):
        self.telling, self.keys = telling, []

    def __call__(self, held, prompts, weights, group, temperature, key):
        self.keys.append(jax.random.key_data(key).tolist())
        rewards = [float(i and prompt in self.telling) for prompt in prompts for i in range(group)]
        rows = {"rewards": np.array(rewards), "weights": np.ones(len(rewards)), "ended": np.ones(len(rewards))}
        rows |= {"tokens": np.repeat(prompts, group)[:, None], "written": np.ones((len(rewards), 1), bool)}
        return Rollout(rows, [str(i) for i in range(len(rewards))], {}, prompts, {"rollout": 1.0, "reward": 0.5})


def learner(task, telling=(), seed=0):
    drawn = Drawn(telling)
    return Learner(task, None, drawn, optax.sgd(1.0), None, seed=seed, accumulate=1), drawn


def stepped(made, number=3):
    """(what step `number` draws, what it keeps)."""
    count = ROWS * made.task.rounds
    found = made.rolled({}, {}, {"prompt": np.arange(count), "weights": np.ones(count)}, number)
    return found, made.kept(found, ROWS)


RESAMPLED = GRPO(REWARD, group=GROUP, telling=True, resample=2)


@pytest.mark.parametrize(
    ("telling", "rounds", "kept"),
    [
        ({0, 1, 2, 3}, 1, [0, 1, 2, 3]),
        ({1, 2, 5, 6, 7, 8}, 2, [1, 2, 5, 6]),
        ({1, 9, 10, 11}, 3, [1, 9, 10, 11]),
        ({1, 6}, 3, [0, 1, 2, 6]),
        (set(), 3, [0, 1, 2, 3]),
    ],
)
def test_a_step_draws_until_its_prompts_are_telling_or_its_rounds_are_over(telling, rounds, kept):
    made, drawn = learner(RESAMPLED, telling)
    every, some = stepped(made)
    assert len(drawn.keys) == rounds == len({*map(str, drawn.keys)})
    assert list(every.prompts) == list(range(ROWS * rounds))
    assert list(some.prompts) == kept
    np.testing.assert_array_equal(some.rows["tokens"][:, 0], np.repeat(kept, GROUP))
    assert some.texts == [str(prompt % ROWS * GROUP + i) for prompt in kept for i in range(GROUP)]
    assert every.values()["telling"] == (GROUP * len(telling & {*every.prompts}), GROUP * ROWS * rounds)
    assert some.seconds == {"rollout": rounds * 1.0, "reward": rounds * 0.5}
    weights = made.task.credited(some.rows, 0.0)["weights"]  # what luck did not bring counts for nothing
    np.testing.assert_array_equal(weights, np.repeat([float(prompt in telling) for prompt in kept], GROUP))


def test_a_step_draws_the_same_whenever_it_is_taken_and_each_step_something_else():
    keys = []
    for number in (3, 3, 4):
        made, drawn = learner(RESAMPLED)
        stepped(made, number)
        keys.append(drawn.keys)
    assert keys[0] == keys[1]
    assert not [key for key in keys[2] if key in keys[0]]


def test_without_resampling_all_that_is_drawn_is_kept():
    made, drawn = learner(GRPO(REWARD, group=GROUP, telling=True), {2})
    every, some = stepped(made)
    assert len(drawn.keys) == 1
    assert list(some.prompts) == list(every.prompts) == list(range(ROWS))


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 4), (3, 1), (3, 2)])
def test_each_epoch_learns_from_each_answer_once_in_an_order_of_its_own(epochs, minibatches):
    task, count = PPO(REWARD, epochs=epochs, minibatches=minibatches), 24
    order = learner(task)[0]._order(5, count)
    assert order.shape == (task.updates, count // minibatches)
    by_epoch = order.reshape(epochs, count)
    for epoch in by_epoch:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))
    assert len({*map(tuple, by_epoch.tolist())}) == epochs
    np.testing.assert_array_equal(learner(task)[0]._order(5, count), order)  # as where a run goes on
    for other in (learner(task)[0]._order(6, count), learner(task, seed=1)[0]._order(5, count)):
        assert (other != order).any()


def test_answers_are_dealt_out_one_by_one_whichever_prompt_they_are_to():
    task = GRPO(REWARD, group=8, minibatches=2)
    order = learner(task)[0]._order(0, 16)
    assert {len({*(update // task.group).tolist()}) for update in order} == {2}


def test_one_update_takes_all_answers_as_they_stand():
    np.testing.assert_array_equal(learner(GRPO(REWARD))[0]._order(5, 6), [[0, 1, 2, 3, 4, 5]])
