"""Kill a run with SIGKILL again and again: what it reaches at last must equal, bit for bit, what one reaches that
was never interrupted.

    python benchmarks/kill.py --kills 200
    python benchmarks/kill.py --kills 20 --processes 2

Four kills in five come at a random moment after the first step of a process (uniform over a fifth of the time that
all steps and saves take, so that a run is hit many times and everywhere), one in five while a process starts. Each
run has its own seed. The last kills may land while the finished model is evaluated and published. Each start must go
on from the newest checkpoint that was complete at the kill: then no kill loses more than the steps since that one.
Compared at the end are the parameters and the optimizer's state of the last checkpoint, the published model, the
result, and step and values of each line of the log. With several processes (on this machine, of two devices each)
one of them is killed, and all are started again when the others have noticed. Writes results/kill.md, or
results/kill_2_processes.md. tests/invariants/test_resume.py makes five kills with this file's tools.

The file is the configuration of the killed run, too.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer import optimizer, sharding
from jaxformer.experiment import Experiment
from jaxformer.nn.model import Model
from jaxformer.optimizer import OptimizerConfig
from jaxformer.testing import tiny_models, with_dropout
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.metrics import read_metrics
from jaxformer.train.state import TrainState

RESULTS = Path(__file__).parent / "results"
PATIENCE = 300.0  # seconds after which something hangs


def config() -> Experiment:
    """A llama-like model with dropout that learns the standard library's json package, and saves often."""
    model = replace(with_dropout(tiny_models()["rotary"], 0.1), vocab=400, width=32)
    return Experiment(
        name="killed",
        model=model,
        steps=40,
        rows=16,
        length=64,
        data=DataConfig(files=(str(Path(json.__file__).parent),), held_out=4),
        tokenizer=TokenizerConfig("sentencepiece", 400),
        optimizer=OptimizerConfig(warmup_steps=4, ema=0.9),
        evaluate_every=10,
        evaluate_batches=2,
        save_every=5,
    )


