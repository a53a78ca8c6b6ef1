"""Two systems side by side, so that a ratio means something on a machine whose speed moves.

Each system is a program of its own that lives through the whole comparison and works only when told to. It
builds and warms what it measures, then hands one repetition to `serve`, which speaks this protocol:

    program -> {"tokens": 1024, "work": [[7.6e11, 0]], "compile_seconds": 3.1, ...}        once, when warm
    harness -> go                                                                          any number of times
    program -> {"seconds": 6.9, "cpu_seconds": 13.5, "peak_bytes": 4.1e9}                  after each go

A benchmark is then one file with both halves:

    from harness import System, compare, serve

    if "--serve" in sys.argv:
        serve(one_step, tokens=1024, work=[(6 * parameters * 1024, 0)])
    else:
        here = Path(__file__)
        ours = System("jaxformer", (sys.executable, str(here), "--serve"))
        theirs = System("torch", (sys.executable, str(here.with_name("reference_torch.py")), "train"))
        print(compare("train_step", ours, theirs))

Pairs run A B, B A, A B ...; the waiting system blocks on its stdin. Between pairs the machine's rate of
matrix products and its read bandwidth are measured: a pair across which either moved by more than 10% is
dropped. The verdict is the median of the ratios of the kept pairs with a bootstrap 90% interval. Both systems
get the same cores and thread counts. A system's floor is the time that its work costs at the rates
measured around the pair: of each part that must follow another, the FLOP or the bytes, whichever take longer.

One system alone: python benchmarks/harness.py PROGRAM [ARGUMENT ...]
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).parent / "results"
DRIFT = 0.10  # of a probe across a pair, above which the pair is dropped
MAX_TRIES = 3  # times the wanted pairs


class Rates(NamedTuple):
    """What the machine can do at this moment."""

    flop: float  # float32 matrix products, per second
    bytes: float  # read from memory, per second


class CpuProbe:
    """Best of three: a 2048 x 2048 matrix product on all threads; a dot product over 512 MB."""

    def __init__(self) -> None:
        self.square = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
        self.long = np.ones(1 << 27, np.float32)

    def __call__(self) -> Rates:
        def best(work: Callable[[], Any]) -> float:
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - start)
            return min(seconds)

        product = best(lambda: self.square @ self.square)
        reading = best(lambda: self.long @ self.long)
        return Rates(2 * len(self.square) ** 3 / product, self.long.nbytes / reading)


def peak_bytes() -> int:
    """Largest resident memory of this process. (`ru_maxrss` would count the parent's, from before exec.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def serve(
    repeat: Callable[[], None],
    *,
    tokens: int,
    work: Sequence[tuple[float, float]],
    compile_seconds: float | None = None,
    **about: Any,
) -> None:
    """The program's half of the protocol. `tokens` and `work`, FLOP and bytes a part, are those of one repetition.

    `repeat` ends only when its work has (`jax.block_until_ready`, `torch.cuda.synchronize`). It runs twice to
    warm up; where `compile_seconds` is not given, it is what the first run took more than the second.
    """
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed must not look like an answer

    def measure() -> dict[str, float]:
        start, cpu = time.perf_counter(), time.process_time()
        repeat()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes()}

    first, second = measure(), measure()
    if compile_seconds is None:
        compile_seconds = max(0.0, first["seconds"] - second["seconds"])
    ready = {"tokens": tokens, "work": work, "compile_seconds": compile_seconds, **about}
    print(json.dumps(ready), file=protocol)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=protocol)


@dataclass
class System:
    """A program that speaks the protocol, and what it answered."""

    name: str
    command: Sequence[str]
    about: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, float]] = field(default_factory=list)

    def start(self, threads: int) -> None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **dict.fromkeys(names, str(threads))},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.about = self._answer()

    def go(self) -> dict[str, float]:
        print("go", file=self.process.stdin)
        run = self._answer()
        self.runs.append(run)
        return run

    def stop(self) -> None:
        if hasattr(self, "process"):
            self.process.stdin.close()
            self.process.wait(60)
            self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} stopped with exit code {self.process.wait()}: {' '.join(self.command)}")


@dataclass(frozen=True)
class Pair:
    """One run of each, and the machine before and after both."""

    a: dict[str, float]
    b: dict[str, float]
    before: Rates
    after: Rates

    @property
    def ratio(self) -> float:
        """The speed of A over that of B."""
        return self.b["seconds"] / self.a["seconds"]

    @property
    def kept(self) -> bool:
        return all(abs(y / x - 1) <= DRIFT for x, y in zip(self.before, self.after, strict=True))

    def share(self, about: dict[str, Any], run: dict[str, float]) -> float:
        """Share of the floor: 1.0 is a run that takes no longer than its products and its reading must."""
        per_flop, per_byte = (1 / np.mean(pair) for pair in zip(self.before, self.after, strict=True))
        floor = sum(max(flop * per_flop, read * per_byte) for flop, read in about["work"])
        return float(floor) / run["seconds"]


