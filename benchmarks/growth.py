"""What training costs as it grows, on this machine: with layers, with the length of rows, with width, with rows.

    python benchmarks/growth.py                      writes results/growth.md and results/growth.png

A llama-like decoder in float32 with AdamW, its real train step. Compilation: seconds from tracing to a program, from
an empty cache, layers scanned and unrolled. Steps: medians of interleaved repetitions, beside a fit of a rate and of
what a step costs before its first product, over the work that `jaxformer.flops` counts. Memory: temporaries of the
compiled step, as the compiler states them, for each way of computing anew (`--remat`).
"""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from harness import CpuProbe
from matplotlib.figure import Figure

from jaxformer import sharding
from jaxformer.config import ModelConfig
from jaxformer.families import llama
from jaxformer.flops import step_flops
from jaxformer.nn.model import Model
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.train.state import TrainState
from jaxformer.train.step import make_step

RESULTS = Path(__file__).parent / "results"
LAYERS, ROWS = (2, 4, 8, 16, 32), (1, 2, 4, 8, 16)
LENGTHS, WIDTHS = (128, 256, 512, 1024, 2048), (128, 256, 384, 512, 768)
REPEATS = 7


class Case(NamedTuple):
    """A step: rows of so many tokens through so many layers of such a width."""

    layers: int = 4
    width: int = 256
    length: int = 256
    rows: int = 4
    remat: str = "none"
    unroll: int = 1

    @property
    def config(self) -> ModelConfig:
        sizes = {"hidden_size": self.width, "intermediate_size": 3 * self.width, "num_hidden_layers": self.layers}
        return llama.config({"vocab_size": 1024, "num_attention_heads": self.width // 64} | sizes)

    @property
    def work(self) -> float:
        """FLOP of the step."""
        return step_flops(self.config, self.rows, self.length, remat=self.remat).hardware


class Program(NamedTuple):
    """A compiled step, and what compiling it took."""

    compiled: Any
    state: TrainState
    batch: dict[str, np.ndarray]
    seconds: float


def program(case: Case) -> Program:
    """The step of a case; its state is abstract: `filled` makes one to run it on."""
    model = Model(case.config, compute="float32", remat=case.remat, unroll=case.unroll)
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=1), 1000)
    params = sharding.abstract_params(model)
    state = TrainState(jax.ShapeDtypeStruct((), np.int32), params, jax.eval_shape(optimizer.init, params))
    rows = np.random.default_rng(0).integers(1024, size=(case.rows, case.length + 1)).astype(np.int32)
    batch = {
        "tokens": rows,
        "segments": np.ones_like(rows),
        "positions": np.broadcast_to(np.arange(case.length + 1, dtype=np.int32), rows.shape),
        "weights": np.ones((case.rows, case.length), np.float32),
    }
    step = jax.jit(make_step(CausalLM().loss(model, train=True), optimizer), donate_argnums=0)
    start = time.perf_counter()
    compiled = step.lower(state, None, batch).compile()
    return Program(compiled, state, batch, time.perf_counter() - start)


def filled(state: TrainState) -> TrainState:
    """Small numbers in place of shapes; what they are costs nothing more or less."""
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3, leaf.dtype), state)


def timed(cases: Sequence[Case]) -> list[float]:
    """Median seconds of a step of each case, in turns, so that what slows the machine slows all."""
    programs = [program(case) for case in cases]
    states, seconds = [filled(each.state) for each in programs], [[] for _ in cases]
    for repeat in range(REPEATS + 2):
        for i, each in enumerate(programs):
            start = time.perf_counter()
            states[i], metrics = each.compiled(states[i], None, each.batch)
            jax.block_until_ready((states[i], metrics))
            if repeat >= 2:
                seconds[i].append(time.perf_counter() - start)
    return [statistics.median(each) for each in seconds]