class Process:
    """`jaxformer train` on this file, in processes of its own; `folder` is where its run's folder is made.

    The shared options of a test's or user's environment count, but for XLA_FLAGS: one process has one device, each
    of several has two.
    """

    def __init__(self, folder: Path, *options: str, processes: int = 1) -> None:
        self.run = folder / config().name
        self.events = self._events()
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.txt"
        self.printed = self.output.stat().st_size if self.output.exists() else 0
        command = [sys.executable, "-W", "error", "-m", "jaxformer", "train", __file__, "--folder", str(folder)]
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONFAULTHANDLER": "1"}
        places: list[list[str]] = [[]]
        if processes > 1:
            environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
            common = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes), "--heartbeat", "10"]
            places = [[*common, "--process", str(number)] for number in range(processes)]
        with self.output.open("a") as output:
            self.processes = [
                subprocess.Popen(
                    [*command, *options, *place], stdout=output, stderr=subprocess.STDOUT, env=environment
                )
                for place in places
            ]

    def wait_until(self, moment: Callable[[], bool] = lambda: False) -> bool:
        """Whether `moment` came while all processes lived. Looks some five hundred times a second."""
        end = time.monotonic() + PATIENCE
        while all(process.poll() is None for process in self.processes):
            if moment():
                return True
            if time.monotonic() > end:
                for process in self.processes:
                    process.send_signal(signal.SIGABRT)  # on which Python tells where each thread is
                    process.wait()
                raise TimeoutError(f"the run hangs:\n{self.text()}")
            time.sleep(0.002)
        return False

    def kill(self, number: int = signal.SIGKILL, victim: int = 0) -> int:
        """The exit code of one process after a signal; returns when the others have ended, too."""
        self.processes[victim].send_signal(number)
        return [process.wait(PATIENCE) for process in self.processes][victim]

    def finish(self) -> None:
        """Wait for the end, which must be a good one."""
        self.wait_until()
        codes = [process.wait(PATIENCE) for process in self.processes]
        if any(codes):
            raise RuntimeError(f"the run failed with {codes}:\n{self.text()}")

    def text(self) -> str:
        """All that this and earlier processes in the folder have printed."""
        return self.output.read_text()

    def begun_at(self) -> int | None:
        """The step that these processes went on from; None where they were killed before they could say."""
        said = re.search(r"going on from step (\d+)", self.output.read_bytes()[self.printed :].decode())
        return int(said[1]) if said else 0 if self.is_stepping() else None

    # Moments.

    def is_stepping(self) -> bool:
        """A step of this very process is done: each process opens TensorBoard events of its own."""
        return self._events() > self.events

    def is_saving(self) -> bool:
        return any(self.run.glob("checkpoints/*tmp*"))

    def has_published(self) -> bool:
        return (self.run / "result.json").exists()

    def saved(self) -> int:
        """The newest complete checkpoint, 0 where there is none."""
        return max((int(p.name) for p in self.run.glob("checkpoints/*") if p.name.isdigit()), default=0)

    def logged(self) -> int:
        """The newest step in the log."""
        return max((line["step"] for line in read_metrics(self.run)), default=0)

    def _events(self) -> int:
        return len(list(self.run.glob("tensorboard/*")))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def differences(ours: Path, reference: Path) -> list[str]:
    """What is not equal to the last bit in two folders of finished runs of `config()`."""
    leaves = zip(*map(jax.tree_util.tree_leaves_with_path, map(final_state, (ours, reference))), strict=True)
    found = [
        f"{jax.tree_util.keystr(path)} of the last checkpoint"
        for (path, a), (_, b) in leaves
        if np.asarray(a).tobytes() != np.asarray(b).tobytes()
    ]
    logs = [[json.dumps([line["step"], line["values"]]) for line in read_metrics(run)] for run in (ours, reference)]
    found += [f"line {n} of the log" for n, (a, b) in enumerate(zip(*logs, strict=False), 1) if a != b]
    if len(logs[0]) != len(logs[1]):
        found.append(f"the log's length: {len(logs[0])}, {len(logs[1])} lines")
    names = {p.relative_to(run) for run in (ours, reference) for p in run.glob("model/*")} | {Path("result.json")}
    return found + [str(name) for name in sorted(names) if content(ours / name) != content(reference / name)]


def content(file: Path) -> bytes | dict[str, Any] | None:
    """What must be equal: of a result all but what the clock said."""
    if not file.exists():
        return None
    return json.loads(file.read_text()) | {"time": None} if file.name == "result.json" else file.read_bytes()


def final_state(run: Path) -> TrainState:
    """The last checkpoint."""
    experiment = config()
    params = sharding.abstract_params(Model(experiment.model))
    opt_state = jax.eval_shape(optimizer.make_optimizer(experiment.optimizer, experiment.steps).init, params)
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        target = TrainState(jax.ShapeDtypeStruct((), np.int32), params, opt_state)
        return checkpoints.restore(target)[0]


@dataclass(frozen=True)
class Kill:
    """What a kill met."""

    stage: str
    lost: int
    """Steps that were done since the last complete save, and must be done again."""
    wrote: bool
    """Whether a checkpoint was half-written."""


def timed(folder: Path, seed: int, processes: int) -> tuple[Path, float, float]:
    """(run, seconds from start to first step, seconds from there to the last checkpoint), never interrupted."""
    process, start = Process(folder, "--seed", str(seed), processes=processes), time.monotonic()
    process.wait_until(process.is_stepping)
    first = time.monotonic()
    process.wait_until(lambda: process.saved() == config().steps)
    last = time.monotonic()
    process.finish()
    return process.run, first - start, last - first


