"""`fit` as a user meets it: from strings, files or tokens to a model that others open, and what it refuses."""

import json
import shutil
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.experiment import Experiment
from jaxformer.fitting import LOSS, fit
from jaxformer.optimizer import OptimizerConfig
from jaxformer.source import from_pretrained
from jaxformer.testing import SENTENCES, tiny_models, with_dropout
from jaxformer.text.corpus import DataConfig, open_documents, split
from jaxformer.text.tokenizer import TokenizerConfig
from jaxformer.train.checkpoint import Checkpoints, SaveError
from jaxformer.train.loop import NotFiniteError
from jaxformer.train.metrics import read_metrics
from jaxformer.train.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("fresh_caches")

TEXTS = [f"{number}. {sentence}" * 3 for number in range(3) for sentence in SENTENCES]
EXPERIMENT = Experiment(
    name="tiny",
    model=replace(with_dropout(tiny_models()["rotary"], 0.1), vocab=320),
    steps=3,
    rows=8,
    length=16,
    tokenizer=TokenizerConfig("sentencepiece", 320),
    optimizer=OptimizerConfig(warmup_steps=1, peak_lr=0.05, ema=0.5),
    data=DataConfig(held_out=9),
    evaluate_every=2,
    save_every=2,
)


def snapshot(folder):
    """All files but the lock, with their contents."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


@pytest.fixture(scope="module")
def calls():
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory, calls):
    """A finished run on a list of strings."""
    experiment = replace(EXPERIMENT, folder=str(tmp_path_factory.mktemp("runs")))
    return fit(experiment, TEXTS, on_metrics=lambda *call: calls.append(call), progress=False)


@pytest.fixture
def again(run, tmp_path):
    """The experiment of a copy of the finished run."""
    shutil.copytree(run.folder.parent, tmp_path / "runs")
    return replace(EXPERIMENT, folder=str(tmp_path / "runs"))


# What comes out.


def test_a_list_of_strings_is_enough(run):
    assert run.finished
    assert int(run.state.step) == 3
    assert run.tokenizer.decode(run.tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert {"loss", "accuracy", "bits_per_byte"} <= run.evaluation.keys()
    names = {entry.name for entry in run.folder.iterdir()}
    assert {"experiment.json", "tokenizer", "metrics.jsonl", "tensorboard", "curves.png"} <= names
    assert {"checkpoints", "model", "result.json"} <= names
    (data,) = json.loads((run.folder / "data.json").read_text())
    assert data["training"]["documents"] + data["held_out"]["documents"] == len(TEXTS)
    assert data["training"]["bytes"] + data["held_out"]["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert data["training"]["fingerprint"] != data["held_out"]["fingerprint"]
    assert (run.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_callback_hears_what_the_log_holds(run, calls):
    logged = [(line["step"], line["values"]) for line in read_metrics(run.folder)]
    assert calls == logged
    assert [step for step, values in calls if "loss" in values] == [1, 2, 3]
    assert [step for step, values in calls if LOSS in values] == [2, 3]
    assert {"accuracy", "gradient_norm", "learning_rate", "skipped"} <= calls[0][1].keys()


def test_a_run_stays_on_the_devices_that_it_is_given(run, tmp_path):
    one = fit(replace(EXPERIMENT, folder=str(tmp_path)), TEXTS, progress=False, devices=jax.devices()[3:4])
    for each, devices in ((one, jax.devices()[3:4]), (run, jax.devices())):
        assert all(leaf.devices() == {*devices} for leaf in jax.tree.leaves(each.state))
    assert one.evaluation["loss"] == pytest.approx(run.evaluation["loss"], rel=1e-5)


def test_the_average_of_the_parameters_is_what_is_used(run):
    """It is evaluated, published and handed out; the last parameters only train on."""
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), run.params, run.state.params)
    assert any(jax.tree.leaves(differs))
    published = from_pretrained(run.folder / "model")[1]
    jax.tree.map(np.testing.assert_array_equal, published, run.params)
    (document,) = split(open_documents(TEXTS), EXPERIMENT.data.held_out)[1]
    tokens = np.array([run.tokenizer.bos, *run.tokenizer.encode(document.text), run.tokenizer.eos])
    losses = []
    for start in range(0, len(tokens) - 1, EXPERIMENT.length):  # the rows of an evaluation
        row = tokens[start : start + EXPERIMENT.length + 1]
        logits = run.model.apply({"params": published}, jnp.asarray(row[None, :-1])).logits[0]
        losses += (-jax.nn.log_softmax(logits)[np.arange(len(row) - 1), row[1:]]).tolist()
    assert run.evaluation["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    bits = np.sum(losses) / np.log(2) / len(document.text.encode())
    assert run.evaluation["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_the_published_model_opens_with_equal_logits(run):
    tokens = jnp.asarray([run.tokenizer.encode(TEXTS[0])[:12]])
    model, params, tokenizer = from_pretrained(run.folder)
    assert tokenizer.encode(TEXTS[0]) == run.tokenizer.encode(TEXTS[0])
    np.testing.assert_array_equal(
        model.apply({"params": params}, tokens).logits,
        run.model.apply({"params": jax.device_get(run.params)}, tokens).logits,
    )
    assert model.card.config["max_position_embeddings"] == EXPERIMENT.length


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_reference_opens_the_published_model(run):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference, words = (c.from_pretrained(run.folder / "model") for c in (AutoModelForCausalLM, AutoTokenizer))
    ids = run.tokenizer.encode(TEXTS[1])
    assert words(TEXTS[1], add_special_tokens=False)["input_ids"] == ids
    assert words.decode(ids) == TEXTS[1]
    with torch.no_grad():
        theirs = reference(torch.tensor([ids[:16]])).logits.numpy()
    ours = run.model.apply({"params": run.params}, jnp.asarray([ids[:16]])).logits
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1, np.abs(theirs).max() / 30), rtol=0)


def test_a_run_without_a_published_model_is_read_from_its_newest_checkpoint(again):
    shutil.rmtree(again.path / "model")
    _, params, tokenizer = from_pretrained(again.path)
    with Checkpoints(again.path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        jax.tree.map(np.testing.assert_array_equal, params, checkpoints.restore_params(step=3))
    assert tokenizer.vocab_size <= 320


# The same line again.


def test_a_finished_run_says_so_and_does_nothing(run, capsys):
    before = snapshot(run.folder)
    calls = []
    same = replace(EXPERIMENT, folder=str(run.folder.parent))
    second = fit(same, TEXTS, on_metrics=lambda *call: calls.append(call))
    assert "is finished: 3 steps. More --steps go on, --fresh starts over" in capsys.readouterr().out
    assert second.finished
    assert second.evaluation == run.evaluation
    jax.tree.map(np.testing.assert_array_equal, second.state, run.state)
    assert calls == []
    assert snapshot(run.folder) == before


def test_more_steps_go_on_from_the_last_one_and_say_what_changed(again, capsys):
    more = fit(replace(again, steps=4), TEXTS)
    assert int(more.state.step) == 4
    out = capsys.readouterr().out
    assert "steps: 3 -> 4" in out
    assert "going on from step 3" in out
    assert [line["step"] for line in read_metrics(again.path) if "loss" in line["values"]] == [1, 2, 3, 4]
    assert json.loads((again.path / "result.json").read_text())["step"] == 4
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(again.path)[1], more.params)


def test_another_setting_is_refused_with_the_difference_and_the_ways_out(again):
    before = snapshot(again.path)
    other = replace(again, seed=1, optimizer=replace(again.optimizer, peak_lr=0.1))
    with pytest.raises(ValueError, match="belongs to another experiment") as error:
        fit(other, TEXTS)
    for part in ("optimizer.peak_lr: 0.05 -> 0.1", "seed: 0 -> 1", "--name", "--fresh"):
        assert part in str(error.value)
    assert snapshot(again.path) == before


def test_fresh_starts_over_and_a_new_name_starts_beside(again):
    run = fit(replace(again, seed=1, steps=2), TEXTS, fresh=True, progress=False)
    assert [line["step"] for line in read_metrics(run.folder) if "loss" in line["values"]] == [1, 2]
    beside = fit(replace(again, name="beside", seed=1, steps=2), TEXTS, progress=False)
    assert beside.folder == again.path.with_name("beside").resolve()
    assert beside.evaluation == run.evaluation


def test_fresh_deletes_nothing_but_runs(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(ValueError, match="is no run's folder"):
        fit(replace(EXPERIMENT, folder=str(tmp_path), name="letters"), TEXTS, fresh=True)
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


def test_other_strings_are_refused(again):
    with pytest.raises(ValueError, match=r"data\.fingerprint: "):
        fit(again, [*TEXTS, "more"])


def test_changed_files_are_refused(tmp_path):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    data = DataConfig(files=(str(tmp_path / "*.txt"),), held_out=0)
    experiment = replace(EXPERIMENT, data=data, steps=2, folder=str(tmp_path / "runs"))
    run = fit(experiment, progress=False)
    assert run.evaluation == {}  # nothing was held out
    (tmp_path / "0.txt").write_text("Something else.\n")
    with pytest.raises(ValueError, match=r"the data changed: .* Bring back the same files"):
        fit(experiment, progress=False)


def test_a_folder_in_use_is_refused(again):
    with RunFolder(again.path), pytest.raises(RuntimeError, match="in use by process"):
        fit(again, TEXTS)


# Before anything is built.


def refused(experiment, data=None):
    """The message, when nothing was left behind."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        fit(experiment, data)
    assert not experiment.path.parent.exists()
    return str(error.value)


