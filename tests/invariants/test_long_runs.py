"""The laws of runs that last: what they do about bad steps, what they tell of themselves, what they may cost."""

import ctypes
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import combinations

import jax
import numpy as np
import pytest

from jaxformer import codec
from jaxformer.experiment import Experiment
from jaxformer.fitting import fit
from jaxformer.optimizer import OptimizerConfig
from jaxformer.replaying import replay
from jaxformer.testing import tiny_models, with_dropout
from jaxformer.text.corpus import DataConfig
from jaxformer.text.index import Batches
from jaxformer.text.tokenizer import TokenizerConfig
from jaxformer.train import heartbeat, rollback
from jaxformer.train.loop import NotFiniteError
from jaxformer.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("fresh_caches")

TOKENS = [np.random.default_rng(n).integers(0, 37, 200) for n in range(9)]
BATCH = Batches.batch


@pytest.fixture
def experiment(tmp_path):
    return Experiment(
        name="long",
        folder=str(tmp_path),
        model=replace(with_dropout(tiny_models()["rotary"], 0.1), vocab=320),
        steps=12,
        rows=8,
        length=16,
        tokenizer=TokenizerConfig("sentencepiece", 320),
        optimizer=OptimizerConfig(warmup_steps=1),
        data=DataConfig(held_out=9),
        evaluate_every=4,
        save_every=4,
    )


def lines(run_or_experiment):
    """Step and values of each line of the log."""
    folder = getattr(run_or_experiment, "path", None) or run_or_experiment.folder
    return [(line["step"], line["values"]) for line in read_metrics(folder)]


def assert_equal(ours, other):
    jax.tree.map(np.testing.assert_array_equal, ours.state, other.state)
    assert json.dumps(lines(ours)) == json.dumps(lines(other))
    assert ours.evaluation == other.evaluation


def life(experiment):
    return json.loads((experiment.path / heartbeat.FILE).read_text())


# A step that is not finite.


@pytest.fixture
def spoil(monkeypatch):
    """spoil(5, 6): the losses of batches 5 and 6 are not finite."""

    def bad(*numbers):
        def batch(self, n, *part):
            found = BATCH(self, n, *part)
            return found | {"weights": found["weights"] * np.float32("nan")} if n in numbers else found

        monkeypatch.setattr(Batches, "batch", batch)

    return bad


def test_a_bad_batch_stops_the_run_which_goes_on_when_told_how(experiment, spoil):
    spoil(5)
    with pytest.raises(NotFiniteError, match="step 6: the loss is nan") as error:
        fit(experiment, TOKENS, progress=False)
    assert error.value.step == 6
    skipping = fit(replace(experiment, not_finite="skip"), TOKENS, progress=False)
    skipped = {step: values["skipped"] for step, values in lines(skipping) if "skipped" in values}
    assert skipped == {step: float(step == 6) for step in range(1, 13)}


@pytest.mark.parametrize("bad", [(5,), (0, 9), (5, 6, 7)], ids=str)
def test_a_run_that_rolls_back_equals_one_whose_data_never_had_the_batch(
    experiment, spoil, monkeypatch, capsys, count_compilations, bad
):
    spoil(*bad)
    with count_compilations() as compiled:
        rolling = fit(replace(experiment, not_finite="roll_back"), TOKENS)
    assert compiled.of("step") == 1
    out = capsys.readouterr().out
    for number in bad:
        assert f"rolling back, to go on without batch {number}\n" in out
    whole = [n for n in range(20) if n not in bad]
    monkeypatch.setattr(Batches, "batch", lambda self, n, *part: BATCH(self, whole[n], *part))
    reference = fit(replace(experiment, name="without"), TOKENS, progress=False)
    jax.tree.map(np.testing.assert_array_equal, rolling.state, reference.state)
    assert rolling.evaluation == reference.evaluation
    found = lines(rolling)
    told = {step: values.pop("passed_over") for step, values in found if "passed_over" in values}
    assert json.dumps(found) == json.dumps(lines(reference))
    assert sum(told.values()) == len(bad)
    assert rollback.read(read_metrics(rolling.folder)) == list(bad)


@pytest.mark.parametrize("step", [5, 6, 9, 11])
def test_a_run_that_dies_after_it_rolled_back_ends_as_if_it_had_not(experiment, spoil, step):
    """Killed before the checkpoint that knows of the batch, it meets the batch once more; after it, never again."""
    spoil(5, 10)
    experiment = replace(experiment, not_finite="roll_back")
    reference = fit(experiment, TOKENS, progress=False)

    def die(number, values):
        died.append(number)
        if number == step and len(died) > step:
            raise MemoryError("as it were")

    again, died = replace(experiment, name="dies"), []
    with pytest.raises(MemoryError):
        fit(again, TOKENS, on_metrics=die, progress=False)
    told = []
    assert_equal(fit(again, TOKENS, on_metrics=lambda *call: told.append(call), progress=False), reference)
    assert sum(np.isnan(values.get("loss", 0.0)) for _, values in told) == (2 if step < 9 else 1)


