"""What the loop costs beside the steps: logging, progress, heartbeat, batches, saves; and how soon a run goes on.

    python benchmarks/loop.py                 all of it, into results/loop.md
    python benchmarks/loop.py --rounds 3      fewer rounds of each
    python benchmarks/loop.py --parts tiny   some of it, shown alone

Steps: one process, the compiled step of one run. Four ways take turns with ten steps each, forwards and backwards in
turn: bare, which hands the step batches that lie ready and waits at the end; the loop as `fit` runs it, on the same
batches; the loop with batches made meanwhile from the data; the loop on ready batches with one checkpoint, saved in
the background. Compared are the ways of one round: the median of the differences with a bootstrap 90% interval. The
model is that of configs/quickstart.py, and a tiny one, whose steps take next to no time, to see the loop alone.

Resuming: a process that goes on with a run of the quickstart, from its start to the line of its first step in
metrics.jsonl, with an empty compilation cache and with one that knows the programs, in turn.
"""

import argparse
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer import fitting, sharding
from jaxformer.experiment import Experiment
from jaxformer.testing import tiny_models
from jaxformer.text.tokenizer import TokenizerConfig
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.loop import Rhythm, Values, run
from jaxformer.train.metrics import MetricsLog, read_metrics
from jaxformer.train.state import TrainState

RESULTS = Path(__file__).parent / "results"
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
PARTS = ("quickstart", "tiny", "resume")
STEPS, NEVER = 10, 10**9
Seconds = tuple[float, float]  # of the clock and of all cores


def quickstart(folder: str) -> Experiment:
    plain: Experiment = runpy.run_path(str(QUICKSTART))["config"]()
    return replace(plain, folder=folder, compressors=False, prompts=(), evaluate_batches=1, predictions=1)


def tiny(folder: str) -> Experiment:
    pieces = TokenizerConfig("sentencepiece", 400)
    model = replace(tiny_models()["rotary"], vocab=400)
    small = replace(quickstart(folder), name="tiny", model=model, tokenizer=pieces, rows=1, length=16)
    return replace(small, evaluation_stride=None, steps=10_000)


class Beside:
    """A run's own callbacks but for evaluations, and saves where they are not asked for."""

    def __init__(self, fitter: fitting.Fitter, saves: bool) -> None:
        self.on_metrics = fitter.on_metrics
        self.save = fitter.on_checkpoint if saves else lambda state, values: None
        self.at: int | None = None

    def on_evaluation(self, step: int, state: TrainState) -> Values:
        return {}

    def on_checkpoint(self, state: TrainState, values: Values) -> None:
        if self.at is None:  # the first of a round; the loop's last step saves, too
            self.at = int(state.step)
            self.save(state, values)