def test_a_glob_without_files_is_refused(tmp_path):
    data = DataConfig(files=(str(tmp_path / "books" / "*.txt"),))
    text = refused(replace(EXPERIMENT, data=data, folder=str(tmp_path / "runs")))
    assert "data.files finds nothing" in text
    assert "books/*.txt" in text


def test_empty_data_and_bad_lines_are_refused(tmp_path):
    experiment = replace(EXPERIMENT, folder=str(tmp_path / "runs"))
    assert "every document is empty" in refused(experiment, ["", ""])
    assert "document 1: expected a string, a token array or a mapping, found int" in refused(experiment, ["a", 3])
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n')
    bad = replace(experiment, data=DataConfig(files=(str(tmp_path / "a.jsonl"),)))
    assert "a.jsonl:2: expected the field 'text', found the fields ['txt']" in refused(bad)


def test_every_problem_of_an_experiment_is_told_at_once(tmp_path):
    wrong = replace(
        EXPERIMENT,
        folder=str(tmp_path / "runs"),
        steps=0,
        accumulate=3,
        tokenizer=TokenizerConfig("sentencepiece", 321),
        optimizer=replace(EXPERIMENT.optimizer, peak_lr=-1.0),
        model=replace(EXPERIMENT.model, width=-16),
    )
    text = refused(wrong, TEXTS)
    for part in ("steps is 0", "accumulate, 3", "vocab_size is 321", "optimizer.peak_lr", "model.width is -16"):
        assert part in text


