"""Whole runs on policy: they learn, they go on bit for bit where they were stopped, they hold the base once."""

import json

import jax
import numpy as np
import pytest

from jaxformer import sharding
from jaxformer.align import GRPO, PPO, RLOO, FunctionReward, Prefer, Reward, learner, reward
from jaxformer.align.rewards import FUNCTIONS
from jaxformer.experiment import Experiment
from jaxformer.families import llama
from jaxformer.fitting import fit
from jaxformer.lora import ALL_LINEAR, LoraConfig
from jaxformer.nn.model import Model
from jaxformer.optimizer import OptimizerConfig
from jaxformer.replaying import replay
from jaxformer.source import from_pretrained, save_pretrained
from jaxformer.text.corpus import DataConfig
from jaxformer.train.metrics import read_metrics

KINDS = "grpo", "rloo", "ppo"
SOME = {"rewards": (FunctionReward("likes_some"),)}
WANTED = "abcdefghijkl"
RECORDS = [{"prompt": prompt} for prompt in ("the quick", "a lazy dog", "anna", "where is it", "who", "red or blue")]


@pytest.fixture(scope="module", autouse=True)
def likes_letters():
    """Answers are worth the share of some letters in them: something that any policy can learn."""

    @reward("likes_letters")
    def likes(prompts, answers, records):
        return [sum(letter in WANTED for letter in answer) / max(1, len(answer)) for answer in answers]

    @reward("likes_some")
    def likes_some(prompts, answers, records):
        likings = likes(prompts, answers, records)
        return [liking * ("e" in prompt) for prompt, liking in zip(prompts, likings, strict=True)]

    yield
    del FUNCTIONS["likes_letters"], FUNCTIONS["likes_some"]


