"""`jaxformer verify FOLDER`: look a published model over, and compare it with the reference where there is one."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from jaxformer import machine
from jaxformer.verify import verify

MARKS = {True: "passed", False: "FAILED", None: "skipped"}


@dataclass(frozen=True)
class Options:
    """Check shapes, names and values of a published model; with torch and transformers installed, each layer."""

    folder: Annotated[str, tyro.conf.Positional]
    """A folder in the published layout, or the name of a model on the hub."""
    skip_reference: bool = False
    """Don't compare with transformers, though it is installed."""


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 where a check fails."""
    options = tyro.cli(Options, prog="jaxformer verify", args=arguments)
    machine.use_compilation_cache()
    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    passed = True
    for check in verify(options.folder, False if options.skip_reference else None):
        console.print(f"{MARKS[check.passed]:8}{check.name}: {check.detail}")
        passed = passed and check.passed is not False
    return 0 if passed else 1
