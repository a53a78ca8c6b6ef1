"""Runs that begin from a model, move a part of it, mix corpora, or average checkpoints."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxformer import tree
from jaxformer.experiment import Experiment
from jaxformer.fitting import fit
from jaxformer.lora import LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.source import from_pretrained, load_adapter
from jaxformer.tasks import Instruct, Seq2Seq
from jaxformer.testing import SENTENCES, tiny_models
from jaxformer.text.corpus import DataConfig
from jaxformer.text.mixture import Part
from jaxformer.text.tokenizer import TokenizerConfig
from jaxformer.train.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("fresh_caches")

TEXTS = [f"{number}. {sentence}" * 3 for number in range(3) for sentence in SENTENCES]
EXPERIMENT = Experiment(
    name="tiny",
    model=replace(tiny_models()["rotary"], vocab=320),
    steps=2,
    rows=8,
    length=16,
    tokenizer=TokenizerConfig("sentencepiece", 320),
    optimizer=OptimizerConfig(warmup_steps=1, peak_lr=0.05, schedule="constant"),
    data=DataConfig(held_out=9),
    evaluate_every=2,
    save_every=1,
)
PAIRS = [{"source": f"{i} and {i + 1}", "target": f"{i + 1} after {i}"} for i in range(40)]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run from scratch."""
    return fit(replace(EXPERIMENT, folder=str(tmp_path_factory.mktemp("runs"))), TEXTS, progress=False)


def tuned(first, folder, **changes):
    return replace(EXPERIMENT, model=None, start=str(first.folder), folder=str(folder), **changes)


def leaves(params):
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}


def test_a_run_goes_on_from_another_model_with_its_tokenizer(first, tmp_path):
    other = fit(tuned(first, tmp_path, steps=3), [text.upper() for text in TEXTS], progress=False)
    assert other.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert other.model.config == first.model.config
    before, after = leaves(first.params), leaves(from_pretrained(other.folder)[1])
    assert all(np.abs(before[path] - after[path]).max() > 0 for path in before)


def test_a_model_is_published_with_the_chat_template_that_it_was_taught_by(first, tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    talk = [{"role": "user", "content": "well?"}, {"role": "assistant", "content": "well."}]
    records = [{"messages": [*talk, {"role": "assistant", "content": str(i)}]} for i in range(12)]
    assert from_pretrained(first.folder)[2].chat_template is None
    run = fit(tuned(first, tmp_path, task=Instruct(template=template), length=64), records, progress=False)
    for folder in (run.folder, run.folder / "model"):
        assert from_pretrained(folder)[2].chat_template == template


def test_what_is_frozen_does_not_move_and_the_rest_does(first, tmp_path):
    frozen = ("embed/**", "**/attention/**")
    other = fit(tuned(first, tmp_path, freeze=frozen), TEXTS, progress=False)
    before, after = leaves(first.params), leaves(from_pretrained(other.folder)[1])
    for path, leaf in before.items():
        stays = any(tree.matches(pattern, path) for pattern in frozen)
        assert np.array_equal(leaf, after[path]) == stays, path
        assert (path in tree.flatten(other.state.params)) != stays


@pytest.mark.parametrize("bits", [None, 8])
def test_an_adapter_alone_moves_and_is_merged_into_what_is_published(first, tmp_path, bits):
    experiment = tuned(first, tmp_path, adapter=LoraConfig(rank=2), bits=bits)
    other = fit(experiment, TEXTS, progress=False)
    assert {path.split("/")[0] for path in tree.flatten(other.state.params)} == {"lora"}
    before, after = leaves(first.params), leaves(from_pretrained(other.folder)[1])
    in_memory = leaves(other.params)  # what fit gives back is whole, too
    assert all(np.array_equal(after[path], in_memory[path]) for path in after)
    moved = {path for path in before if np.abs(before[path] - after[path]).max() > 1e-2}
    assert moved == {path for path in before if "/attention/" in path and path.endswith("kernel")}
    if bits is None:  # else what it is read into is not what it was trained beside
        merged = leaves(from_pretrained(other.folder / "adapter")[1])
        assert all(np.array_equal(after[path], merged[path]) for path in after)
    model, params, _ = from_pretrained(first.folder)
    _, read = load_adapter(other.folder / "adapter", model, params)
    for path, leaf in leaves(other.state.params["lora"]).items():
        np.testing.assert_array_equal(leaf, leaves(read)[path])
    longer = fit(replace(experiment, steps=4), TEXTS, progress=False)
    at_once = fit(replace(experiment, steps=4, name="other"), TEXTS, progress=False)
    jax.tree.map(np.testing.assert_array_equal, longer.state.params, at_once.state.params)


def test_a_model_that_the_task_cannot_train_is_refused_before_any_work(first, tmp_path):
    with pytest.raises(ValueError, match=r"cannot train .*\n.*model.encoder is missing"):
        fit(tuned(first, tmp_path, task=Seq2Seq()), PAIRS, progress=False)


def test_parts_are_mixed_and_each_is_evaluated(tmp_path):
    for name, pairs in (("few", PAIRS[:12]), ("many", PAIRS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    parts = (
        Part("few", (str(tmp_path / "few.jsonl"),)),
        Part("many", (str(tmp_path / "many.jsonl"),), held_out_files=(str(tmp_path / "few.jsonl"),)),
    )
    experiment = replace(
        EXPERIMENT,
        model=replace(tiny_models()["encoder_decoder"], vocab=320),
        task=Seq2Seq(target_length=16, measures=("exact",)),
        data=DataConfig(mixture=parts, held_out=4),
        folder=str(tmp_path / "runs"),
        predictions=3,
    )
    run = fit(experiment, progress=False)
    assert {"loss", "accuracy", "few/loss", "many/loss", "few/exact", "many/exact"} <= run.evaluation.keys()
    low, high = sorted((run.evaluation["few/loss"], run.evaluation["many/loss"]))
    assert low <= run.evaluation["loss"] <= high


def test_the_mean_of_checkpoints_is_what_is_published(tmp_path):
    experiment = replace(EXPERIMENT, steps=4, keep=3, average=3, folder=str(tmp_path / "runs"))
    run = fit(experiment, TEXTS, progress=False)
    with Checkpoints(run.folder / "checkpoints", read_only=True) as checkpoints:
        kept = [leaves(checkpoints.restore_params(None, step)) for step in (2, 3, 4)]
    published = leaves(from_pretrained(run.folder)[1])
    for path, leaf in published.items():
        np.testing.assert_allclose(leaf, sum(one[path] for one in kept) / 3, rtol=1e-6, atol=1e-7)
    assert run.evaluation == fit(experiment, TEXTS, progress=False).evaluation
