"""`jaxformer train`: a configuration file, its options, and what it says when something is wrong."""

import dataclasses
import json
import textwrap

import pytest

from jaxformer import cli
from jaxformer.commands import train
from jaxformer.replaying import replay
from jaxformer.train.metrics import read_metrics

CONFIG = """
    from dataclasses import replace

    from jaxformer.experiment import Experiment
    from jaxformer.optimizer import OptimizerConfig
    from jaxformer.testing import tiny_models
    from jaxformer.text.tokenizer import TokenizerConfig


    def config():
        return Experiment(
            name="mine",
            model=replace(tiny_models()["rotary"], vocab=320),
            steps=3,
            rows=8,
            length=16,
            tokenizer=TokenizerConfig(vocab_size=320),
            optimizer=OptimizerConfig(warmup_steps=1),
        )
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to be in, with config.py and books/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(textwrap.dedent(CONFIG))
    (tmp_path / "books").mkdir()
    for number in range(3):
        (tmp_path / "books" / f"{number}.txt").write_text(f"Book {number} tells of a lazy dog.\n" * 20)
    return tmp_path


def run(*arguments):
    """The exit code of `jaxformer train config.py ...`."""
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", "config.py", *arguments])
    return exit.value.code


def test_your_own_text_is_one_option(here, capsys):
    assert run("--name", "books", "--data.files", "books/*.txt", "--steps", "2") == 0
    assert "step 2/2" in capsys.readouterr().out
    folder = here / "runs" / "books"
    assert [line["step"] for line in read_metrics(folder) if "loss" in line["values"]] == [1, 2]
    assert (folder / "model" / "model.safetensors").exists()
    identity = json.loads((folder / "experiment.json").read_text())["experiment"]
    assert identity["data"]["files"] == ["books/*.txt"]
    assert run("--name", "books", "--data.files", "books/*.txt", "--steps", "2") == 0
    assert "is finished: 2 steps" in capsys.readouterr().out
    assert run("--name", "books", "--data.files", "books/*.txt", "--rows", "16") == 1
    assert "rows: 8 -> 16" in capsys.readouterr().err


def test_each_field_is_an_option(here):
    default = train.load(here / "config.py")
    arguments = "--steps 7 --patience 3 --keep-every None --optimizer.peak-lr 0.1 --optimizer.ema 0.9 --mesh.fsdp 2"
    options = train.parse(default, [*arguments.split(), "--data.files", "a b", "c", "--prompts", "x", "--fresh"])
    experiment = options.experiment
    assert options.fresh
    assert (experiment.steps, experiment.patience, experiment.keep_every) == (7, 3, None)
    assert (experiment.optimizer.peak_lr, experiment.optimizer.ema, experiment.mesh.fsdp) == (0.1, 0.9, 2)
    assert experiment.data.files == ("a b", "c")
    assert experiment.prompts == ("x",)
    assert experiment.model == default.model
    assert train.parse(default, []).experiment == default


def test_the_architecture_may_be_changed_too(here):
    default = train.load(here / "config.py")
    changed = train.parse(default, ["--model.decoder.layers", "4"]).experiment.model
    assert changed.decoder.layers == 4
    assert changed.decoder.pattern == default.model.decoder.pattern


@pytest.mark.usefixtures("here")
def test_help_tells_each_option_with_its_meaning_and_value(capsys):
    assert run("--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--optimizer.peak-lr FLOAT Learning rate at the end of the warm-up. (default: 0.001)" in out
    assert "--data.files" in out
    assert "--fresh" in out


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--optimizer.peak-lrr", "3"], 2, ["Perhaps you meant", "--optimizer.peak-lr FLOAT"]),
        (["--steps", "abc"], 2, ["--steps", "'abc'"]),
        (["--steps", "0", "--rows", "0"], 1, ["steps is 0", "rows is 0"]),
        (["--data.files", "nope/*.txt"], 1, ["data.files finds nothing", "nope/*.txt"]),
        (["--data.files", "bad.jsonl"], 1, ["bad.jsonl:2: expected a JSON object, found b'{"]),
        (["--data.files", "books", "--mesh.data", "3"], 1, ["mesh data 3"]),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_is_wrong_is_said_and_nothing_is_built(here, arguments, code, said, capsys):
    (here / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n')
    assert run(*arguments) == code
    err = capsys.readouterr().err
    for part in said:
        assert part in err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (None, FileNotFoundError, "no such configuration file"),
        ("", ValueError, r"expected a function config\(\) that returns an Experiment"),
        ("config = 3", ValueError, "expected a function"),
        ("def config(): return {}", ValueError, "expected a function"),
        ("import no_such_module", ModuleNotFoundError, "no_such_module"),
    ],
)
def test_a_file_that_is_no_configuration_is_said(tmp_path, content, error, said):
    if content is not None:
        (tmp_path / "other.py").write_text(content)
    with pytest.raises(error, match=said):
        train.load(tmp_path / "other.py")


@pytest.mark.parametrize("arguments", [[], ["--steps", "3"]])
def test_a_configuration_must_be_named(arguments):
    with pytest.raises(ValueError, match="which experiment"):
        train.main(arguments)


# A step again.


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a finished run of nine steps, of which the checkpoints 4, 8 and 9 are kept."""
    place = tmp_path_factory.mktemp("done")
    (place / "config.py").write_text(textwrap.dedent(CONFIG))
    (place / "books").mkdir()
    for number in range(4):
        (place / "books" / f"{number}.txt").write_text(f"Book {number} tells of a lazy dog.\n" * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(*LINE, "--steps", "9", "--save-every", "4", "--keep", "3") == 0
    return place


LINE = ("--data.files", "books", "--model.decoder.input.dropout", "0.1", "--optimizer.ema", "0.9")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("step", "since"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8)])
def test_a_step_is_replayed_to_the_last_bit_and_nothing_is_written(done, monkeypatch, step, since):
    monkeypatch.chdir(done)
    before = contents(done / "runs" / "mine")
    found = replay(train.parse(train.load(done / "config.py"), LINE).experiment, step, progress=False)
    logged = next(line["values"] for line in read_metrics(done / "runs" / "mine") if line["step"] == step)
    assert (found.step, found.since, found.logged, found.differing) == (step, since, logged, [])
    assert found.values == logged
    assert sum(norm**2 for norm in found.norms.values()) == pytest.approx(logged["gradient_norm"] ** 2, rel=1e-5)
    assert [*found.norms.values()] == sorted(found.norms.values(), reverse=True)
    assert len(found.rows) == 8
    assert all("lazy" in row["tokens"] or "Book" in row["tokens"] or len(row["tokens"]) < 9 for row in found.rows)
    assert contents(done / "runs" / "mine") == before