@dataclass(frozen=True)
class Comparison:
    """`str()` of it is the table."""

    name: str
    a: System
    b: System
    kept: list[Pair]
    dropped: int
    threads: int

    def interval(self) -> tuple[float, float, float]:
        """Median ratio of speeds A / B, and the ends of its bootstrap 90% interval."""
        ratios = np.array([pair.ratio for pair in self.kept])
        draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
        low, high = np.quantile(np.median(draws, axis=1), (0.05, 0.95))
        return float(np.median(ratios)), float(low), float(high)

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for system, side in ((self.a, "a"), (self.b, "b")):
            runs = [getattr(pair, side) for pair in self.kept]
            seconds = statistics.median(run["seconds"] for run in runs)
            shares = [pair.share(system.about, run) for pair, run in zip(self.kept, runs, strict=True)]
            rows.append(
                {
                    "system": system.name,
                    "seconds": seconds,
                    "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs),
                    "tokens_per_second": system.about["tokens"] / seconds,
                    "share_of_floor": statistics.median(shares),
                    "peak_bytes": max(run["peak_bytes"] for run in runs),
                    "compile_seconds": system.about["compile_seconds"],
                }
            )
        return rows

    def __str__(self) -> str:
        ratio, low, high = self.interval()
        rates = [np.mean([rate for p in self.kept for rate in (p.before[i], p.after[i])]) for i in (0, 1)]
        lines = [
            f"# {self.name}",
            "",
            "| system | tokens/s | seconds | CPU seconds | share of floor | peak memory | compile |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['system']} | {r['tokens_per_second']:.4g} | {r['seconds']:.3f} | {r['cpu_seconds']:.3f} | "
            f"{r['share_of_floor']:.0%} | {r['peak_bytes'] / 2**30:.2f} GiB | {r['compile_seconds']:.1f} s |"
            for r in self.rows()
        ]
        lines += [
            "",
            f"{self.a.name} runs at {ratio:.3f} times the speed of {self.b.name} "
            f"(90% interval {low:.3f} to {high:.3f}): {len(self.kept)} pairs kept, {self.dropped} dropped.",
            f"The machine, on {self.threads} threads: {rates[0] / 1e9:.0f} GFLOP/s of float32 products, "
            f"{rates[1] / 1e9:.1f} GB/s read.",
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ratio, low, high = self.interval()
        record = {
            "ratio": {"median": ratio, "low": low, "high": high},
            "systems": [row | {"about": s.about} for row, s in zip(self.rows(), (self.a, self.b), strict=True)],
            "pairs": [asdict(pair) for pair in self.kept],
            "dropped": self.dropped,
            "threads": self.threads,
        }
        (folder / f"{self.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(str(self))


def compare(
    name: str,
    a: System,
    b: System,
    pairs: int = 9,
    threads: int = 2,
    probe: Callable[[], Rates] | None = None,
    results: Path | None = RESULTS,
) -> Comparison:
    """Run both until `pairs` pairs are kept, write `<name>.md` and `<name>.json` into `results`.

    RuntimeError where a program stops, or where the machine is too restless to keep that many pairs.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # the probe's cores are the programs'
    probe = probe or CpuProbe()
    kept: list[Pair] = []
    tried = 0
    try:
        a.start(threads)
        b.start(threads)
        after = probe()
        while len(kept) < pairs:
            if tried == MAX_TRIES * pairs:
                raise RuntimeError(f"{name}: of {tried} pairs only {len(kept)} met a steady machine; run it alone")
            before, order = after, (a, b) if tried % 2 == 0 else (b, a)
            run = {system.name: system.go() for system in order}
            after = probe()
            tried += 1
            pair = Pair(run[a.name], run[b.name], before, after)
            kept += [pair] * pair.kept
            print(f"{name}: {len(kept)} of {tried} kept, ratio {pair.ratio:.3f}", file=sys.stderr)
    finally:
        a.stop()
        b.stop()
    result = Comparison(name, a, b, kept, tried - len(kept), threads)
    if results is not None:
        result.write(results)
    return result


def alone(command: Sequence[str], repetitions: int = 5, threads: int = 2) -> None:
    """Print what one system does, without a partner: for a first look, not for a verdict."""
    system, probe = System("alone", command), CpuProbe()
    try:
        system.start(threads)
        before = probe()
        for _ in range(repetitions):
            run, after = system.go(), probe()
            share = Pair(run, run, before, after).share(system.about, run)
            rate = system.about["tokens"] / run["seconds"]
            print(f"{rate:.4g} tokens/s, {share:.0%} of the floor, {run}")
            before = after
        print(system.about)
    finally:
        system.stop()


if __name__ == "__main__":
    alone(sys.argv[1:])
