"""`jaxformer train CONFIG`: run an experiment, or go on with it."""

import itertools
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from jaxformer import distributed, machine
from jaxformer.distributed import Launch
from jaxformer.experiment import Experiment
from jaxformer.fitting import fit
from jaxformer.replaying import Replay, replay

OF_A_CONFIG = "jaxformer train configs/quickstart.py --help tells the options of that one"
NORMS, CHARACTERS = 20, 200
"""Gradients, and characters of a row, that are told of a step that is taken again."""


@dataclass(frozen=True)
class Options:
    """Options of `jaxformer train` beside those of the experiment."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    fresh: bool = False
    """Delete what the run's folder holds, and start over."""
    replay: int | None = None
    """Take this step of the run again and tell of it; nothing is written into the run's folder."""
    launch: Annotated[Launch, tyro.conf.arg(name="")] = Launch()
    """How several processes find each other."""


def main(arguments: list[str]) -> int:
    """Exit code 0 for a finished run, 130 for one that a signal stopped."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: jaxformer train CONFIG [OPTIONS]\n\n{OF_A_CONFIG}")
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"which experiment? {OF_A_CONFIG}")
    options = parse(load(Path(arguments[0])), arguments[1:])
    if options.replay is not None and options.fresh:
        raise ValueError("--replay and --fresh: one looks into a run, the other deletes it; give one of them")
    distributed.join(options.launch)
    machine.use_compilation_cache()
    for line in machine.warnings() if distributed.is_first() else ():
        print(f"warning: {line}", file=sys.stderr)
    if options.replay is not None:
        found = replay(options.experiment, options.replay)
        if distributed.is_first():
            tell(found)
        return 0
    return 0 if fit(options.experiment, fresh=options.fresh).finished else 130


def load(file: Path) -> Experiment:
    """The experiment of a configuration file: what its function `config()` returns."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such configuration file (looked from {Path.cwd()})")
    config: Any = runpy.run_path(str(file)).get("config")
    experiment = config() if callable(config) else None
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{file}: expected a function config() that returns an Experiment")
    return experiment


def parse(default: Experiment, arguments: list[str]) -> Options:
    """The experiment with the options of the command line; prints help and exits where asked."""
    return tyro.cli(
        Options,
        prog="jaxformer train CONFIG",
        description=f"Run {default.name!r}, or go on with it. Every field of the experiment is an option.",
        default=Options(default),
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),
    )


def tell(found: Replay) -> None:
    """Print what a step that was taken again computed, beside what the run logged, and from what."""
    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    values = Table("value", "now", "logged", "", title=f"step {found.step}", title_justify="left")
    for name, value in found.values.items():
        is_logged, differs = name in found.logged, name in found.differing
        before = str(found.logged[name]) if is_logged else "-"
        values.add_row(name, str(value), before, "differs" if differs else "equal" if is_logged else "")
    console.print(values)
    shown = itertools.islice(found.norms.items(), NORMS)
    title = f"gradients, the {min(NORMS, len(found.norms))} largest of {len(found.norms)}"
    norms = Table("parameter", "norm", title=title, title_justify="left")
    for path, norm in shown:
        norms.add_row(path, f"{norm:.4g}")
    console.print(norms)
    for number, row in enumerate(found.rows):
        for name, text in row.items():
            console.print(f"row {number}, {name}: {text[:CHARACTERS]!r}")