def fitted(work: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """(seconds before the first product, FLOP a second, largest share by which a time is off), by relative error."""
    design = np.stack([np.ones(len(work)), work], axis=1) / np.asarray(seconds)[:, None]
    (before, each), *_ = np.linalg.lstsq(design, np.ones(len(work)), rcond=None)
    off = np.abs(before + each * np.asarray(work) - seconds) / np.asarray(seconds)
    return float(before), float(1 / each), float(off.max())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def compiling(axes: Any) -> str:
    scanned = [program(Case(layers=n)).seconds for n in LAYERS]
    unrolled = [program(Case(layers=n, unroll=n)).seconds for n in LAYERS]
    for name, seconds in (("scanned", scanned), ("unrolled", unrolled)):
        axes.plot(LAYERS, seconds, "o-", label=name)
    axes.set(xlabel="layers", ylabel="seconds to compile")
    rows = [(f"{n}", f"{a:.1f}", f"{b:.1f}") for n, a, b in zip(LAYERS, scanned, unrolled, strict=True)]
    return table(("layers", "scanned, s", "unrolled, s"), rows)


def stepping(axes: Any, name: str, cases: Sequence[Case], rate: float) -> str:
    sizes, work = [getattr(case, name) for case in cases], [case.work for case in cases]
    seconds = timed(cases)
    before, fitted_rate, off = fitted(work, seconds)
    axes.loglog(sizes, seconds, "o", label="measured")
    axes.loglog(sizes, [before + w / fitted_rate for w in work], "-", label="fitted to the FLOP")
    axes.set(xlabel=name, ylabel="seconds a step", xticks=sizes, xticklabels=sizes)
    axes.minorticks_off()
    rows = [
        (f"{size}", f"{w / 1e9:.1f}", f"{s:.4f}", f"{before + w / fitted_rate:.4f}", f"{w / s / rate:.0%}")
        for size, w, s in zip(sizes, work, seconds, strict=True)
    ]
    told = f"\n{before * 1e3:.1f} ms and {fitted_rate / 1e9:.0f} GFLOP/s; no time is off by more than {off:.0%}.\n"
    return table((name, "GFLOP", "seconds", "fitted", "share of the rate of products"), rows) + told


def remembering(axes: Any) -> str:
    rows = []
    for remat in ("none", "dots", "full"):
        cases = [Case(layers=8, rows=n, remat=remat) for n in ROWS]
        found = [program(case).compiled.memory_analysis().temp_size_in_bytes for case in cases]
        a_token, fixed = np.polyfit([case.rows * case.length for case in cases], found, 1)
        axes.plot(ROWS, [size / 2**20 for size in found], "o-", label=remat)
        rows.append(
            (remat, *(f"{size / 2**20:.0f}" for size in found), f"{a_token / 1024:.0f}", f"{fixed / 2**20:.0f}")
        )
    axes.set(xlabel="rows of 256 tokens", ylabel="MiB of temporaries")
    return table(("remat", *(f"{n} rows, MiB" for n in ROWS), "KiB a token", "fixed, MiB"), rows)


def main() -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    figure = Figure(figsize=(11, 7.5), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    rate = CpuProbe()().flop
    lengths = stepping(panels[1], "length", [Case(length=n, rows=2) for n in LENGTHS], rate)
    widths = stepping(panels[2], "width", [Case(width=n) for n in WIDTHS], rate)
    parts = {
        "Compiling against layers (width 256, 4 x 256 tokens)": compiling(panels[0]),
        "A step against the length of rows (4 layers of width 256, 2 rows)": lengths,
        "A step against width (4 layers, 4 x 256 tokens)": widths,
        "Temporaries against rows (8 layers of width 256)": remembering(panels[3]),
    }
    for axes in panels:
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_yscale() == "linear":
            axes.set_ylim(0, None)
    figure.savefig(RESULTS / "growth.png")
    head = f"`python benchmarks/growth.py`, jax {jax.__version__}, {os.cpu_count()} cores, "
    head += f"{rate / 1e9:.0f} GFLOP/s of float32 products\n\n![The four as curves](growth.png)\n"
    text = "\n".join(["# What training costs as it grows", "", head, *(f"## {k}\n\n{v}" for k, v in parts.items())])
    (RESULTS / "growth.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
