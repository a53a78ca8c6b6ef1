"""The law that a run is one thing, however often it was stopped and with whatever devices it goes on."""

import json
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxformer.experiment import Experiment
from jaxformer.fitting import fit
from jaxformer.optimizer import OptimizerConfig
from jaxformer.sharding import MeshConfig
from jaxformer.source import from_pretrained
from jaxformer.testing import SENTENCES, tiny_models, with_dropout
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig
from jaxformer.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("fresh_caches")

TEXTS = [f"{number}. {sentence}" * 3 for number in range(3) for sentence in SENTENCES]
EXPERIMENT = Experiment(
    name="run",
    model=replace(with_dropout(tiny_models()["windowed"], 0.2), vocab=320),
    steps=7,
    rows=16,
    length=16,
    accumulate=2,
    tokenizer=TokenizerConfig("sentencepiece", 320),
    optimizer=OptimizerConfig(warmup_steps=2, ema=0.8, schedule="wsd"),
    data=DataConfig(held_out=4),
    evaluate_every=3,
    save_every=4,
    evaluation_stride=8,
)


def stopped_at(*steps):
    """A callback that raises a signal when the metrics of these steps are read."""
    return lambda step, values: signal.raise_signal(signal.SIGTERM) if step in steps and "loss" in values else None


def lines(run):
    return [json.dumps([line["step"], line["values"]]) for line in read_metrics(run.folder)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nobody interrupts, over more than one epoch."""
    experiment = replace(EXPERIMENT, folder=str(tmp_path_factory.mktemp("runs")))
    return fit(experiment, TEXTS, progress=False)


def test_a_run_stopped_again_and_again_ends_as_one_that_was_not(reference, tmp_path):
    experiment = replace(EXPERIMENT, folder=str(tmp_path))
    seen = []
    while not (run := fit(experiment, TEXTS, on_metrics=stopped_at(*range(1, 7)), progress=False)).finished:
        seen.append(int(run.state.step))
    assert len(seen) >= 3
    jax.tree.map(np.testing.assert_array_equal, run.state, reference.state)
    assert run.evaluation == reference.evaluation
    assert lines(run) == lines(reference)


def test_a_run_may_go_on_with_other_devices_workers_and_layout(reference, tmp_path, capsys):
    """What is the same to the last bit on equal devices is then the same within what float32 can tell."""
    experiment = replace(EXPERIMENT, folder=str(tmp_path))
    assert not fit(experiment, TEXTS, on_metrics=stopped_at(3), progress=False).finished
    moved = replace(experiment, mesh=MeshConfig(data=2, fsdp=2, tensor=2), remat="full", unroll=2)
    run = fit(moved, TEXTS)
    assert run.finished
    out = capsys.readouterr().out
    assert "mesh.fsdp: 1 -> 2" in out
    assert "going on from step" in out
    for ours, theirs in zip(jax.tree.leaves(run.params), jax.tree.leaves(reference.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)
    assert run.evaluation == pytest.approx(reference.evaluation, rel=1e-4)


def test_equal_seeds_give_equal_runs_and_other_seeds_others(reference, tmp_path):
    same = fit(replace(EXPERIMENT, folder=str(tmp_path), name="same"), TEXTS, progress=False)
    jax.tree.map(np.testing.assert_array_equal, same.state, reference.state)
    other = fit(replace(EXPERIMENT, folder=str(tmp_path), name="other", seed=1, steps=3), TEXTS, progress=False)
    assert lines(other)[0] != lines(reference)[0]


def test_an_architecture_of_no_family_is_trained_and_read_all_the_same(reference, capsys):
    assert not (reference.folder / "model").exists()
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(reference.folder)[1], reference.state.params)
    (reference.folder / "result.json").unlink()
    assert fit(replace(EXPERIMENT, folder=str(reference.folder.parent)), TEXTS).evaluation == reference.evaluation
    assert "model/ is not written, checkpoints/ holds the parameters: no known model_type" in capsys.readouterr().out
