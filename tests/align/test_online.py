"""Learning on policy: what a step is made of, and the laws that hold whatever was drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer.align import GRPO, PPO, RLOO, FunctionReward, answers
from jaxformer.align.exchange import Exchange, row
from jaxformer.align.learner import prepared
from jaxformer.align.online import VALUE
from jaxformer.config import ExtraHeadConfig
from jaxformer.objective import BEGINNING
from jaxformer.text.corpus import open_documents
from jaxformer.text.index import stack

KEY, GROUP = jax.random.key(0), 2
REWARD = (FunctionReward("exact"),)
PROMPTS = [[5, 9, 11], [7, 8]]
SAID = [[30, 31, 2], [40, 41, 42, 43, 2], [50], [60, 61]]
TASKS = {
    "grpo": GRPO(REWARD, group=GROUP, answer_length=6, beta=0.1),
    "dr_grpo": GRPO(REWARD, group=GROUP, answer_length=6, scale=False, reduction="constant"),
    "dapo": GRPO(REWARD, group=GROUP, answer_length=6, high=0.28, reduction="token", telling=True),
    "gspo": GRPO(REWARD, group=GROUP, answer_length=6, sequence=True),
    "rloo": RLOO(REWARD, group=GROUP, answer_length=6),
    "ppo": PPO(REWARD, group=GROUP, answer_length=6),
    "cool": GRPO(REWARD, group=GROUP, answer_length=6, temperature=0.7),
}
REWARDS = np.array([1.0, 0.0, 0.5, 2.0], np.float32)


def drawn(prompt_length=4, answer_length=6, fill=0, rewards=REWARDS, order=range(4)):
    both = [Exchange(np.array(PROMPTS[i // GROUP]), np.array(SAID[i])) for i in order]
    made = stack([row(each, prompt_length, answer_length) for each in both])
    made["tokens"] = np.where(made["mask"], made["tokens"], fill)
    made["answers"] = np.where(made["written"], made["answers"], fill)
    made |= {"rewards": rewards[list(order)], "weights": np.ones(4, np.float32)}
    return jax.tree.map(jnp.asarray, made | {"drawn": np.zeros((4, answer_length), np.float32)})


@pytest.fixture(scope="module", params=TASKS)
def task(request):
    return TASKS[request.param]


@pytest.fixture(scope="module", params=["rotary", "encoder_decoder"])
def policy(request, made):
    """(model with a value head, params, the parameters of another, which stand for the beginning)."""
    model, params = made(request.param, (ExtraHeadConfig(VALUE, 1, reads="tokens"),))
    return model, params, made(request.param, (ExtraHeadConfig(VALUE, 1, reads="tokens"),), seed=4)[1]


def learned(task, policy, rows):
    """(loss, metrics, gradient) of the first update of a rollout; what `prepared` says."""
    model, params, first = policy
    task = dataclasses.replace(task, encoder=model.config.encoder is not None)

    @jax.jit
    def both(params, first, rows):
        frozen = {BEGINNING: first}
        batch, told = prepared(task, model, params, frozen, rows, jnp.float32(task.beta), 1)
        loss_fn = task.loss(model, train=False)
        (loss, metrics), pull = jax.value_and_grad(lambda p: loss_fn(p, frozen, batch, KEY), has_aux=True)(params)
        return loss, metrics, pull, told, batch

    return both(params, first, rows)


def close(a, b, scale=1.0):
    size = max(1e-3, *(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(b)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4 * size * scale), a, b)


def test_on_the_first_update_every_ratio_is_1(task, policy):
    _, metrics, pull, _, batch = learned(task, policy, drawn())
    total, weight = metrics["ratio_apart"]
    assert float(total / weight) < 1e-5
    assert float(metrics["clipped"][0]) == 0
    assert optax.tree.norm(pull) > 1e-6
    assert float(weight) == sum(map(len, SAID))
    assert np.isfinite(np.asarray(batch["advantages"])).all()


def test_padding_changes_nothing(task, policy):
    one = learned(task, policy, drawn())
    for other in (drawn(fill=77), drawn(7, 6)):
        two = learned(task, policy, other)
        assert float(one[0]) == pytest.approx(float(two[0]), rel=1e-4, abs=1e-5)
        close(two[2], one[2])


def test_the_order_of_a_group_changes_nothing(task, policy):
    one, two = (learned(task, policy, drawn(order=order)) for order in (range(4), [1, 0, 3, 2]))
    assert float(one[0]) == pytest.approx(float(two[0]), rel=1e-4, abs=1e-5)
    close(two[2], one[2])


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not isinstance(task, PPO)])
def test_a_gain_that_all_share_changes_nothing_where_answers_are_compared(name, policy):
    one, two = (learned(TASKS[name], policy, drawn(rewards=rewards)) for rewards in (REWARDS, REWARDS + 10))
    close(two[2], one[2], scale=5.0)


def test_answers_that_only_fill_up_count_for_nothing(task, policy):
    rows = drawn()
    rows["weights"] = jnp.array([1.0, 1.0, 0.0, 0.0])
    other = dict(rows) | {"rewards": jnp.array([1.0, 0.0, -9.0, 5.0])}
    other["answers"] = other["answers"].at[2:].set(99)
    one, two = learned(task, policy, rows), learned(task, policy, other)
    assert float(one[0]) == pytest.approx(float(two[0]), rel=1e-5)
    close(two[2], one[2])


def test_the_gradient_is_that_of_reinforce(policy):
    """Without a divergence and at ratio 1: the mean over answers of A times the mean of grad log p."""
    model, params, _ = policy
    rows = drawn()
    _, _, pull, _, batch = learned(GRPO(REWARD, group=GROUP, answer_length=6), policy, rows)

    def plain(params):
        held = {"params": params}
        found = answers.log_probs(model, held, answers.read(model, held, KEY, False, rows), rows["answers"])
        return -(batch["advantages"][:, 0] * answers.averaged(found, rows["written"])).mean()

    close(pull, jax.grad(plain)(params))


def test_a_value_head_learns_what_came(made):
    """Where all else is still: the mean of what comes after what it sees."""
    model, params = made("rotary", (ExtraHeadConfig(VALUE, 1, reads="tokens"),))
    task = PPO(REWARD, group=GROUP, answer_length=6, beta=0.0, decay=1.0, value_clip=None, value_weight=1.0)
    rows, rule = drawn(), optax.adam(1e-2)
    loss_fn, state = task.loss(model, train=True), rule.init(params)

    @jax.jit
    def step(params, state):
        batch, _ = prepared(task, model, params, {}, rows, jnp.float32(0), 1)
        batch["advantages"] = jnp.zeros_like(batch["advantages"])
        pull = jax.grad(lambda p: loss_fn(p, {}, batch, KEY)[0])(params)
        updates, state = rule.update(pull, state)
        return optax.apply_updates(params, updates), state, batch

    for _ in range(150):
        params, state, batch = step(params, state)
    there = np.asarray(rows["written"])
    came = np.broadcast_to(REWARDS[:, None], there.shape)
    np.testing.assert_allclose(np.asarray(batch["returns"])[there], came[there], atol=1e-4)
    foretold = came.copy()
    foretold[:, 0] = REWARDS.reshape(-1, GROUP).mean(1).repeat(GROUP)  # before it begins, an answer may be any
    np.testing.assert_allclose(np.asarray(batch["old_values"])[there], foretold[there], atol=0.1)


def test_telling_prompts_alone_count(policy):
    rows = drawn(rewards=np.array([1.0, 1.0, 0.0, 1.0], np.float32))
    np.testing.assert_array_equal(learned(TASKS["dapo"], policy, rows)[4]["weights"], [0, 0, 1, 1])


def test_a_prefix_stands_before_texts(tokenizer):
    task = GRPO(REWARD, prefix="say: ")
    (document,) = open_documents([{"prompt": "the fox"}], task.columns)
    (example,) = task.examples(document, tokenizer)
    assert tokenizer.decode(example["prompt"]) == "say: the fox"
    talk = [{"role": "user", "content": "the fox"}]
    assert task.asked({"prompt": talk}) is talk


def test_what_cannot_be_learned_is_told_at_once(made):
    config = made("rotary")[0].config
    (said,) = GRPO(REWARD, answer_length=8, held_out_temperature=-1.0).problems(config, 24)
    assert "held_out_temperature is -1.0" in said
    for kind in (GRPO, RLOO):
        said = "\n".join(
            kind((), group=1, temperature=0.0, beta=-1.0, answer_length=40, encoder=True).problems(config, 24)
        )
        for part in ("group is 1", "temperature", "beta", "rewards is empty", "encoder is missing"):
            assert part in said
    assert "resample is 2" in GRPO(REWARD, answer_length=8, resample=2).problems(config, 24)[0]
    assert not GRPO(REWARD, answer_length=8, resample=2, telling=True).problems(config, 24)
    said = "\n".join(PPO(REWARD, target=-1.0, decay=2.0, answer_length=24).problems(config, 24))
    for part in ("target", "decay is 2.0", "leave no room"):
        assert part in said
    assert not GRPO(REWARD, answer_length=8).problems(config, 24)