@pytest.fixture(scope="module")
def decoder(made, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    save_pretrained(folder, *made("rotary"), tokenizer)
    return folder


def experiment(start, folder, task, name="run", **more):
    settings = {
        "data": DataConfig((), held_out=2),
        "optimizer": OptimizerConfig(peak_lr=1e-2, warmup_steps=1, schedule="constant", weight_decay=0.0),
        "rows": 8,
        "length": 24,
        "steps": 4,
        "evaluate_every": 2,
        "save_every": 2,
    }
    return Experiment(name, start=str(start), folder=str(folder), task=task, **settings | more)


def kinds(encoder):
    style = {"rewards": (FunctionReward("likes_letters"),), "answer_length": 8, "encoder": encoder}
    return {
        "grpo": GRPO(**style, group=4, beta=0.02),
        "dapo": GRPO(**style | SOME, group=4, reduction="token", telling=True, resample=1),
        "rloo": RLOO(**style, group=4, beta=0.02),
        "ppo": PPO(**style, group=4, epochs=2, minibatches=2, beta=0.02, target=2.0, horizon=100.0),
    }


@pytest.mark.parametrize(("name", "kind"), [("rotary", kind) for kind in KINDS] + [("relative", "grpo")])
def test_a_policy_comes_to_do_what_is_rewarded(made, tokenizer, tmp_path, name, kind):
    save_pretrained(tmp_path / "begin", *made(name), tokenizer)
    task, rate = kinds(name == "relative")[kind], 4e-2 if name == "relative" else 1e-2
    rule = OptimizerConfig(peak_lr=rate, warmup_steps=1, schedule="constant", weight_decay=0.0)
    often = {"steps": 30, "evaluate_every": 30, "save_every": 30, "optimizer": rule}
    run = fit(experiment(tmp_path / "begin", tmp_path, task, **often), RECORDS, progress=False)
    lines = [line for line in read_metrics(run.folder) if "reward" in line["values"]]
    rewards = [line["values"]["reward"] for line in lines]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2
    assert max(line["values"]["sampler_apart"] for line in lines) < 1e-4
    for time in (line["time"] for line in lines):
        assert time["seconds"] == pytest.approx(sum(time[part] for part in ("rollout", "reward", "learning")))
    model, _, tokenizer = from_pretrained(run.folder / "model")
    assert not model.config.extra
    assert tokenizer is not None
    assert run.evaluation["reward"] == pytest.approx(-run.evaluation["loss"])


@pytest.mark.parametrize("kind", ["grpo", "dapo", "ppo"])
def test_a_run_that_is_stopped_ends_as_one_that_is_not(decoder, tmp_path, kind):
    task = kinds(False)[kind]
    whole = fit(experiment(decoder, tmp_path / "a", task), RECORDS, progress=False)
    part = fit(experiment(decoder, tmp_path / "b", task, steps=2), RECORDS, progress=False)
    parted = fit(experiment(decoder, tmp_path / "b", task), RECORDS, progress=False)
    assert int(part.state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, parted.state.params)
    jax.tree.map(np.testing.assert_array_equal, whole.state.opt_state, parted.state.opt_state)
    values = [
        [line["values"] for line in read_metrics(run.folder) if "reward" in line["values"] and line["step"] > 2]
        for run in (whole, parted)
    ]
    assert json.dumps(values[0]) == json.dumps(values[1])
    if kind == "dapo":  # four prompts, of which some are worth nothing whatever is answered
        assert {value["rounds"] for value in values[0]} == {2.0}
        assert all(0 < value["telling"] < 1 for value in values[0])


def test_the_weight_of_the_divergence_is_moved_and_kept(decoder, tmp_path):
    run = fit(experiment(decoder, tmp_path, kinds(False)["ppo"]), RECORDS, progress=False)
    betas = [line["values"]["beta"] for line in read_metrics(run.folder) if "beta" in line["values"]]
    assert betas[0] == pytest.approx(0.02)
    assert len({*betas}) == 4


def test_beneath_an_adapter_there_is_one_copy_of_the_base(tokenizer, tmp_path, monkeypatch):
    """All that lives between steps: the base once, the adapter, its optimizer's state; for sampler, trainer and
    reference alike.
    """
    seen, task, plain = [], kinds(False)["grpo"], learner.Learner.__call__
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    model = Model(llama.config({"vocab_size": tokenizer.vocab_size} | sizes), compute="float32")
    save_pretrained(tmp_path / "base", model, sharding.init(model, jax.random.key(0)), tokenizer)

    def watched(self, state, frozen, batch):
        found = plain(self, state, frozen, batch)
        seen.append(sum(each.nbytes for each in jax.live_arrays()))
        return found

    before = sum(each.nbytes for each in jax.live_arrays())
    monkeypatch.setattr(learner.Learner, "__call__", watched)
    run = fit(experiment(tmp_path / "base", tmp_path, task, adapter=LoraConfig(rank=2)), RECORDS, progress=False)
    assert task.anchored  # a reference is read, too
    base = sum(leaf.nbytes for leaf in jax.tree.leaves(from_pretrained(tmp_path / "base")[1]))
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state))
    assert max(seen) - before < 1.2 * base + 2 * trained
    assert trained < 0.2 * base


@pytest.mark.parametrize("adapter", [None, LoraConfig(rank=4, targets=ALL_LINEAR)])
def test_preferences_and_rewards_are_learned_by_a_run(decoder, tmp_path, adapter):
    records = [each | {"chosen": " fox", "rejected": " dog who asks"} for each in RECORDS]
    for name, task in {"prefer": Prefer(answer_length=8), "reward": Reward()}.items():
        run = fit(
            experiment(decoder, tmp_path, task, name, steps=25, evaluate_every=25, adapter=adapter),
            records,
            progress=False,
        )
        assert run.evaluation["accuracy"] == 1.0
        assert (run.folder / "model" / "config.json").is_file()


def test_a_step_can_be_looked_at_again(decoder, tmp_path):
    """With what was asked, answered and rewarded; the documents come from a file, as `replay` reads them anew."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in RECORDS))
    given = experiment(decoder, tmp_path, kinds(False)["grpo"], data=DataConfig((str(file),), held_out=2))
    run = fit(given, progress=False)
    again = replay(given, 3, progress=False)
    assert not again.differing
    assert again.logged["reward"] == again.values["reward"]
    assert len(again.rows) == given.rows * given.task.group
    assert {row["prompt"] for row in again.rows} <= {each["prompt"] for each in RECORDS}
    assert np.mean([float(row["reward"]) for row in again.rows]) == pytest.approx(again.values["reward"], abs=1e-3)
    assert run.finished
