"""`jaxformer doctor`: what is installed, which devices are used, and what is wrong."""

import dataclasses
import sys

import jax
from rich.console import Console
from rich.table import Table

from jaxformer import machine
from jaxformer.nn.attend import Request, device_in_force, explain
from jaxformer.nn.model import auto_dtype


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 where something would go wrong in silence."""
    if arguments in (["-h"], ["--help"]):
        print("usage: jaxformer doctor\n\nIt takes no options; it exits with 1 where something is wrong.")
        return 0
    if arguments:
        raise ValueError(f"doctor takes no options, got {' '.join(arguments)}")
    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)  # [cuda] is no markup
    console.print("  ".join(f"{name} {version}" for name, version in machine.versions().items()))
    console.print(f"devices: {'; '.join(machine.devices())}")
    free, total = machine.memory()
    console.print(f"host memory: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    console.print(f"activations: {auto_dtype()}; compiled programs: {machine.compilation_cache()}")
    for title, request in requests().items():
        console.print(kernels(title, request))
    found = machine.warnings()
    for line in found:
        console.print(f"warning: {line}", style="bold red")
    if not found:
        console.print("nothing found wrong: computing on " + jax.default_backend())
    return 1 if found else 0


def requests() -> dict[str, Request]:
    """The attention calls that a user's work comes down to, on this device."""
    platform, kind, capability = device_in_force()
    plain = Request(platform, kind, capability, auto_dtype(), 1024, 1024, 12, 12, 64, causal=True)
    packed = dataclasses.replace(plain, segments=True)
    decoding = dataclasses.replace(plain, queries=1, valid=True, start=True)
    return {
        "one document a row": plain,
        "packed documents, as in training": packed,
        "one token against a cache": decoding,
    }


def kernels(title: str, request: Request) -> Table:
    """Each attention kernel, and whether it would be used or why not."""
    shape = f"{request.queries} queries, {request.keys} keys, {request.heads} heads of {request.head_dim}"
    table = Table("kernel", "", title=f"attention, {title} ({shape})", title_justify="left")
    for name, reason in explain(request):
        table.add_row(name, reason, style="bold" if reason == "chosen" else "dim")
    return table