class Measured(fitting.Fitter):
    """A run that is never finished: its ways to take steps take turns."""

    rounds = 9

    def run(self) -> Any:
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        with (
            self.checkpoints,
            MetricsLog(self.folder) as self.log,
            self.say.training(0),
            self.batches(0) as self.made,
        ):
            self.ready = [sharding.place_batch(self.feed.batches.batch(n), self.mesh) for n in range(STEPS)]
            state = self.fresh()
            for way in self.ways().values():  # to warm up
                state = way(state)
            found: dict[str, list[Seconds]] = {name: [] for name in self.ways()}
            for number in range(self.rounds):
                ways = list(self.ways().items())[:: -1 if number % 2 else 1]
                for name, way in ways:
                    self.checkpoints.wait()
                    start, cpu = time.perf_counter(), time.process_time()
                    state = way(state)
                    found[name].append((time.perf_counter() - start, time.process_time() - cpu))
                print(number + 1, {name: f"{times[-1][0]:.3f}" for name, times in found.items()}, file=sys.stderr)
            return found

    def ways(self) -> dict[str, Callable[[TrainState], TrainState]]:
        return {
            "bare step": self.bare,
            "loop": lambda state: self.loop(state, iter(self.ready)),
            "loop and data": lambda state: self.loop(state, self.made),
            "loop and a save": lambda state: self.loop(state, iter(self.ready), saves=True),
        }

    def bare(self, state: TrainState) -> TrainState:
        for batch in self.ready:
            state, metrics = self.step(state, self.start.frozen, batch)
        jax.block_until_ready(metrics)
        return state

    def loop(self, state: TrainState, batches: Iterator[Any], saves: bool = False) -> TrainState:
        rhythm = Rhythm(int(state.step) + STEPS, NEVER, STEPS // 2 if saves else NEVER)
        return run(self.step, state, self.start.frozen, batches, rhythm, Beside(self, saves), watch=self.watch)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median, and the ends of its bootstrap 90% interval."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), (0.05, 0.95))
    return float(np.median(values)), float(low), float(high)


def steps_table(name: str, found: dict[str, list[Seconds]]) -> list[str]:
    times = {way: np.array(each) / STEPS * 1e3 for way, each in found.items()}
    bare = times["bare step"]
    lines = [
        f"## Steps: the {name} model",
        "",
        "| | ms a step | CPU ms a step | more than bare, ms a step | more than bare |",
        "|---|---|---|---|---|",
    ]
    for way, each in times.items():
        more = "| |"
        if way != "bare step":
            (m, low, high), share = interval(each[:, 0] - bare[:, 0]), interval(each[:, 0] / bare[:, 0] - 1)
            more = f"{m:.2f} ({low:.2f} to {high:.2f}) | {share[0]:.1%} ({share[1]:.1%} to {share[2]:.1%}) |"
        wall, cpu = np.median(each, axis=0)
        lines.append(f"| {way} | {wall:.2f} | {cpu:.2f} | {more}")
    save = interval((times["loop and a save"] - times["loop"])[:, 0] * STEPS)
    lines += ["", f"A save costs the steps {save[0]:.0f} ms ({save[1]:.0f} to {save[2]:.0f}), once in `save_every`."]
    return [*lines, ""]


def seconds_until(moment: Callable[[], bool], folder: Path, cache: Path) -> float:
    """Start the quickstart or go on with it, and kill it at the moment."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(Path(__file__).parents[1])}
    options = ("--folder", str(folder), "--save-every", "4", "--no-compressors")
    command = [sys.executable, "-m", "jaxformer", "train", str(QUICKSTART), *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        while not moment():
            if process.poll() is not None or time.perf_counter() - start > 600:
                raise RuntimeError(f"the run did not come so far: exit code {process.poll()}")
            time.sleep(0.01)
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()


def resumed(folder: Path, cache: Path) -> float:
    """Seconds from the start of a process to the line of its first step."""
    path = quickstart(str(folder)).path
    saved = max(int(each.name) for each in (path / "checkpoints").glob("[0-9]*") if each.name.isdigit())
    before = (path / "metrics.jsonl").stat().st_mtime_ns

    def is_there() -> bool:
        # Until it goes on, the file has the lines of the process before, which it then forgets.
        lines = read_metrics(path) if (path / "metrics.jsonl").stat().st_mtime_ns > before else []
        return any(line["step"] > saved for line in lines)

    return seconds_until(is_there, folder, cache)


def resume_table(place: Path, rounds: int) -> list[str]:
    seconds_until((place / "quickstart" / "checkpoints" / "4").exists, place, place / "warm")
    resumed(place, place / "warm")
    found: dict[str, list[float]] = {"empty": [], "warm": []}
    for number in range(rounds):
        for name in ("empty", "warm")[:: -1 if number % 2 else 1]:
            shutil.rmtree(place / "empty", ignore_errors=True)
            found[name].append(resumed(place, place / name))
            print(f"resumed, {name} cache: {found[name][-1]:.1f} s", file=sys.stderr)
    lines = ["## Resuming the quickstart", "", "| compilation cache | seconds to the first step |", "|---|---|"]
    for name, seconds in found.items():
        median, low, high = interval(np.array(seconds))
        lines.append(f"| {name} | {median:.1f} ({low:.1f} to {high:.1f}) |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    fitting.Fitter = Measured
    command = f"`python benchmarks/loop.py --rounds {options.rounds}`, jax {jax.__version__}, {os.cpu_count()} cores,"
    lines = ["# The loop", "", f"{command} load {os.getloadavg()[0]:.1f} at the beginning.", ""]
    with tempfile.TemporaryDirectory() as place:
        for name, experiment in (("quickstart", quickstart(place)), ("tiny", tiny(place))):
            if name in options.parts:
                Measured.rounds = options.rounds * (5 if name == "tiny" else 1)  # these last no time
                found: Any = fitting.fit(experiment)
                lines += steps_table(name, found)
        if "resume" in options.parts:
            lines += resume_table(Path(place) / "resume", -(-options.rounds // 3))
    text = "\n".join(lines).rstrip() + "\n"
    if options.parts == PARTS:
        (RESULTS / "loop.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
