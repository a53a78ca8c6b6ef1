"""Loading a published checkpoint on the CPU, beside the reference's own loading in torch: time, and peak memory.

    python benchmarks/load.py                        time of 500 MB; memory of 500 and of 1000 MB
    python benchmarks/load.py --megabytes 2000       both of one size
    python benchmarks/load.py --serve FOLDER         our half of it alone (harness.py says how they speak)

The checkpoint has the shape of SmolLM2-135M, a vocabulary of 8192 and as many layers as fill the size, so that the
largest leaf is a stacked one: random numbers, float32, one safetensors file in a temporary folder, written by a
process of its own. The file is in the page cache: measured is the loading, not the disk. Imports are in none of the
times.

The reference maps the file and reads a parameter when it is first used, so a repetition of either system loads the
model, then reads every parameter once, by the same sum in numpy over its bits; the two sums must agree. The floor is
one reading of the parameters at the measured bandwidth.

Memory is that of the first load of a process, reading included: the kernel's high-water mark of resident memory,
begun anew just before it, less what was resident then. The exit code is 1 where ours, beside the placed parameters,
passes the largest leaf (or SLACK, where a checkpoint is so small that no leaf is larger).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, Comparison, System, compare, serve

import jaxformer  # it imports jax when a name of it is first used: not in the reference's process
from jaxformer import tree
from jaxformer.families import llama

MEGABYTES = (500, 1000)
VOCAB = 8192
SLACK = 96e6
"""Bytes beside the parameters that a load may take at any size: pages of libraries, traces, pieces that are read."""
EXPLAINED = (
    "Peak is what the process's resident memory rose by at most while it first loaded the model and read every "
    "parameter once, pages of mapped files included. Our parameters are copies in anonymous memory, in the layout "
    "that is computed with; the reference's are the checkpoint's own pages, which the system may drop and must copy "
    "as soon as they are written to."
)
Arrays = Sequence[np.ndarray]


def write_checkpoint(folder: str, megabytes: int) -> None:
    size = llama.SIZES["smollm2-135m"]
    attention, mlp = size.decoder.pattern[0].attention, size.decoder.pattern[0].mlp
    wide = 2 * (attention.heads + attention.kv_heads) * attention.head_dim + 3 * mlp.width
    layers = max(1, round((megabytes * 1e6 / 4 / size.width - VOCAB) / wide))
    model = jaxformer.Model(replace(size, vocab=VOCAB, decoder=replace(size.decoder, layers=layers)))
    key = np.array([0, 0], np.uint32)  # of seed 0, without importing jax
    jaxformer.save_pretrained(folder, model, jaxformer.init(model, key))


def serve_loading(load: Callable[[], Arrays], **about: Any) -> None:
    """Either system's half: `load` gives its parameters as numpy arrays that share their memory."""
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
    start = time.perf_counter()
    arrays = load()
    about |= {"checksum": checksum(arrays), "first_seconds": time.perf_counter() - start}
    after = resident()
    about |= {"peak": after["VmHWM"] - before["VmRSS"]}
    about |= {"anonymous": after["RssAnon"] - before["RssAnon"], "mapped": after["RssFile"] - before["RssFile"]}
    placed, parameters = sum(a.nbytes for a in arrays), sum(a.size for a in arrays)
    about |= {"largest_leaf": max(a.nbytes for a in arrays)}
    del arrays
    serve(lambda: checksum(load()), tokens=parameters, work=[(0.0, placed)], placed=placed, **about)


def checksum(arrays: Arrays) -> int:
    """Of the bits of all numbers, whatever their order."""
    return sum(int(array.view(np.uint32).sum(dtype=np.uint32)) for array in arrays) % 2**32


def resident() -> dict[str, int]:
    """Bytes of this process that are in memory: at most and now; of these anonymous ones, and pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}


def systems(folder: str) -> tuple[System, System]:
    here = Path(__file__)
    theirs = (sys.executable, str(here.with_name("reference_torch.py")), "load", "--folder", folder)
    return System("jaxformer", (sys.executable, str(here), "--serve", folder)), System("torch", theirs)


def measure_memory(pair: tuple[System, System], threads: int = 2) -> None:
    """Has both answered about their first load, one after the other."""
    for system in pair:
        try:
            system.start(threads)
        finally:
            system.stop()


def memory_rows(pair: tuple[System, System]) -> list[dict[str, Any]]:
    rows = [{"system": system.name, **system.about} for system in pair]
    if rows[0]["checksum"] != rows[1]["checksum"]:
        raise RuntimeError("the two systems did not load the same numbers")
    return rows


def report(comparison: Comparison, rows: list[dict[str, Any]], command: str) -> str:
    def mb(count: float) -> str:
        return f"{count / 1e6:.0f}"

    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "transformers"))
    lines = [
        *("# Loading a checkpoint", "", f"`{command}`, {packages}", ""),
        "| system | placed MB | seconds | CPU seconds | GB/s | share of floor | first load of the process |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, system in zip(comparison.rows(), (comparison.a, comparison.b), strict=True):
        about, seconds = system.about, row["seconds"]
        lines.append(
            f"| {system.name} | {mb(about['placed'])} | {seconds:.3f} | {row['cpu_seconds']:.3f} | "
            f"{about['placed'] / seconds / 1e9:.2f} | {row['share_of_floor']:.0%} | {about['first_seconds']:.2f} s |"
        )
    lines += ["", *str(comparison).splitlines()[-2:], "", "## Memory", "", EXPLAINED, ""]
    lines += [
        "| placed MB | system | peak MB | beside the placed | largest leaf | held then: anonymous | pages of files |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {mb(row['placed'])} | {row['system']} | {mb(row['peak'])} | {mb(row['peak'] - row['placed'])} | "
        f"{mb(row['largest_leaf'])} | {mb(row['anonymous'])} | {mb(row['mapped'])} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def run(megabytes: Sequence[int], pairs: int) -> int:
    """The exit code: 1 where ours takes more memory than it may."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for size in megabytes:
            folder = f"{place}/{size}"
            write = (sys.executable, __file__, "--write", folder, "--megabytes", str(size))
            subprocess.run(write, check=True)
            pair = systems(folder)
            if size == megabytes[0]:
                comparison = compare("load", *pair, pairs, results=Path(place))
            else:
                measure_memory(pair)
            rows += memory_rows(pair)
        record = {"time": json.loads(Path(place, "load.json").read_text()), "memory": rows}
    sizes = " ".join(map(str, megabytes))
    text = report(comparison, rows, f"python benchmarks/load.py --megabytes {sizes} --pairs {pairs}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "load.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "load.md").write_text(text)
    print(text)
    return int(any(row["peak"] - row["placed"] > max(row["largest_leaf"], SLACK) for row in rows[::2]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=MEGABYTES, help="the first one's time is taken")
    parser.add_argument("--pairs", type=int, default=9, help="pairs to keep")
    parser.add_argument("--serve", metavar="FOLDER")
    parser.add_argument("--write", metavar="FOLDER", help="only write a checkpoint")
    args = parser.parse_args()
    if args.write:
        write_checkpoint(args.write, args.megabytes[0])
        return 0
    if args.serve:
        read = jaxformer.from_pretrained
        serve_loading(lambda: [np.asarray(leaf) for leaf in tree.flatten(read(args.serve)[1]).values()])
        return 0
    return run(args.megabytes, args.pairs)


if __name__ == "__main__":
    sys.exit(main())
