"""`jaxformer train CONFIG`: run an experiment, or go on with it."""

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxformer import machine
from jaxformer.experiment import Experiment
from jaxformer.fitting import fit

OF_A_CONFIG = "jaxformer train configs/quickstart.py --help tells the options of that one"


@dataclass(frozen=True)
class Options:
    """Options of `jaxformer train` beside those of the experiment."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    fresh: bool = False
    """Delete what the run's folder holds, and start over."""


def main(arguments: list[str]) -> int:
    """Exit code 0 for a finished run, 130 for one that a signal stopped."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: jaxformer train CONFIG [OPTIONS]\n\n{OF_A_CONFIG}")
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"which experiment? {OF_A_CONFIG}")
    options = parse(load(Path(arguments[0])), arguments[1:])
    machine.use_compilation_cache()
    for line in machine.warnings():
        print(f"warning: {line}", file=sys.stderr)
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
