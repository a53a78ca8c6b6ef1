"""The laws of runs in many processes, with real ones: over loopback and gloo, each with a few CPU devices."""

import importlib.util
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxformer import distributed, tree
from jaxformer.optimizer import ema_params
from jaxformer.source import from_pretrained
from jaxformer.train.metrics import read_metrics

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def tools(name: str):
    specification = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


kill, processes = tools("kill"), tools("processes")
pytestmark = pytest.mark.slow

STEPS, ROWS = 24, kill.config().rows
OPTIONS = ("--steps", str(STEPS), "--save-every", "3", "--evaluate-every", "6", "--keep", "99")
OPTIONS += ("--prompts", "import json", "--prompt-tokens", "4")
HEARTBEAT = 10
SLACK = 10.0
"""Seconds beside the heartbeat until the last process has ended, on a busy machine; measured: docs/processes.md."""

# `jaxformer train` that notes the rows it makes, [batch, row, what it holds]; it may be slowed down, and may fail.
RECORDER = """
import hashlib, json, os, time, jax
from jaxformer import cli
from jaxformer.text.index import Batches

make = Batches.batch

def batch(self, n, part=slice(None)):
    made = make(self, n, part)
    if part.start in (None, 0, self.batch_size // 2):  # once a batch
        time.sleep(float(os.environ.get("SLOW", 0)))
    if [n, jax.process_index()] == json.loads(os.environ.get("FAIL", "null")):
        raise OSError(f"batch {n} cannot be read")
    with open(f"{os.environ['RECORD']}-{jax.process_index()}.jsonl", "a") as file:
        for i, number in enumerate(range(self.batch_size)[part]):
            held = hashlib.sha256(b"".join(made[name][i].tobytes() for name in sorted(made))).hexdigest()
            file.write(json.dumps([n, number, held]) + "\\n")
    return made

Batches.batch = batch
cli.main()
"""


def job(folder: Path, count: int, *options: str, record: str = "rows", **how: object):
    program = (sys.executable, "-W", "error", "-c", RECORDER, "train")
    given = {"heartbeat": HEARTBEAT, "program": program, "RECORD": str(folder / record), **how}
    return processes.Job(folder, count, *OPTIONS, *options, **given)


def rows(folder: Path, count: int, record: str = "rows") -> list[dict[tuple[int, int], str]]:
    """What each process made of the first batches: {(batch, row): what it holds}."""
    files = [(folder / f"{record}-{i}.jsonl").read_text().splitlines() for i in range(count)]
    parsed = [[json.loads(line) for line in file] for file in files]
    return [{(n, row): held for n, row, held in lines if n < STEPS} for lines in parsed]


def steps(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run) if "loss" in line["values"]]


def slurm(process: int, count: int, port: int) -> dict[str, str]:
    """What srun leaves in the environment of its tasks."""
    task = {"SLURM_PROCID": str(process), "SLURM_LOCALID": str(process), "SLURM_NTASKS": str(count)}
    where = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost"}
    return task | where | listening(port)


def open_mpi(process: int, count: int, port: int) -> dict[str, str]:
    """What mpirun leaves in the environment of its processes, before Open MPI 5."""
    rank = {"OMPI_COMM_WORLD_RANK": str(process), "OMPI_COMM_WORLD_LOCAL_RANK": str(process)}
    where = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": str(count)}
    return rank | where | listening(port)