def test_a_run_whose_steps_are_never_finite_does_not_roll_back_forever(experiment, spoil):
    spoil(*range(5, 30))
    with pytest.raises(
        NotFiniteError, match=r"Since the newest checkpoint, which is kept, 3 batches .* not the data"
    ):
        fit(replace(experiment, not_finite="roll_back"), TOKENS, progress=False)
    assert lines(experiment)[-1][0] == 4


def test_a_step_after_a_roll_back_can_be_taken_again(experiment, spoil, tmp_path):
    for n, tokens in enumerate(TOKENS):
        (tmp_path / f"{n}.txt").write_text("".join(chr(97 + token % 26) for token in tokens))
    files = DataConfig(files=(str(tmp_path / "*.txt"),), held_out=3)
    experiment = replace(experiment, data=files, not_finite="roll_back", save_every=6, keep=9)
    spoil(4, 8)
    fit(experiment, progress=False)
    for step in (5, 12):
        found = replay(experiment, step, progress=False)
        assert found.logged
        assert found.differing == []


@pytest.mark.parametrize(
    ("passed_over", "batches"),
    [([], [0, 1, 2, 3]), ([0], [1, 2, 3, 4]), ([2], [0, 1, 3, 4]), ([1, 2, 4], [0, 3, 5, 6]), ([9], [0, 1, 2, 3])],
)
def test_which_batch_a_step_takes(passed_over, batches):
    assert [rollback.batch_of(step, passed_over) for step in range(1, 5)] == batches
    told = [{"step": step, "values": rollback.logged(step, passed_over)} for step in range(1, 5)]
    assert rollback.read(told) == [n for n in passed_over if n < batches[-1]]


# What it tells of itself.


def test_a_crash_anywhere_leaves_the_line_of_each_step_before_it(experiment, monkeypatch):
    def batch(self, n, *part):
        if n == 6:
            raise OSError("the disk is gone")
        return BATCH(self, n, *part)

    monkeypatch.setattr(Batches, "batch", batch)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(experiment, TOKENS, progress=False)
    assert [step for step, values in lines(experiment) if "loss" in values] == [1, 2, 3, 4, 5, 6]
    assert life(experiment)["step"] == 6


def test_time_adds_up_over_all_processes_of_a_run(experiment, capsys):
    started = time.perf_counter()
    stop = lambda step, values: signal.raise_signal(signal.SIGTERM) if step == 5 else None
    assert not fit(experiment, TOKENS, on_metrics=stop).finished
    out, first = capsys.readouterr().out, life(experiment)
    assert "time: steps " in out
    assert first["doing"] == "stopped"
    assert first["step"] == lines(experiment)[-1][0]
    assert first["pid"] == os.getpid()

    run = fit(experiment, TOKENS)
    taken = time.perf_counter() - started
    last = life(experiment)
    assert last["doing"] == "finished"
    assert last["step"] == 12
    assert all(last["seconds"][name] >= first["seconds"][name] for name in heartbeat.ACTIVITIES)
    assert 0.8 * taken < sum(last["seconds"].values()) < taken
    time_of = json.loads((run.folder / "result.json").read_text())["time"]
    assert sum(time_of.values()) == pytest.approx(1)
    assert {"steps", "compile", "evaluation", "saves", "data", "other"} == time_of.keys()
    assert (
        f"time: steps {time_of['steps']:.0%}, compile {time_of['compile']:.0%}, evaluation "
        in capsys.readouterr().out
    )


def test_steps_that_are_taken_again_were_lost(experiment, spoil):
    spoil(7)
    fit(replace(experiment, not_finite="roll_back"), TOKENS, progress=False)
    assert life(experiment)["seconds"]["lost"] > 0


PROCESS = """
import json, sys, time
import numpy as np
from jaxformer import codec
from jaxformer.experiment import Experiment
from jaxformer.fitting import fit
from jaxformer.train import heartbeat

heartbeat.SECONDS = 0.0
experiment = codec.from_json(json.loads(sys.argv[1]), Experiment)
tokens = [np.random.default_rng(n).integers(0, 37, 200) for n in range(9)]
fit(experiment, tokens, progress=False, on_metrics=lambda step, values: time.sleep(0.02))
"""


