"""`jaxformer evaluate`: a run on what it held out, any model on any files, and what is said when that cannot be."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from jaxformer import cli, codec, fitting
from jaxformer.align import GRPO, FunctionReward
from jaxformer.align.rewards import FUNCTIONS
from jaxformer.commands import evaluate
from jaxformer.evaluating import recorded
from jaxformer.experiment import Experiment
from jaxformer.lora import LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.replaying import replay
from jaxformer.tasks import CausalLM, Seq2Seq
from jaxformer.testing import tiny_models
from jaxformer.text.corpus import DataConfig
from jaxformer.text.files import write_json
from jaxformer.text.tokenizer import TokenizerConfig

pytestmark = pytest.mark.usefixtures("fresh_caches")

EXPERIMENT = Experiment(
    name="books",
    model=replace(tiny_models()["rotary"], vocab=320),
    steps=2,
    rows=8,
    length=16,
    tokenizer=TokenizerConfig(vocab_size=320),
    optimizer=OptimizerConfig(warmup_steps=1, peak_lr=0.05, ema=0.5),
    data=DataConfig(files=("books",), held_out=3),
    task=CausalLM(z_loss=1e-4),
    evaluation_stride=8,
)


def run(*arguments):
    """The exit code of `jaxformer evaluate ...`."""
    with pytest.raises(SystemExit) as exit:
        cli.main(["evaluate", *arguments])
    return exit.value.code


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with books/, pairs.jsonl, and two finished runs."""
    place = tmp_path_factory.mktemp("here")
    (place / "books").mkdir()
    for number in range(6):
        (place / "books" / f"{number}.txt").write_text(f"Book {number} tells of a lazy dog.\n" * 9)
    lines = [json.dumps({"source": f"{i} and {i + 1}", "target": f"{i + 1} after {i}"}) + "\n" for i in range(20)]
    (place / "pairs.jsonl").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        fitting.fit(EXPERIMENT, progress=False)
        pairs = replace(
            EXPERIMENT,
            name="pairs",
            model=replace(tiny_models()["encoder_decoder"], vocab=320),
            task=Seq2Seq(target_length=16, measures=("exact",)),
            data=DataConfig(files=("pairs.jsonl",), held_out=4),
            evaluation_stride=None,
            predictions=3,
        )
        fitting.fit(pairs, progress=False)
    return place


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("name", ["books", "pairs"])
def test_a_run_is_evaluated_as_it_evaluated_itself(here, name, capsys):
    assert run(f"runs/{name}", "--out", "values.json") == 0
    told = json.loads((here / "values.json").read_text())
    want = json.loads((here / "runs" / name / "result.json").read_text())["evaluation"]
    assert told["values"] == want
    assert told["documents"] in (2, 5)
    out = capsys.readouterr().out
    assert f"runs/{name}: {told['task']['type']} on {told['documents']} documents, rows of 16 tokens" in out
    for metric, value in want.items():
        assert metric in out
        assert f"{value:.4f}" in out


def test_a_run_without_a_published_model_is_read_from_its_newest_checkpoint(here, tmp_path, capsys):
    """As where an adapter's run has not ended: with its moving average, and nothing is written."""
    assert not (here / "runs" / "pairs" / "model").exists()
    copy = shutil.copytree(here / "runs" / "books", tmp_path / "copy")
    shutil.rmtree(copy / "model")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert run(str(copy), "--out", "copy.json") == 0
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert "has no model/: evaluating its checkpoint of step 2" in capsys.readouterr().out
    want = json.loads((here / "runs" / "books" / "result.json").read_text())["evaluation"]
    assert json.loads((here / "copy.json").read_text())["values"] == want


def test_any_model_is_evaluated_on_files(here, capsys):
    (here / "one.txt").write_text("A lazy dog tells of a book.\n" * 5)
    (here / "two.jsonl").write_text('{"body": "Of a book."}\n')
    shutil.copytree(here / "runs" / "books" / "model", here / "published", dirs_exist_ok=True)
    files = ("--data.files", "one.txt", "two.jsonl", "--data.text-field", "body", "--length", "32", "--out", "v.json")
    assert run("published", *files) == 0
    told = json.loads((here / "v.json").read_text())
    assert (told["documents"], told["length"], told["files"]) == (2, 32, ["one.txt", "two.jsonl"])
    assert {"loss", "perplexity", "bits_per_byte", "accuracy"} == told["values"].keys()
    assert {entry.name for entry in here.iterdir()} >= {"published", "v.json"}
    assert not (here / ".prepared").exists()
    assert "on 2 documents, rows of 32 tokens" in capsys.readouterr().out
    assert run("runs/books", "--evaluation-stride", "None", *files) == 0
    assert json.loads((here / "v.json").read_text())["values"] == told["values"]


def test_the_task_is_chosen_by_name(here):
    model = str(here / "runs" / "pairs")
    files = ("--data.files", "pairs.jsonl", "--predictions", "2", "--out", "task.json")
    assert run(model, "--task", "seq2seq", "--task.target-length", "9", "--task.measures", "exact", *files) == 0
    told = json.loads((here / "task.json").read_text())
    assert told["task"]["target_length"] == 9
    assert told["documents"] == 20
    assert {"loss", "accuracy", "exact"} == told["values"].keys()


