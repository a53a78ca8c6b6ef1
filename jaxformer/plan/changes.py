"""What to change in an experiment whose step has no room: the smallest changes first, each tried by compiling it."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from jaxformer import sharding
from jaxformer.experiment import Experiment
from jaxformer.plan.report import Plan, make_plan
from jaxformer.plan.target import Target

ENOUGH = 3
"""So many that fit are told."""
Option = tuple[str, dict[str, Any]]
"""(options of `jaxformer train`, the fields of an experiment that they set)."""


@dataclass(frozen=True)
class Change:
    """Options of `jaxformer train` that make a step fit."""

    options: tuple[str, ...]
    plan: Plan


def changes(
    experiment: Experiment, target: Target, first: Plan, say: Callable[[str], None] = lambda line: None
) -> list[Change]:
    """The first few changes that fit; `first` is the plan of the experiment as it is. `say` is told each attempt."""
    found: list[Change] = []
    for several in candidates(experiment, first):
        options = tuple(name for name, _ in several)
        if len(found) == ENOUGH:
            break
        if any(_kinds(each.options) <= _kinds(options) for each in found):
            continue  # a part of it, or less of the same, was enough
        fields = {name: value for _, own in several for name, value in own.items()}
        text = " ".join(options)
        try:
            plan = make_plan(replace(experiment, **fields), target)
        except ValueError as error:
            say(f"{text}: not possible: {str(error).splitlines()[0]}")
            continue
        say(f"{text}: {'fits' if plan.fits else 'does not fit'} ({plan.seconds:.0f} s)")
        if plan.fits:
            found.append(Change(options, plan))
    return found


def candidates(experiment: Experiment, first: Plan) -> Iterator[tuple[Option, ...]]:
    """One change, then several at once; what cannot help is left out.

    Where the state alone has no room, only what splits it over more devices can help.
    """
    e, sharing = experiment, math.prod(first.mesh[axis] for axis in sharding.BATCH)
    kinds = {"none": ("dots", "full"), "dots": ("full",), "full": ()}[e.remat]
    remat: list[Option] = [(f"--remat {kind}", {"remat": kind}) for kind in kinds]
    counts = [n for n in _doublings(e.accumulate) if e.rows % (n * sharing) == 0]
    accumulate: list[Option] = [(f"--accumulate {n}", {"accumulate": n}) for n in counts]
    sizes = [e.rows // n for n in _doublings(1) if e.rows % (n * sharing * e.accumulate) == 0]
    rows: list[Option] = [(f"--rows {n}", {"rows": n}) for n in sizes]
    spread: list[Option] = []
    if first.mesh["data"] > 1:
        mesh = replace(e.mesh, data=1, fsdp=first.mesh["data"] * first.mesh["fsdp"])
        spread = [(f"--mesh.data 1 --mesh.fsdp {mesh.fsdp}", {"mesh": mesh})]
    held = first.memory.parameters + first.memory.optimizer + first.memory.frozen
    overflows = first.room is not None and held > first.room
    for group in [spread] if overflows else [remat, accumulate, spread, rows]:
        yield from ((one,) for one in group)
    if not overflows:
        yield from itertools.product(remat[-1:], accumulate)
    for several in ([spread, remat], [spread, accumulate], [spread, rows]):
        yield from itertools.product(*several)
    for last in (accumulate, rows):
        yield from itertools.product(spread, remat[-1:], last)


def _kinds(options: tuple[str, ...]) -> set[str]:
    return {option.partition(" ")[0] for option in options}


def _doublings(count: int) -> Iterator[int]:
    yield from itertools.takewhile(lambda n: n <= 1024, (count * 2**i for i in itertools.count(1)))