def test_rows_and_devices_that_do_not_fit_are_refused(tmp_path):
    experiment = replace(EXPERIMENT, folder=str(tmp_path / "runs"))
    assert "cannot be shared evenly by the 8 devices" in refused(replace(experiment, rows=12), TEXTS)
    assert "fit 8 devices" in refused(replace(experiment, mesh=replace(experiment.mesh, data=3)), TEXTS)
    text = refused(replace(experiment, rows=3, length=18, mesh=replace(experiment.mesh, data=2, sequence=4)), TEXTS)
    assert "rows 3 in 1 microbatches cannot be shared evenly by the 2 devices" in text
    assert "length 18 cannot be shared evenly by the 4 devices of mesh sequence" in text


# What can go wrong on the way.


def test_too_few_pieces_are_refused_and_leave_nothing_half_made(tmp_path):
    experiment = replace(EXPERIMENT, folder=str(tmp_path / "runs"), steps=2)
    with pytest.raises(ValueError, match="could not train 20 pieces"):
        fit(replace(experiment, tokenizer=TokenizerConfig("sentencepiece", 20)), TEXTS, progress=False)
    assert not (experiment.path / "tokenizer").exists()
    assert not list(experiment.path.glob(".*"))


def test_a_loss_that_is_not_finite_stops_the_run_with_good_parameters_saved(tmp_path):
    wild = replace(EXPERIMENT.optimizer, peak_lr=1e38, clip_norm=None, ema=None)
    experiment = replace(EXPERIMENT, folder=str(tmp_path / "runs"), optimizer=wild, steps=6, save_every=1)
    with pytest.raises(NotFiniteError, match="Lower the learning rate"):
        fit(experiment, TEXTS, progress=False)
    *good, last = [line["values"] for line in read_metrics(experiment.path) if "loss" in line["values"]]
    assert last["skipped"] == 1
    assert good
    assert all(np.isfinite(values["loss"]) for values in good)
    with Checkpoints(experiment.path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == len(good)


def test_a_save_that_fails_stops_the_run_with_the_reason(tmp_path):
    experiment = replace(EXPERIMENT, folder=str(tmp_path / "runs"))
    experiment.path.mkdir(parents=True)
    (experiment.path / "checkpoints").write_text("in the way")
    with pytest.raises(SaveError, match=r"Not a directory|cannot be kept"):
        fit(experiment, TEXTS, progress=False)
    assert not (experiment.path / "model").exists()


# Other ways to run.


def test_token_arrays_need_no_tokenizer(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 320, size) for size in (200, 150, 40, 90)]
    experiment = replace(EXPERIMENT, folder=str(tmp_path / "runs"), steps=2, prompts=("unused",))
    run = fit(experiment, arrays, progress=False)
    assert run.finished
    assert run.tokenizer is None
    assert not (run.folder / "tokenizer").exists()
    assert run.evaluation.keys() == {"loss", "accuracy", "perplexity"}
    assert from_pretrained(run.folder)[2] is None
    with pytest.raises(ValueError, match=r"document 0: tokens must lie in 0\.\.319, found \d+\.\.320"):
        fit(replace(experiment, name="other"), [np.arange(7, 321)], progress=False)