def test_every_option_of_a_run_is_the_default(here):
    experiment = recorded(here / "runs" / "books")
    assert replace(experiment, folder="runs") == EXPERIMENT
    options = evaluate.parse("x", experiment, [])
    assert (options.task, options.rows, options.length, options.evaluation_stride) == (
        CausalLM(z_loss=1e-4),
        8,
        16,
        8,
    )
    changed = evaluate.parse("x", experiment, ["--evaluation-stride", "None", "--task.label-smoothing", "0.5"])
    assert changed.evaluation_stride is None
    assert changed.task == CausalLM(0.5, 1e-4)
    assert evaluate.parse("x", experiment, ["--task", "causal-lm"]).task == CausalLM()
    alone = evaluate.parse("x", None, ["--rows", "3", "--task=seq2seq", "--task.prefix", "a"])
    assert (alone.rows, alone.task) == (3, Seq2Seq(prefix="a"))


def test_the_stride_gives_more_context(here):
    assert run("runs/books", "--evaluation-stride", "None", "--out", "plain.json") == 0
    plain = json.loads((here / "plain.json").read_text())["values"]
    own = json.loads((here / "runs" / "books" / "result.json").read_text())["evaluation"]
    assert plain["loss"] != own["loss"]


def test_a_run_with_an_adapter_is_evaluated_merged(here):
    experiment = replace(
        EXPERIMENT, name="tuned", model=None, start="runs/books", adapter=LoraConfig(rank=2), evaluation_stride=None
    )
    experiment = replace(experiment, optimizer=replace(experiment.optimizer, ema=None), prompts=("A dog",))
    fitted = fitting.fit(experiment, progress=False)
    assert run("runs/tuned", "--out", "tuned.json") == 0
    told = json.loads((here / "tuned.json").read_text())["values"]
    np.testing.assert_allclose(told["loss"], fitted.evaluation["loss"], rtol=1e-5)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which model? jaxformer evaluate SOURCE"),
        (["--rows", "3"], "which model?"),
        (["nowhere/at/all", "--data.files", "books"], "nowhere"),
        (["runs/books/model"], "is no run, which would hold documents out: name some with --data.files"),
        (["runs/books", "--task", "chess"], "--task chess: expected one of causal-lm, "),
        (["runs/books", "--task"], "--task : expected one of"),
        (["runs/books", "--task", "seq2seq", "--evaluation-stride", "None"], "not what Seq2Seq reads"),
        (["runs/books", "--evaluation-stride", "17"], "evaluation_stride is 17"),
        (["runs/books", "--data.files", "nothing/*.txt"], "data.files finds nothing"),
        (["runs/pairs", "--task", "causal-lm", "--data.files", "books"], "model.encoder is set"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_is_wrong_is_said(arguments, said, capsys):
    assert run(*arguments) == 1
    assert said in capsys.readouterr().err


def test_a_run_on_documents_in_memory_wants_files(here, capsys):
    texts = [f"{i}. A lazy dog." * 3 for i in range(9)]
    fitting.fit(replace(EXPERIMENT, name="memory"), texts, progress=False)
    assert run("runs/memory") == 1
    assert "learned from documents in memory: name some with --data.files" in capsys.readouterr().err
    assert run("runs/memory", "--data.files", "books") == 0
    assert "on 6 documents" in capsys.readouterr().out


POLITE = """
from jaxformer.align import reward
from jaxformer.experiment import Experiment


@reward("polite")
def polite(prompts, answers, records):
    return [0.25 for _ in answers]


def config():
    return Experiment("polite", steps=1)
"""


def test_a_function_that_rewards_is_found_where_the_run_was_configured(here, capsys):
    """A run keeps its name alone, so that reading a run executes nothing unasked."""
    (here / "polite.py").write_text(POLITE)
    (here / "prompts.jsonl").write_text("".join(f'{{"prompt": "dog {i}"}}\n' for i in range(6)))
    task, data = GRPO((FunctionReward("polite"),), answer_length=4), DataConfig(("prompts.jsonl",), held_out=2)
    given = replace(EXPERIMENT, name="polite", task=task, data=data, evaluation_stride=None)
    shutil.copytree(here / "runs" / "books" / "model", here / "runs" / "polite" / "model")
    write_json(here / "runs" / "polite" / "experiment.json", {"experiment": codec.to_json(given)})
    assert run("runs/polite") == 1
    said = capsys.readouterr().err
    assert "no function is registered as 'polite'" in said
    assert "--config" in said
    with pytest.raises(ValueError, match="no function is registered as 'polite'"):
        replay(given, 1, progress=False)
    try:
        assert run("runs/polite", "--config", "polite.py", "--out", "polite.json") == 0
        assert json.loads((here / "polite.json").read_text())["values"]["reward"] == 0.25
    finally:
        del FUNCTIONS["polite"]


@pytest.mark.usefixtures("here")
def test_help_tells_the_options_of_a_source(capsys):
    assert run("--help") == 0
    assert "one of causal-lm, " in capsys.readouterr().out
    assert run("runs/pairs", "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--task.target-length INT" in out
    assert "(default: 16)" in out
    assert "--data.files" in out
