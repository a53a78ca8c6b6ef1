"""What a checkpoint and its checksums cost: the call that saves, what goes on behind it, and what a resume reads.

    python benchmarks/checkpoints.py --mb 256

A state of so many megabytes (random float32, as hard to compress as weights are) is saved and restored, with
checksums and without, by turns. Medians over the rounds, in seconds of the clock and in seconds of all cores
together, which other programs on the machine disturb less. Writes results/checkpoints.md.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.train import checksums
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.state import TrainState

RESULTS = Path(__file__).parent / "results"
LEAVES = 16
WRITE, DAMAGES = checksums.write, checksums.damages
Spent = dict[str, list[tuple[float, float]]]


def state_of(megabytes: int, step: int) -> TrainState:
    size = megabytes * 1_000_000 // 4 // LEAVES
    draw = np.random.default_rng(step)
    params = {f"leaf_{n}": jnp.asarray(draw.standard_normal(size, np.float32)) for n in range(LEAVES)}
    return TrainState(step=jnp.int32(step), params=params, opt_state={})


def timed(spent: Spent, name: str, work: Callable[[], Any]) -> Any:
    """What `work` gives; what it took is entered, by the clock and in seconds of all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return found


def one_round(folder: Path, state: TrainState, sealed: bool, spent: Spent) -> None:
    """Save and restore once; what is not `sealed` has no checksums."""
    name = "with checksums" if sealed else "without"
    checksums.write = lambda part: timed(spent, "checksums, behind a save", lambda: WRITE(part)) if sealed else None
    checksums.damages = DAMAGES if sealed else lambda *given, **more: []
    with Checkpoints(folder) as checkpoints:
        call = lambda: timed(spent, f"the call that saves, {name}", lambda: checkpoints.save(state, {}, {}))
        timed(spent, f"until the save is complete, {name}", lambda: (call(), checkpoints.wait()))
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    with Checkpoints(folder, read_only=True) as checkpoints:
        timed(spent, f"restore, {name}", lambda: jax.block_until_ready(checkpoints.restore(target)[0]))
    if sealed:
        timed(spent, "verify", lambda: DAMAGES(folder / str(int(state.step))))


def digests(megabytes: int) -> dict[str, float]:
    """Gigabytes in a second of one core."""
    data = np.random.default_rng(0).bytes(megabytes * 1_000_000)
    spent: Spent = defaultdict(list)
    for _ in range(5):
        for name in ("sha256", "blake2b", "md5"):
            timed(spent, name, lambda name=name: hashlib.new(name, data).digest())
        timed(spent, "crc32", lambda: zlib.crc32(data))
    return {name: megabytes / 1000 / min(cpu for _, cpu in seconds) for name, seconds in spent.items()}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    spent: Spent = defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        for number in range(2 * options.rounds + 2):
            folder = Path(place) / str(number)
            sealed = number % 4 in (1, 2)  # A B B A
            into = spent if number >= 2 else defaultdict(list)  # the first of each compiles and warms
            one_round(folder, state_of(options.mb, number + 1), sealed, into)
            shutil.rmtree(folder)
    rates = digests(min(options.mb, 256))
    command = f"`python benchmarks/checkpoints.py --mb {options.mb} --rounds {options.rounds}`"
    medians = {name: [f"{statistics.median(part):.2f}" for part in zip(*spent[name], strict=True)] for name in spent}
    rows = "\n".join(f"| {name} | {' | '.join(found)} |" for name, found in sorted(medians.items()))
    speeds = "\n".join(f"| {name} | {rate:.2f} |" for name, rate in rates.items())
    head = f"# Checkpoints of {options.mb} MB\n\n{command}, jax {jax.__version__}, {os.cpu_count()} cores\n\n"
    tables = f"| | s | core s |\n|---|---|---|\n{rows}\n\n| digest | GB in a core s |\n|---|---|\n{speeds}\n"
    text = head + tables
    (RESULTS / "checkpoints.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