def test_patience_stops_early_and_takes_the_best_model(tmp_path, capsys):
    rising = OptimizerConfig(warmup_steps=0, peak_lr=0.3, schedule="constant", clip_norm=None)
    experiment = replace(
        EXPERIMENT,
        folder=str(tmp_path / "runs"),
        optimizer=rising,
        steps=50,
        evaluate_every=2,
        evaluate_batches=100,
        save_every=1,
        patience=2,
    )
    run = fit(experiment, TEXTS, progress=False)
    losses = [line["values"][LOSS] for line in read_metrics(run.folder) if LOSS in line["values"]]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 25
    assert int(run.state.step) == 2 * best + 2
    assert run.evaluation["loss"] == min(losses)
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(run.folder)[1], run.params)
    fit(experiment, TEXTS)
    assert f"is finished: {2 * best + 2} steps" in capsys.readouterr().out


def test_prompts_are_completed_and_compressors_stand_beside(tmp_path, capsys):
    """And the same line, when it was stopped, is all that is needed to go on."""
    experiment = replace(
        EXPERIMENT, folder=str(tmp_path / "runs"), prompts=("The [red]fox", "def"), prompt_tokens=4, compressors=True
    )
    stop = lambda step, values: signal.raise_signal(signal.SIGINT) if step == 1 else None
    stopped = fit(experiment, TEXTS, on_metrics=stop)
    assert not stopped.finished
    step = int(stopped.state.step)
    assert f"stopped at step {step} of 3; the same line goes on from there" in capsys.readouterr().out
    assert fit(experiment, TEXTS).finished
    out = capsys.readouterr().out
    assert f"going on from step {step}" in out
    assert all(word in out for word in ("zlib", "lzma", "primed lzma", "this model", "The [red]fox", "def"))
