"""Attention whose rows are split over eight devices: keys and values gathered, or passed around in a ring.

    python benchmarks/ring.py                        writes results/ring.md

The attention of LLaMA 3.2 1B, causal, there and back. Memory: temporaries of a chip, as the compiler for v5e states
them (pip install "jaxformer[tpu]", no TPU needed; left out where it is missing). Time: medians of interleaved
repetitions on eight virtual devices of this machine's CPU, which tell of the work in all and of nothing that a link
costs.
"""

import importlib.util
import os
import statistics
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxformer import sharding
from jaxformer.nn.attend import attend
from jaxformer.nn.axes import partition
from jaxformer.nn.visibility import Visibility
from jaxformer.plan import target
from jaxformer.sharding import MeshConfig

PAGE = Path(__file__).parent / "results" / "ring.md"
HEADS, KEY_HEADS, HEAD_DIM = 32, 8, 64
COMPILED, TIMED = (8192, 16384, 32768, 65536, 131072), (1024, 2048, 4096)
REPEATS = 5
GIB = 2**30


def gradients(kernel):
    def loss(q, k, v):
        out = attend(q, k, v, Visibility(causal=True), scale=HEAD_DIM**-0.5, kernel=kernel)
        return out.astype(jnp.float32).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2)))


def shapes(mesh, rows, length, dtype):
    names = "batch", "length", "heads", "head_dim"
    with jax.set_mesh(mesh):
        for heads in (HEADS, KEY_HEADS, KEY_HEADS):
            shape = rows, length, heads, HEAD_DIM
            yield jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, partition(shape, names)))


def memory(kernel, length):
    """GiB of temporaries on each of 16 chips, two rows; None where there is no room."""
    mesh = sharding.make_mesh(MeshConfig(data=2, sequence=8), target.find("v5e:4x4").devices)
    with jax.set_mesh(mesh):
        try:
            lowered = (
                gradients(kernel).trace(*shapes(mesh, 2, length, jnp.bfloat16)).lower(lowering_platforms=("tpu",))
            )
            return lowered.compile().memory_analysis().temp_size_in_bytes / GIB
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None


def seconds(length):
    """{kernel: median} of one row in float32."""
    mesh = sharding.make_mesh(MeshConfig(data=1, sequence=8))
    random = np.random.default_rng(0)
    given = [
        jax.device_put(random.standard_normal(each.shape, np.float32), each.sharding)
        for each in shapes(mesh, 1, length, jnp.float32)
    ]
    taken = {"einsum": [], "ring": []}
    with jax.set_mesh(mesh):
        steps = {kernel: gradients(kernel) for kernel in taken}
        for turn in range(REPEATS + 1):
            for kernel, step in steps.items():
                begun = time.perf_counter()
                jax.block_until_ready(step(*given))
                if turn:
                    taken[kernel].append(time.perf_counter() - begun)
    return {kernel: statistics.median(found) for kernel, found in taken.items()}


def main():
    lines = ["# Attention over eight devices", "", f"`python benchmarks/ring.py`, jax {jax.__version__}", ""]
    if importlib.util.find_spec("libtpu") is not None:
        lines += [
            "## Memory, compiled for v5e:4x4 (two rows over 16 chips, bfloat16), GiB of temporaries on a chip",
            "",
        ]
        lines += ["| tokens of a row | gathered, splash | gathered, products | ring |", "|---|---|---|---|"]
        for length in COMPILED:
            found = [memory(kernel, length) for kernel in ("splash", "einsum", "ring")]
            told = ("no room" if each is None else f"{each:.2f}" for each in found)
            lines.append(f"| {length:,} | {' | '.join(told)} |")
            print(lines[-1], flush=True)
        lines.append("")
    lines += [f"## Time, eight virtual devices on {os.cpu_count()} cores (one row, float32), seconds", ""]
    lines += ["| tokens of a row | gathered, products | ring | ratio |", "|---|---|---|---|"]
    for length in TIMED:
        found = seconds(length)
        ratio = found["einsum"] / found["ring"]
        lines.append(f"| {length:,} | {found['einsum']:.2f} | {found['ring']:.2f} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
