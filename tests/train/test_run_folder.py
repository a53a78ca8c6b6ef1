import json
import os
import subprocess
import sys
import textwrap

import pytest

from jaxformer.train.run_folder import RunFolder

EXPERIMENT = {
    "steps": 10,
    "mesh": {"data": -1, "fsdp": 1},
    "model": {"width": 8, "pattern": [{"window": None}, {"window": 3}]},
    "prompts": [],
    "seed": 0,
}
CHANGEABLE = ("steps", "mesh/**", "prompts", "prompts/**")


def holder(folder, then):
    """A process that takes the folder, says so, and does `then`."""
    program = f"""
        import os, sys, time
        from jaxformer.train.run_folder import RunFolder
        with RunFolder({str(folder)!r}):
            print("held", flush=True)
            {then}
    """
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


def test_a_second_live_process_is_refused_by_name(tmp_path):
    with holder(tmp_path, "sys.stdin.read()") as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match=f"in use by process {process.pid}: .* --name"):
            RunFolder(tmp_path).__enter__()
        process.stdin.close()
        process.wait()
    with RunFolder(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_the_lock_of_a_process_that_was_killed_counts_for_nothing(tmp_path):
    with holder(tmp_path, "time.sleep(60)") as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
    assert (tmp_path / "lock").read_text() == str(process.pid)
    with RunFolder(tmp_path):
        pass


def test_two_runs_of_one_process_exclude_each_other_too(tmp_path):
    with RunFolder(tmp_path), pytest.raises(RuntimeError, match="in use"):
        RunFolder(tmp_path).__enter__()
    with RunFolder(tmp_path):
        pass


def test_an_error_inside_frees_the_folder(tmp_path):
    with pytest.raises(KeyError), RunFolder(tmp_path):
        raise KeyError
    with RunFolder(tmp_path):
        pass


# Identity ---------------------------------------------------------------------------------------------------


def claim(folder, experiment, **options):
    with RunFolder(folder, **options) as run:
        return run.claim(experiment, CHANGEABLE)


def changed(**parts):
    return json.loads(json.dumps(EXPERIMENT)) | parts


def test_the_same_experiment_goes_on_without_a_word(tmp_path):
    assert claim(tmp_path / "new" / "run", EXPERIMENT) == []
    assert claim(tmp_path / "new" / "run", EXPERIMENT) == []
    assert json.loads((tmp_path / "new/run/experiment.json").read_text()) == {"version": 1, "experiment": EXPERIMENT}


def test_what_may_change_is_reported_and_entered(tmp_path):
    claim(tmp_path, EXPERIMENT)
    new = changed(steps=20, mesh={"data": 1, "fsdp": -1}, prompts=["a", "b"])
    assert claim(tmp_path, new) == [
        "mesh.data: -1 -> 1",
        "mesh.fsdp: 1 -> -1",
        "prompts: [] -> None",
        "prompts.0: None -> a",
        "prompts.1: None -> b",
        "steps: 10 -> 20",
    ]
    assert claim(tmp_path, new) == []


def test_everything_else_is_refused_with_each_difference_and_the_ways_out(tmp_path):
    claim(tmp_path, EXPERIMENT)
    new = changed(steps=20, seed=1, model={"width": 8, "pattern": [{"window": 2}], "more": {"a": 1}})
    with pytest.raises(ValueError, match="belongs to another experiment") as error:
        claim(tmp_path, new)
    text = str(error.value)
    differences = [
        "model.more.a: None -> 1",
        "model.pattern.0.window: None -> 2",
        "model.pattern.1.window: 3 -> None",
        "seed: 0 -> 1",
    ]
    assert [line.strip("- ") for line in text.splitlines()[1:-1]] == differences
    assert "--name" in text
    assert "--fresh" in text
    assert json.loads((tmp_path / "experiment.json").read_text())["experiment"] == EXPERIMENT


def test_fresh_starts_over_in_an_empty_folder(tmp_path):
    claim(tmp_path, EXPERIMENT)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("{}")
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (tmp_path / "link").symlink_to(outside, target_is_directory=True)
    assert claim(tmp_path, changed(seed=9), fresh=True) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["experiment.json", "lock"]
    assert (outside / "kept").exists()


def test_fresh_deletes_nothing_that_another_process_holds(tmp_path):
    claim(tmp_path, EXPERIMENT)
    with RunFolder(tmp_path), pytest.raises(RuntimeError, match="in use"):
        RunFolder(tmp_path, fresh=True).__enter__()
    assert (tmp_path / "experiment.json").exists()


def test_another_version_is_refused(tmp_path):
    (tmp_path / "experiment.json").write_text('{"version": 0, "experiment": {}}')
    with pytest.raises(ValueError, match=r"experiment.json has version 0, this program writes 1"):
        claim(tmp_path, EXPERIMENT)
