"""A plan: what is known of a step before it runs."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax

from jaxformer import sharding
from jaxformer.experiment import Experiment
from jaxformer.flops import StepFlops, step_flops
from jaxformer.plan import rows
from jaxformer.plan.collectives import Collective, collectives, kernels
from jaxformer.plan.compiling import Compiled, Memory, Step, compile_step, sketched
from jaxformer.plan.roofline import ASSUMPTIONS, Roofline, roofline
from jaxformer.plan.target import Target


@dataclass(frozen=True)
class Plan:
    """What is known of a step on a target before it runs."""

    target: str
    device: str
    devices: int
    mesh: dict[str, int]
    parameters: int
    """Numbers of the model, those that do not move included."""
    rows: int
    """Rows of a step that the model reads."""
    length: int
    """Tokens of each."""
    tokens: int
    """That the model reads in a step, and writes behind an encoder."""
    memory: Memory
    room: float | None
    """Bytes that a program may use on a device; None where that is not known."""
    refused: str
    """What the compiler said where it found no room; else empty."""
    flops: StepFlops
    kernels: int
    """Attention kernels in the program: none means plain products."""
    collectives: tuple[Collective, ...]
    fallbacks: tuple[str, ...]
    """Parameters that do not divide as their rule would have it."""
    roofline: Roofline | None
    """None where the chip's figures are not known, or nothing was compiled."""
    seconds: float
    """That the compiler took."""

    @property
    def fits(self) -> bool | None:
        """Whether peak and program have room on each device; None where that is not known."""
        if self.refused:
            return False
        return None if self.room is None else self.memory.peak + self.memory.program <= self.room

    def to_json(self) -> dict[str, Any]:
        """All of it, with what follows from it."""
        found = dataclasses.asdict(self) | {"fits": self.fits}
        found["flops"] |= {"model": self.flops.model, "hardware": self.flops.hardware}
        if (line := self.roofline) is not None:
            found["roofline"] |= {
                "hidden": line.hidden,
                "one_by_one": line.one_by_one,
                "utilization": line.utilization,
                "communication": line.communication,
                "assumptions": ASSUMPTIONS,
            }
        return found


def make_plan(experiment: Experiment, target: Target) -> Plan:
    """Compile the experiment's step for the target, and tell what it needs. Raises as `sketched`."""
    step = sketched(experiment, target)
    return told(step, target, compile_step(step))


def told(step: Step, target: Target, compiled: Compiled) -> Plan:
    """What a step that was compiled for the target needs."""
    e, config = step.experiment, step.start.model.config
    sizes = rows.sizes(step.batch, config)
    parts = sizes.rows, sizes.length, sizes.targets
    flops, seen = (
        step_flops(config, *parts, predicted=sizes.predicted, remat=e.remat, causal=kind)
        for kind in ("whole", "half")
    )
    own = kernels(compiled.text)
    spoken = tuple(collectives(compiled.text)) if compiled.text else ()
    params = sharding.abstract_params(step.start.model)
    line = None
    if target.chip is not None and compiled.text:
        # Kernels pass over what a mask hides, plain products compute it.
        computed = (seen if own else flops).hardware
        line = roofline(target.chip, len(target.devices), flops, computed, compiled.memory, spoken)
    return Plan(
        target=target.name,
        device=target.devices[0].device_kind,
        devices=len(target.devices),
        mesh=dict(step.mesh.shape),
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        rows=sizes.rows,
        length=sizes.length,
        tokens=sizes.rows * (sizes.length + (sizes.targets or 0)),
        memory=compiled.memory,
        room=target.memory,
        refused=compiled.refused,
        flops=flops,
        kernels=own,
        collectives=spoken,
        fallbacks=tuple(sharding.fallbacks(step.mesh, params)),
        roofline=line,
        seconds=compiled.seconds,
    )
