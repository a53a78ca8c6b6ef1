"""The step that training would take, compiled for a target without a single array being made."""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer import sharding, source, starting, stepping
from jaxformer.experiment import Experiment
from jaxformer.feed import check_rows
from jaxformer.plan import rows
from jaxformer.plan.target import Target
from jaxformer.starting import Start


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    parameters: float
    optimizer: float
    """The optimizer's state, and the step's number."""
    frozen: float
    """What the loss reads and nobody moves."""
    batch: float
    temporaries: float
    """Gradients, activations, and all else that the step makes: at its peak, what is left of it."""
    program: float
    """The compiled code."""
    peak: float
    """The most at a time, as the compiler says; with the program it must be less than the device has."""


@dataclass(frozen=True)
class Compiled:
    """A step that was compiled, or what the compiler said in place of it."""

    seconds: float
    memory: Memory
    """Where it does not fit: of the state and the batch; temporaries, program and peak are 0."""
    text: str = ""
    """The program after optimization (HLO)."""
    refused: str = ""
    """Why the compiler gave up: it has no room. Empty where it did not."""


@dataclass(frozen=True)
class Step:
    """All that a step is compiled of, as shapes with their places."""

    experiment: Experiment
    start: Start
    state: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    mesh: Mesh


def sketched(experiment: Experiment, target: Target) -> Step:
    """The experiment's step on the target's devices.

    Raises ValueError for an experiment that cannot run there, or whose step cannot be planned.
    """
    e = experiment.validate()
    if target.platform == "tpu" and e.compute == "auto":
        e = dataclasses.replace(e, compute="bfloat16")
    mesh = sharding.make_mesh(e.mesh, target.devices)
    check_rows(e, mesh)
    found = None if e.start is None else source.sketched(e.start, e.task.head)
    tokenizer = rows.stand_in(e) if found is None or found.tokenizer is None else found.tokenizer
    config = e.model if found is None else found.model.config
    assert config is not None
    e.check_model(config)
    row = rows.row(e, config, tokenizer)
    start = starting.abstract(e, found, tokenizer, mesh)
    state = stepping.abstract_state(start, _rule(e, start))
    batch = rows.batch(row, e.rows, NamedSharding(mesh, PartitionSpec(sharding.BATCH)))
    return Step(e, start, state, batch, mesh)


def compile_step(step: Step) -> Compiled:
    """Compile it as training would; a step without room is no error."""
    e, start, mesh = step.experiment, step.start, step.mesh
    homes = jax.tree.map(lambda leaf: leaf.sharding, step.state)
    jitted = stepping.train_step(e, start.model, _rule(e, start), homes, mesh)
    platform = mesh.devices.flat[0].platform
    frozen = _placed(start, mesh)
    held = {
        "parameters": _bytes(step.state.params),
        "optimizer": _bytes((step.state.opt_state, step.state.step)),
        "frozen": _bytes(frozen),
        "batch": _bytes(step.batch),
    }
    begun = time.perf_counter()
    try:
        with jax.set_mesh(mesh), _uncached(platform):
            lowered = jitted.trace(step.state, frozen, step.batch).lower(lowering_platforms=(platform,))
            program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = re.sub(r"^\w+: ", "", str(error).splitlines()[0])
        return Compiled(time.perf_counter() - begun, Memory(**held, temporaries=0, program=0, peak=0), refused=why)
    seconds = time.perf_counter() - begun
    found = program.memory_analysis()
    peak = found.peak_memory_in_bytes
    if platform != "tpu":  # elsewhere it may leave out temporaries: all that is ever there is a bound
        peak = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
        peak += found.temp_size_in_bytes
    memory = Memory(
        **held,
        temporaries=max(peak - sum(held.values()), 0.0),
        program=found.generated_code_size_in_bytes,
        peak=peak,
    )
    return Compiled(seconds, memory, program.as_text())


def _rule(e: Experiment, start: Start) -> Any:
    return starting.rule(e, start.model.dtype == np.float16)


def _placed(start: Start, mesh: Mesh) -> Any:
    """What does not move, where training would have it: a leaf of the model's where it goes, others everywhere."""
    params = sharding.abstract_params(start.model)
    homes = sharding.like_parameters(mesh, start.frozen, params)
    return jax.tree.map(
        lambda leaf, home: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home), start.frozen, homes
    )


def _bytes(tree: Any) -> float:
    """What a device holds of it."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


@contextlib.contextmanager
def _uncached(platform: str) -> Iterator[None]:
    """Without the cache on disk for a TPU that is not here: what is written there could not be read again."""
    kept: bool = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", kept and platform != "tpu")
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