def test_the_command_tells_of_the_step(done, monkeypatch, capsys):
    monkeypatch.chdir(done)
    assert run(*LINE, "--replay", "6") == 0
    out = capsys.readouterr().out
    assert "replaying step 6" in out
    assert "from checkpoint 4" in out
    logged = next(line["values"] for line in read_metrics(done / "runs" / "mine") if line["step"] == 6)
    for name, value in logged.items():
        (line,) = (line for line in out.splitlines() if f" {name} " in line)
        assert line.count(str(value)) >= 2
        assert "equal" in line
    assert "differs" not in out
    assert "embed/embedding" in out
    assert "row 7, tokens: " in out


def test_a_value_that_differs_is_told(done, monkeypatch, capsys):
    monkeypatch.chdir(done)
    found = replay(train.parse(train.load(done / "config.py"), LINE).experiment, 9, progress=False)
    other = dataclasses.replace(found, logged=found.logged | {"loss": 0.25, "accuracy": float("nan")})
    assert sorted(other.differing) == ["accuracy", "loss"]
    train.tell(other)
    assert capsys.readouterr().out.count("differs") == 2
    both = dataclasses.replace(other, values=found.values | {"accuracy": float("nan")})
    assert both.differing == ["loss"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--replay", "10"], "--replay 10: runs/mine has the steps 1 to 9"),
        (["--replay", "0"], "has the steps 1 to 9"),
        (["--replay", "3", "--fresh"], "--replay and --fresh"),
        (["--replay", "3", "--name", "other"], "runs/other is no run's folder"),
        (["--replay", "3", "--seed", "1", "--rows", "16"], "rows: 8 -> 16\n  - seed: 0 -> 1"),
    ],
)
def test_what_cannot_be_replayed_is_said(done, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(done)
    assert run(*LINE, *arguments) == 1
    assert said in capsys.readouterr().err
    assert not (done / "runs" / "other").exists()