def test_after_a_kill_the_heartbeat_tells_the_last_step(experiment):
    experiment = replace(experiment, steps=1000, evaluate_every=1000, save_every=1000)
    process = subprocess.Popen([sys.executable, "-c", PROCESS, json.dumps(codec.to_json(experiment))])
    seen, end = set(), time.monotonic() + 300
    while len(seen) < 5 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
        if (experiment.path / heartbeat.FILE).exists():
            beat = life(experiment)  # never half of one
            seen.add(beat["step"])
            assert abs(beat["time"] - time.time()) < 60
    process.kill()
    assert process.wait() == -signal.SIGKILL
    last = life(experiment)
    assert last["pid"] == process.pid
    assert last["doing"] == "steps"
    assert last["step"] >= max(seen) >= 4
    assert lines(experiment)[-1][0] - last["step"] in (0, 1)  # a kill between the line and the beat


# A look into it.


def traces(folder):
    """{the first step of a trace: (numbers of its steps, names of all that happened)}."""
    found = {}
    for file in folder.glob("profile/*/plugins/profile/*/*.trace.json.gz"):
        with gzip.open(file) as opened:
            events = json.load(opened)["traceEvents"]
        steps = sorted(int(event["args"]["step_num"]) for event in events if event.get("name") == "train")
        found[int(file.parents[3].name)] = steps, {event.get("name") for event in events}
    return found


def test_steps_are_traced_by_option_and_at_a_signal_and_no_number_changes(experiment, capsys):
    plain = fit(experiment, TOKENS, progress=False)
    before = signal.getsignal(signal.SIGUSR1)
    ask = lambda step, values: signal.raise_signal(signal.SIGUSR1) if step == 6 else None
    run = fit(replace(experiment, name="looked-at", profile=2), TOKENS, on_metrics=ask)
    assert signal.getsignal(signal.SIGUSR1) == before
    found = traces(run.folder)
    assert [steps for steps, _ in found.values()] == [[first, first + 1] for first in found]
    assert set(found) == {4, 8}  # when a step is told of, the next is under way
    for _, names in found.values():
        assert "PjitFunction(step)" in names
        assert any("dot" in name for name in names if name)
    assert capsys.readouterr().out.count("profile: ") == 2
    assert json.loads((run.folder / "result.json").read_text())["time"]["profile"] > 0
    assert_equal(run, plain)


def test_a_trace_that_the_end_of_the_run_cuts_short_is_there_and_one_in_use_is_said(experiment, tmp_path, capsys):
    run = fit(replace(experiment, steps=5, profile=20), TOKENS, progress=False)
    assert traces(run.folder)[4][0] == [4, 5]
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(tmp_path / "other"), profiler_options=options):
        fit(replace(experiment, name="other", steps=5, profile=1), TOKENS)
    assert "step 4 is not profiled: " in capsys.readouterr().out


# What it may cost.


MEMORY = """
import ctypes, gc, json, sys
import jax.numpy as jnp
import numpy as np
from jaxformer import codec
from jaxformer.experiment import Experiment
from jaxformer.fitting import fit

class Heap(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

heap = ctypes.pythonapi.mallinfo2
heap.restype = Heap
experiment, leaks = codec.from_json(json.loads(sys.argv[1]), Experiment), sys.argv[2:] == ["leak"]
points, kept = [], []


def look(step, values):
    if leaks:
        kept.append(jnp.zeros(8))
    if step % 500 == 400:  # as far from evaluations and saves as can be
        gc.collect()
        points.append((step, heap().uordblks + heap().hblkhd))


fit(experiment, [np.arange(n, n + 200) % 37 for n in range(9)], progress=False, on_metrics=look)
json.dump(points, sys.stdout)
"""
WARM = 1500
"""Steps after which all that a run holds is there: libraries, programs, the points of the picture."""
BYTES = 1000
"""A step. Without a leak -650 to 280 were measured; an array of eight numbers kept at each step makes 2300:
growth(experiment, "leak")."""


def growth(experiment, *options):
    """Bytes a step that a run in a process of its own has allocated and not freed: the median slope of its points.

    Not the resident memory: the allocator takes and gives back some MB at a time, and a leak fills its holes first.
    """
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONMALLOC": "malloc"}  # Python's own allocator does not count
    command = [sys.executable, "-c", MEMORY, json.dumps(codec.to_json(experiment)), *options]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    points = [point for point in json.loads(done.stdout) if point[0] > WARM]
    assert len(points) >= 10
    return np.median([(y - x) / (b - a) for (a, x), (b, y) in combinations(points, 2)])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.pythonapi, "mallinfo2"), reason="what is allocated is asked of glibc")
def test_the_memory_of_a_run_does_not_grow_over_five_thousand_steps(experiment):
    steps = WARM + 5000
    long = replace(experiment, steps=steps, rows=1, length=8, evaluate_every=500, save_every=500, predictions=0)
    assert growth(long) < BYTES