def listening(port: int) -> dict[str, str]:
    return {"JAX_COORDINATOR_PORT": str(port), "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two processes that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    started = job(folder, 2)
    started.finish()
    return started


def test_process_0_writes_for_all_and_each_makes_its_own_rows(whole):
    names = {path.name for path in whole.run.iterdir()}
    files = {"experiment.json", "data.json", "metrics.jsonl", "curves.png", "result.json", "heartbeat.json", "lock"}
    assert names == files | {"checkpoints", "model", "tensorboard", "tokenizer"}
    assert len(list((whole.run / "tensorboard").iterdir())) == 1
    assert steps(whole.run) == list(range(1, STEPS + 1))
    assert [line["step"] for line in read_metrics(whole.run) if "loss" not in line["values"]] == [6, 12, 18, 24]
    # Gloo's threads write what they say of connections, and the end of that line, one after the other.
    lines = [output.read_text().splitlines() for output in whole.outputs]
    said = [[line for line in of_one if line and "[Gloo]" not in line] for of_one in lines]
    assert any(line.startswith("import json") for line in said[0])
    assert said[1] == []

    half = ROWS // 2
    for made, mine in zip(rows(whole.run.parent, 2), (range(half), range(half, ROWS)), strict=True):
        assert set(made) == {(n, row) for n in range(STEPS) for row in mine}


def test_what_they_publish_is_what_they_hold(whole):
    published = tree.flatten(from_pretrained(whole.run)[1])
    last = kill.final_state(whole.run)  # restored in this one process
    held = tree.flatten(ema_params(last.opt_state))
    assert published.keys() == held.keys()
    for path, leaf in held.items():
        np.testing.assert_array_equal(published[path], leaf, path)


def test_a_job_that_is_signalled_and_killed_ends_as_one_that_never_was(whole, tmp_path):
    for process, number in ((1, signal.SIGTERM), (0, signal.SIGINT)):
        started = job(tmp_path, 2, told=slurm, SLOW="0.4")
        started.wait_until(started.is_stepping)
        started.signal(process, number)
        assert started.codes() == [130, 130], started.text()
        assert started.saved() == steps(started.run)[-1] < STEPS
        assert f"stopped at step {started.saved()} of {STEPS}" in started.outputs[0].read_text()

    started = job(tmp_path, 2, SLOW="0.4")
    started.wait_until(started.is_stepping)
    started.signal(1, signal.SIGKILL)
    began = time.monotonic()
    survivor, killed = started.codes()
    assert time.monotonic() - began < HEARTBEAT + SLACK, started.text()
    assert killed == -signal.SIGKILL
    assert survivor in (distributed.LOST, -signal.SIGABRT), started.text()
    assert started.saved() < STEPS

    started = job(tmp_path, 2, told=open_mpi)
    started.finish()
    assert kill.differences(started.run, whole.run) == []


def test_another_number_of_processes_goes_on_with_the_same_batches(whole, tmp_path):
    run = tmp_path / whole.run.name
    shutil.copytree(whole.run, run)
    for place in (*run.glob("checkpoints/*"), run / "model"):
        if place.name not in ("3", "6"):
            shutil.rmtree(place)
    (run / "result.json").unlink()

    alone = job(tmp_path, 1, record="one", SLOW="0.4")
    alone.wait_until(lambda: len(steps(alone.run)) > 8 and alone.is_stepping())
    alone.signal(0, signal.SIGTERM)
    assert alone.codes() == [130], alone.text()
    between = alone.saved()
    assert 6 < between < STEPS
    four = job(tmp_path, 4, record="four", devices=1)
    four.finish()

    made = {key: held for part in rows(whole.run.parent, 2) for key, held in part.items()}
    (one,), parts = rows(tmp_path, 1, "one"), rows(tmp_path, 4, "four")
    quarter = ROWS // 4
    for process, part in enumerate(parts):
        numbers = range(process * quarter, (process + 1) * quarter)
        assert set(part) == {(n, row) for n in range(between, STEPS) for row in numbers}
    after = one | {key: held for part in parts for key, held in part.items()}
    assert after == {key: held for key, held in made.items() if key[0] >= 6}

    assert_logged_alike(run, whole.run)


def assert_logged_alike(run, other):
    ours, theirs = read_metrics(run), read_metrics(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["values"].keys() == b["values"].keys()
        for name in a["values"]:
            np.testing.assert_allclose(a["values"][name], b["values"][name], rtol=1e-5, err_msg=f"{a['step']} {name}")


def test_keys_go_round_from_process_to_process_where_rows_are_split_over_them(whole, tmp_path):
    split = job(tmp_path, 2, "--mesh.data", "1", "--mesh.sequence", "4")
    split.finish()
    assert_logged_alike(split.run, whole.run)


def test_what_fails_in_one_process_ends_all_with_the_reason(whole, tmp_path):
    shutil.copytree(whole.run, tmp_path / whole.run.name)
    of_first = job(tmp_path, 2, "--seed", "5")
    assert of_first.codes() == [1, 1]
    first, second = (output.read_text() for output in of_first.outputs)
    assert "belongs to another experiment:\n  - seed: 0 -> 5" in first
    assert re.search(r"jaxformer: process 0 failed: .* belongs to another experiment", second)

    other = tmp_path / "other"
    of_second = job(other, 2, each=lambda process: ("--seed", str(process)))
    assert of_second.codes() == [1, 1]
    first, second = (output.read_text() for output in of_second.outputs)
    assert "jaxformer: this process was given another experiment than process 0:\n  - seed: 0 -> 1" in second
    assert "jaxformer: process 1 failed: this process was given another experiment" in first

    blind = job(tmp_path / "blind", 2, each=lambda process: ("--data.files", "/nowhere") if process else ())
    assert blind.codes() == [1, 1]
    assert "jaxformer: process 1 failed: data.files finds nothing:\n  '/nowhere'" in blind.outputs[0].read_text()
    assert not blind.run.exists()
    for failed in (of_first, of_second, blind):
        assert "Traceback" not in failed.text()


def test_a_process_that_fails_amid_its_steps_is_not_waited_for(tmp_path):
    failing = job(tmp_path, 2, heartbeat=5, FAIL="[6, 1]")
    first, second = failing.codes()
    assert second in (1, -signal.SIGABRT)
    assert first in (distributed.LOST, -signal.SIGABRT)
    assert "jaxformer: batch 6 cannot be read" in failing.outputs[1].read_text()
    assert failing.saved() == 6
