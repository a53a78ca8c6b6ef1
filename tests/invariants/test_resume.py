"""The law that a run killed at any moment ends as one that was never interrupted, with real processes and kills."""

import importlib.util
import shutil
import signal
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "kill.py"
specification = importlib.util.spec_from_file_location("kill", FILE)
kill = importlib.util.module_from_spec(specification)
specification.loader.exec_module(kill)

pytestmark = pytest.mark.slow
STEPS = kill.config().steps


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run in the background that nobody interrupts."""
    process = kill.Process(tmp_path_factory.mktemp("reference"))
    yield process
    process.kill()


def kill_when(folder: Path, moment, met, tries: int = 1) -> None:
    """Start or continue the run, and kill it at the moment; `met` says whether the kill landed in it."""
    for _ in range(tries):
        process = kill.Process(folder)
        assert process.wait_until(lambda: moment(process)), process.text()
        assert process.kill() == -signal.SIGKILL
        if met(process):
            return
    pytest.fail(f"no kill in {tries} landed where it was meant to:\n{process.text()}")


def test_a_run_killed_five_times_ends_as_one_that_was_never_interrupted(reference, tmp_path):
    prepared = tmp_path / ".prepared"
    kill_when(  # while text is prepared
        tmp_path,
        lambda p: (p.run / "experiment.json").exists(),
        lambda p: len(list(prepared.glob("[!.]*"))) < 2,
    )
    kill_when(  # in the first compilation
        tmp_path,
        lambda p: (p.run / "checkpoints").exists(),
        lambda p: not p.logged() and not p.saved(),
    )
    kill_when(  # between steps
        tmp_path,
        lambda p: p.logged() > p.saved() > 0,
        lambda p: p.saved() < STEPS,
    )
    kill_when(  # while a checkpoint is written
        tmp_path,
        lambda p: p.is_stepping() and p.is_saving(),
        lambda p: p.is_saving(),
        tries=3,
    )
    kill_when(  # while the finished model is evaluated and published
        tmp_path,
        lambda p: p.saved() == STEPS,
        lambda p: not p.has_published(),
    )
    process = kill.Process(tmp_path)
    process.finish()
    reference.finish()
    assert kill.differences(process.run, reference.run) == []


def test_signals_save_the_step_under_way_and_the_same_line_goes_on(reference, tmp_path):
    for number, step in ((signal.SIGTERM, 7), (signal.SIGINT, 23)):
        process = kill.Process(tmp_path)
        assert process.wait_until(lambda: process.logged() >= step)
        assert process.kill(number) == 130, process.text()
        assert step <= process.saved() == process.logged() < STEPS
        assert f"stopped at step {process.saved()} of {STEPS}; the same line goes on from there" in process.text()
        assert "Traceback" not in process.text()
    process = kill.Process(tmp_path)
    process.finish()
    reference.finish()
    assert kill.differences(process.run, reference.run) == []


def test_a_difference_would_be_found(reference, tmp_path):
    reference.finish()
    other = tmp_path / "other"
    shutil.copytree(reference.run, other)
    shutil.rmtree(other / "checkpoints" / str(STEPS))
    log, weights = other / "metrics.jsonl", other / "model" / "model.safetensors"
    first, *lines = log.read_text().splitlines(keepends=True)
    log.write_text(first.replace("0", "1", 1) + "".join(lines[:-1]))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (other / "result.json").unlink()
    found = kill.differences(other, reference.run)
    assert any("embedding" in line and ".params" in line for line in found)
    assert any("embedding" in line and ".opt_state" in line for line in found)
    assert found[-4:] == [
        "line 1 of the log",
        "the log's length: 43, 44 lines",
        f"model/{weights.name}",
        "result.json",
    ]
