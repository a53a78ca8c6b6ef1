"""`jaxformer checkpoint`: what a run has saved, whether it is whole, and what of it may go."""

import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import cli
from jaxformer.commands import checkpoint as command
from jaxformer.train import checksums
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.retention import steps_in
from jaxformer.train.run_folder import RunFolder
from jaxformer.train.state import TrainState


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder with checkpoints of the steps 2 to 10, the best of them 4."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    with Checkpoints(folder / "checkpoints", keep=9, best=("loss", "min")) as checkpoints:
        for step in range(2, 11, 2):
            params = {"w": jnp.asarray(np.random.default_rng(step).normal(size=(30, 20)))}
            state = TrainState(step=jnp.int32(step), params=params, opt_state={})
            checkpoints.save(state, {}, {}, {"loss": abs(step - 4) + 1.5} if step != 8 else None)
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "mine")


def call(*arguments):
    """The exit code of `jaxformer checkpoint ...`."""
    with pytest.raises(SystemExit) as exit:
        cli.main(["checkpoint", *map(str, arguments)])
    return exit.value.code


def rows(text):
    return [re.split(r"\s*│\s*", line.strip("│ ")) for line in text.splitlines() if line.startswith("│")]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def broken(run, step):
    path = run / "checkpoints" / str(step) / "params" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1])


def test_the_list_says_what_is_known_of_each(run, capsys):
    before = files(run)
    assert call("list", run) == 0
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found] == ["2", "4", "6", "8", "10"]
    assert [row[3] for row in found] == ["loss 3.5", "loss 1.5", "loss 3.5", "-", "loss 7.5"]
    for _, size, age, _, by, listed in found:
        assert re.fullmatch(r"[\d.]+ kB", size)
        assert re.fullmatch(r"\d+ (seconds|minutes)", age)
        assert (by, listed) == ("8 x cpu, 1 process", "yes")
    assert files(run) == before
    assert call("list", run / "checkpoints") == 0
    assert [row[0] for row in rows(capsys.readouterr().out)] == ["2", "4", "6", "8", "10"]


def test_the_list_shows_what_is_unknown_set_aside_and_half_written(run, capsys):
    folder = run / "checkpoints"
    (folder / "2" / checksums.FILE).unlink()
    (folder / "4" / checksums.FILE).write_text("{}")
    (folder / "12.orbax-checkpoint-tmp").mkdir()
    (folder / "damaged" / "6").mkdir(parents=True)
    assert call("list", run) == 0
    out = capsys.readouterr().out
    assert [row[4:] for row in rows(out)[:3]] == [
        ["unknown", "none"],
        ["unknown", "DAMAGED"],
        ["8 x cpu, 1 process", "yes"],
    ]
    assert "set aside in damaged/, to be deleted by hand: 6" in out
    assert "half-written, cleared when the run goes on: 12.orbax-checkpoint-tmp" in out


def test_good_checkpoints_pass(run, capsys):
    assert call("verify", run) == 0
    assert capsys.readouterr().out.splitlines() == [f"step {step}: good" for step in (2, 4, 6, 8, 10)]
    (run / "checkpoints" / "2" / checksums.FILE).unlink()
    assert call("verify", run, "--step", 2) == 0
    assert capsys.readouterr().out == "step 2: has no checksums; all of it can be read\n"


def test_what_is_damaged_missing_or_unexpected_is_named_and_fails(run, capsys):
    broken(run, 4)
    (run / "checkpoints" / "4" / "data" / "metadata").unlink()
    (run / "checkpoints" / "8" / "notes.txt").write_text("mine")
    assert call("verify", run) == 1
    size = checksums.read(run / "checkpoints" / "4")["files"]["params/_METADATA"]["bytes"]
    assert capsys.readouterr().out.splitlines() == [
        "step 2: good",
        "step 4: DAMAGED",
        "  - data/metadata: is missing",
        f"  - params/_METADATA: has {size - 1:,} bytes, {size:,} were written",
        "step 6: good",
        "step 8: good",
        "  - notes.txt: was not saved with the checkpoint",
        "step 10: good",
    ]
    assert call("verify", run, "--step", 10) == 0
    assert call("verify", run, "--step", 4) == 1
    assert call("verify", run, "--step", 8) == 1


def test_the_newest_the_spaced_and_the_best_stay(run, capsys):
    before = files(run)
    assert call("prune", run, "--keep", 1, "--every", 6, "--dry-run") == 0
    assert files(run) == before
    out = capsys.readouterr().out
    assert re.findall(r"would delete step (\d+) \(", out) == ["2", "8"]
    assert "would be freed; steps that stay: 4, 6, 10" in out
    assert call("prune", run, "--keep", 1, "--every", 6) == 0
    out = capsys.readouterr().out
    assert re.findall(r"deleted step (\d+) \(", out) == ["2", "8"]
    assert "freed; steps that stay: 4, 6, 10" in out
    assert steps_in(run / "checkpoints") == [4, 6, 10]
    assert not list((run / "checkpoints").glob("discarded/*"))
    with Checkpoints(run / "checkpoints", best=("loss", "min")) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best()) == ([4, 6, 10], 4)
        checkpoints.restore_params()


def test_the_only_good_checkpoint_stays(run, capsys):
    for step in (10, 8, 4):
        broken(run, step)
    assert call("prune", run, "--keep", 2) == 0
    out = capsys.readouterr().out
    assert "step 6 stays: it is the newest that is not damaged" in out
    assert steps_in(run / "checkpoints") == [4, 6, 8, 10]


def test_nothing_is_deleted_where_nothing_is_good(run, capsys):
    for step in (2, 4, 6, 8, 10):
        broken(run, step)
    before = files(run)
    assert call("prune", run, "--keep", 1) == 1
    assert capsys.readouterr().err.count("is damaged:") == 5
    assert {path: data for path, data in files(run).items() if path.name != "lock"} == before


def test_a_run_that_goes_on_is_left_alone(run, capsys):
    with RunFolder(run):
        for folder in (run, run / "checkpoints"):
            assert call("prune", folder, "--keep", 1) == 1
            assert "is in use by process" in capsys.readouterr().err
        assert call("prune", run, "--keep", 1, "--dry-run") == 0
        assert call("verify", run) == 0
    assert steps_in(run / "checkpoints") == [2, 4, 6, 8, 10]


def test_what_cannot_be_done_is_said(run, tmp_path, capsys):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for arguments, message in {
        ("list", tmp_path / "empty"): "no checkpoint there",
        ("verify", tmp_path / "nowhere"): "no checkpoint there",
        ("verify", run, "--step", 3): "no checkpoint of step 3",
        ("prune", run, "--keep", 0): "make them at least 1",
        ("prune", run, "--keep", 1, "--every", 0): "make them at least 1",
    }.items():
        assert call(*arguments) == 1
        assert message in capsys.readouterr().err
    assert steps_in(run / "checkpoints") == [2, 4, 6, 8, 10]


def test_a_bar_is_shown_once_it_lasts(run, monkeypatch):
    """And only on a terminal."""
    shown = []
    monkeypatch.setattr(command.Progress, "start", lambda bar: shown.append(bar.disable))
    monkeypatch.setattr(command.Console, "is_terminal", True)
    assert call("verify", run) == 0
    assert shown == []
    monkeypatch.setattr(command, "PATIENCE", -1.0)
    assert call("verify", run) == 0
    assert set(shown) == {False}