@dataclass
class Victim:
    """A run to be killed, at most `most` times, and then finished; or earlier, where it is before its kill."""

    folder: Path
    seed: int
    processes: int
    start: float
    """Seconds that a start takes until its first step."""
    steps: float
    """Seconds that all steps and saves take."""
    saved: int = 0
    """The newest checkpoint that was complete at the last kill."""
    behind: list[str] = field(default_factory=list)
    """Starts that went on from an older one."""

    def kills(self, rng: random.Random, most: int) -> Iterator[Kill]:
        for _ in range(most):
            process = self._process()
            if rng.random() < 0.2:
                moment = time.monotonic() + rng.uniform(0, self.start)
            else:
                stepping = process.wait_until(process.is_stepping)
                moment = time.monotonic() + rng.uniform(0, self.steps / 5) if stepping else 0
            if not process.wait_until(lambda: time.monotonic() >= moment):
                self._finish(process)
                return
            process.kill(victim=rng.randrange(self.processes))
            self._compare(process)
            self.saved, done = process.saved(), process.saved() == config().steps
            stage = "finishing" if done else "steps and saves" if process.is_stepping() else "start"
            yield Kill(stage, max(process.logged() - self.saved, 0), process.is_saving())
        self._finish(self._process())

    def _process(self) -> Process:
        return Process(self.folder, "--seed", str(self.seed), processes=self.processes)

    def _finish(self, process: Process) -> None:
        process.finish()
        self._compare(process)

    def _compare(self, process: Process) -> None:
        begun = process.begun_at()
        if begun is not None and begun < self.saved:
            self.behind.append(f"went on from step {begun} though {self.saved} was complete")


def main() -> int:
    """Exit code 1 for a difference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    rng, kills, wrong, runs, began = random.Random(options.seed), list[Kill](), list[str](), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(place) / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        timed(Path("warm"), 0, options.processes)  # its times are those of a cold compilation cache
        while len(kills) < options.kills:
            seed, runs = runs + 1, runs + 1
            reference, start, steps = timed(Path(f"reference-{seed}"), seed, options.processes)
            victim = Victim(Path(f"killed-{seed}"), seed, options.processes, start, steps)
            for kill in victim.kills(rng, options.kills - len(kills)):
                kills.append(kill)
                print(f"kill {len(kills)} of {options.kills}, run {runs}: {kill}", flush=True)
            found = victim.behind + differences(Path(f"killed-{seed}") / config().name, reference)
            wrong += [f"run {runs}: {line}" for line in found]
            print(f"run {runs}: {'; '.join(found) or 'equal to the last bit'}", flush=True)
            shutil.rmtree(f"killed-{seed}")
            shutil.rmtree(f"reference-{seed}")
    text = report(kills, wrong, runs, options.processes, time.monotonic() - began)
    RESULTS.mkdir(exist_ok=True)
    name = "kill.md" if options.processes == 1 else f"kill_{options.processes}_processes.md"
    (RESULTS / name).write_text(text)
    print(text)
    return 1 if wrong else 0


def report(kills: list[Kill], wrong: list[str], runs: int, processes: int, seconds: float) -> str:
    stages, lost = Counter(kill.stage for kill in kills), [kill.lost for kill in kills]
    rows = {
        "processes of a run, of which one is killed": processes,
        "kills": len(kills),
        **{f"- during {stage}": count for stage, count in sorted(stages.items())},
        "- with a checkpoint half-written": sum(kill.wrote for kill in kills),
        "runs that were killed, then finished": runs,
        "steps since the last complete save at a kill, mean and most": f"{statistics.mean(lost):.1f}, {max(lost)}",
        "starts that went on from an older one": sum("went on from" in line for line in wrong),
        "steps between saves": config().save_every,
        "**differences** from runs never interrupted": len(wrong),
        "seconds": f"{seconds:.0f}",
    }
    several = f" --processes {processes}" if processes > 1 else ""
    command = f"`python benchmarks/kill.py --kills {len(kills)}{several}`"
    head = f"# Killed runs\n\n{command}, jax {jax.__version__}, {os.cpu_count()} cores\n\n| | |\n|---|---|\n"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return head + f"{table}\n" + "".join(f"- {line}\n" for line in wrong)


if __name__ == "__main__":
    sys.exit(main())
