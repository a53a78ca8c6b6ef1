"""Kill a run with SIGKILL again and again: what it reaches at last must equal, bit for bit, what one reaches that
was never interrupted.

    python benchmarks/kill.py --kills 200

Four kills in five come at a random moment after the first step of a process (uniform over a fifth of the time that
all steps and saves take, so that a run is hit many times and everywhere), one in five while a process starts. Each
run has its own seed. The last kills may land while the finished model is evaluated and published. Compared are the
parameters and the optimizer's state of the last checkpoint, the published model, the result, and step and values of
each line of the log. Writes results/kill.md. tests/invariants/test_resume.py makes five kills with this file's tools.

The file is the configuration of the killed run, too.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
    """`jaxformer train` on this file, in a process of its own; `folder` is where its run's folder is made.

    The shared options of a test's or user's environment count, but for XLA_FLAGS: one device is enough.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.run = folder / config().name
        self.events = self._events()
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.txt"
        command = [sys.executable, "-W", "error", "-m", "jaxformer", "train", __file__, "--folder", str(folder)]
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                [*command, *options], stdout=output, stderr=subprocess.STDOUT, env=environment
            )

    def wait_until(self, moment: Callable[[], bool] = lambda: False) -> bool:
        """Whether `moment` came while the process lived. Looks some five hundred times a second."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            if moment():
                return True
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"the run hangs:\n{self.text()}")
            time.sleep(0.002)
        return False

    def kill(self, number: int = signal.SIGKILL) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def finish(self) -> None:
        """Wait for the end, which must be a good one."""
        self.wait_until()
        if self.process.returncode != 0:
            raise RuntimeError(f"the run failed with {self.process.returncode}:\n{self.text()}")

    def text(self) -> str:
        """All that this and earlier processes in the folder have printed."""
        return self.output.read_text()

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
    """Steps that were done and must be done again."""
    wrote: bool
    """Whether a checkpoint was half-written."""


def timed(folder: Path, seed: int) -> tuple[Path, float, float]:
    """(run, seconds from start to first step, seconds from there to the last checkpoint), never interrupted."""
    process, start = Process(folder, "--seed", str(seed)), time.monotonic()
    process.wait_until(process.is_stepping)
    first = time.monotonic()
    process.wait_until(lambda: process.saved() == config().steps)
    last = time.monotonic()
    process.finish()
    return process.run, first - start, last - first


def killed(folder: Path, seed: int, start: float, steps: float, rng: random.Random, most: int) -> Iterator[Kill]:
    """Kill a run, at most so many times; then let it finish. Ends where it is finished before its kill."""
    for _ in range(most):
        process = Process(folder, "--seed", str(seed))
        if rng.random() < 0.2:
            moment = time.monotonic() + rng.uniform(0, start)
        else:
            moment = time.monotonic() + rng.uniform(0, steps / 5) if process.wait_until(process.is_stepping) else 0
        if not process.wait_until(lambda: time.monotonic() >= moment):
            process.finish()
            return
        process.kill()
        lost, done = process.logged() - process.saved(), process.saved() == config().steps
        stage = "finishing" if done else "steps and saves" if process.is_stepping() else "start"
        yield Kill(stage, max(lost, 0), process.is_saving())
    Process(folder, "--seed", str(seed)).finish()


def main() -> int:
    """Exit code 1 for a difference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, kills, wrong, runs, began = random.Random(options.seed), list[Kill](), list[str](), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(place) / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        timed(Path("warm"), 0)  # its times are those of a cold compilation cache
        while len(kills) < options.kills:
            seed, runs = runs + 1, runs + 1
            reference, start, steps = timed(Path(f"reference-{seed}"), seed)
            for kill in killed(Path(f"killed-{seed}"), seed, start, steps, rng, options.kills - len(kills)):
                kills.append(kill)
                print(f"kill {len(kills)} of {options.kills}, run {runs}: {kill}", flush=True)
            found = differences(Path(f"killed-{seed}") / config().name, reference)
            wrong += [f"run {runs}: {line}" for line in found]
            print(f"run {runs}: {'; '.join(found) or 'equal to the last bit'}", flush=True)
            shutil.rmtree(f"killed-{seed}")
            shutil.rmtree(f"reference-{seed}")
    text = report(kills, wrong, runs, time.monotonic() - began)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kill.md").write_text(text)
    print(text)
    return 1 if wrong else 0


def report(kills: list[Kill], wrong: list[str], runs: int, seconds: float) -> str:
    stages, lost = Counter(kill.stage for kill in kills), [kill.lost for kill in kills]
    rows = {
        "kills": len(kills),
        **{f"- during {stage}": count for stage, count in sorted(stages.items())},
        "- with a checkpoint half-written": sum(kill.wrote for kill in kills),
        "runs that were killed, then finished": runs,
        "steps lost by a kill, mean and most": f"{statistics.mean(lost):.1f}, {max(lost)}",
        "steps between saves": config().save_every,
        "**differences** from runs never interrupted": len(wrong),
        "seconds": f"{seconds:.0f}",
    }
    command = f"`python benchmarks/kill.py --kills {len(kills)}`, jax {jax.__version__}, {os.cpu_count()} cores"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"# Killed runs\n\n{command}\n\n| | |\n|---|---|\n{table}\n" + "".join(f"- {line}\n" for line in wrong)


if __name__ == "__main__":
    sys.exit(main())
