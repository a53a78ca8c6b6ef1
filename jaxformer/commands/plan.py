"""`jaxformer plan CONFIG --topology NAME`: what a run needs on devices that need not be here."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jaxformer.commands.train import load
from jaxformer.experiment import Experiment
from jaxformer.plan import target
from jaxformer.plan.changes import Change, changes
from jaxformer.plan.chips import GIB
from jaxformer.plan.report import Plan, make_plan
from jaxformer.plan.roofline import ASSUMPTIONS

USAGE = f"""usage: jaxformer plan CONFIG --topology NAME [--json] [--no-changes] [OPTIONS of jaxformer train]

Compiles the step that training would take, without taking it and without the devices.
NAME: {target.KNOWN}
TPU slices need their compiler: pip install "jaxformer[tpu]"; no TPU and no network."""


@dataclass(frozen=True)
class Options:
    """Options of `jaxformer plan` beside those of the experiment."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    topology: str = "local"
    """Devices to plan for."""
    json: bool = False
    """Print the plan as JSON."""
    changes: bool = True
    """Where it does not fit, look for the smallest changes with which it does."""


def main(arguments: list[str]) -> int:
    """Exit code 0 where the step fits, or nobody knows; 1 where it does not."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"which experiment?\n{USAGE}")
    options = _parse(load(Path(arguments[0])), arguments[1:])
    devices = target.find(options.topology)
    console = Console(stderr=options.json, highlight=False, markup=False, soft_wrap=True)
    with console.status(f"compiling the step for {options.topology}: minutes, for a large model"):
        plan = make_plan(options.experiment, devices)
    if not options.json:
        show(plan, console)
    found: list[Change] = []
    if plan.fits is False and options.changes:
        console.print("looking for changes with which it fits")
        with console.status("compiling"):
            found = changes(options.experiment, devices, plan, console.print)
    if options.json:
        fitting = [{"options": " ".join(each.options), "plan": each.plan.to_json()} for each in found]
        json.dump(plan.to_json() | {"changes": fitting}, sys.stdout, indent=1)
        print()
    elif plan.fits is False and options.changes:
        console.print(_changes(found) if found else "no change that was tried is enough: take more devices")
    return 1 if plan.fits is False else 0


def show(plan: Plan, console: Console) -> None:
    """Print a plan as tables."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    console.print(f"{plan.target}: {plan.devices} x {plan.device}, mesh {mesh}; compiled in {plan.seconds:.0f} s")
    console.print(f"{plan.parameters:,} parameters, {plan.tokens:,} tokens a step")
    console.print(_memory(plan))
    console.print(_flops(plan))
    if plan.collectives:
        table = _table("collectives of a step", "", "times", "GB that a device receives")
        for each in plan.collectives:
            table.add_row(each.kind, f"{each.count:,}", f"{each.bytes / 1e9:.3f}")
        console.print(table)
    if plan.roofline is not None:
        _show_roofline(plan, console)
    for line in plan.fallbacks:
        console.print(f"sharding: {line}")


def _parse(default: Experiment, arguments: list[str]) -> Options:
    return tyro.cli(
        Options,
        prog="jaxformer plan CONFIG",
        description=f"Plan {default.name!r}. Every field of the experiment is an option.",
        default=Options(default),
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _memory(plan: Plan) -> Table:
    title = "memory of a device, GiB"
    table = _table(title, "", "")
    for field in dataclasses.fields(plan.memory):
        size = getattr(plan.memory, field.name)
        unknown = plan.refused and field.name in ("temporaries", "program", "peak")
        table.add_row(field.name, "?" if unknown else f"{size / GIB:.2f}")
    room = "not known" if plan.room is None else f"{plan.room / GIB:.2f}"
    table.add_row("there is", room, end_section=True)
    verdict = {True: "it fits", False: "it does not fit", None: "nobody says whether it fits"}[plan.fits]
    table.caption, table.caption_justify = f"{verdict}{': ' + plan.refused if plan.refused else ''}", "left"
    return table


def _flops(plan: Plan) -> Table:
    table = _table("TFLOPs of a step, all devices together", "", "blocks", "attention", "head", "together")
    forward, again = plan.flops.forward, plan.flops.recomputed
    for name, part in (("forward", forward), ("backward", forward * 2), ("recomputed", again)):
        row = (part.blocks, part.attention, part.head, part.total)
        table.add_row(name, *(f"{value / 1e12:,.3f}" for value in row))
    kernel = f"{plan.kernels} Pallas kernels" if plan.kernels else "plain products"
    table.caption = f"attention counted whole, as MFU is reported; in the program: {kernel}"
    table.caption_justify = "left"
    return table


def _show_roofline(plan: Plan, console: Console) -> None:
    line = plan.roofline
    assert line is not None
    table = _table("roofline: no step is faster", "", "seconds", "MFU", "tokens/s")
    for name in ("compute", "memory", "links"):
        table.add_row(name, f"{getattr(line, name):.4f}", "", "")
    for name, seconds, share in zip(
        ("hidden", "one by one"), (line.hidden, line.one_by_one), line.utilization, strict=True
    ):
        table.add_row(name, f"{seconds:.4f}", f"{share:.0%}", f"{plan.tokens / seconds:,.0f}")
    console.print(table)
    for assumption in ASSUMPTIONS:
        console.print(f"  assumed: {assumption}")


def _changes(found: list[Change]) -> Table:
    table = _table("with these options it fits", "", "peak GiB", "at best, seconds")
    for each in found:
        line = each.plan.roofline
        best = "" if line is None else f"{line.hidden:.3f} to {line.one_by_one:.3f}"
        table.add_row(" ".join(each.options), f"{each.plan.memory.peak / GIB:.2f}", best)
    return table
