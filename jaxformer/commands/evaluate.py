"""`jaxformer evaluate SOURCE`: what a task says of a run's model, or of any model, on held-out or other documents."""

import argparse
import dataclasses
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from jaxformer import codec, machine, sharding, source, starting
from jaxformer.commands.train import load
from jaxformer.evaluating import Evaluator, recorded
from jaxformer.experiment import AnyObjective, Experiment
from jaxformer.feed import check_rows, make_held_out
from jaxformer.fitting import averaged, reopened, restored
from jaxformer.optimizer import OptimizerConfig
from jaxformer.sharding import MeshConfig
from jaxformer.starting import Start
from jaxformer.tasks import CausalLM
from jaxformer.text.corpus import Corpus, DataConfig, open_corpora, open_documents
from jaxformer.text.files import write_json
from jaxformer.train.loop import Values
from jaxformer.train.progress import TrainingProgress

TASKS: dict[str, type] = {
    re.sub("(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower(): kind for kind in typing.get_args(AnyObjective)
}
"""Every task by the name that `--task` knows it by."""
SETTINGS = ("task", "rows", "length", "evaluation_stride", "predictions")
"""Options that a run's own settings stand for."""
SOURCE = "a run's folder, a folder in the published layout, a .gguf file, or the name of a model on the hub"


@dataclass(frozen=True)
class Data:
    """Which documents to evaluate on."""

    files: tuple[str, ...] = ()
    """Files, globs or folders, as for `jaxformer train`, of which all is used; none: what the run held out."""
    text_field: str = "text"
    """Where a row has its text, for tasks that read plain text."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about rows and files that cannot be used."""


@dataclass(frozen=True)
class Options:
    """How to evaluate; a run's own settings are the defaults for its model."""

    data: Data = Data()
    task: AnyObjective = CausalLM()
    """What is evaluated."""
    rows: int = 8
    """Rows that are computed at a time, over all devices."""
    length: int = 512
    """Tokens of a row."""
    evaluation_stride: int | None = None
    """Each row scores this many new tokens, the rest is context; None: all."""
    predictions: int = 512
    """Documents that are predicted, for tasks that are judged so."""
    mesh: MeshConfig = MeshConfig()
    """How devices are used."""
    config: Path | None = None
    """The configuration file of the run, which is read anew, for a run whose rewards are functions that it registers:
    of these a run keeps the names alone."""
    out: Path | None = None
    """Write the values there too, as JSON."""


def main(arguments: list[str]) -> int:
    """Exit code 0; the values go to standard output, and as JSON into `out`."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: jaxformer evaluate SOURCE [--task NAME] [OPTIONS]\n\nSOURCE: {SOURCE}.\n--task: {_listed()}.")
        print("jaxformer evaluate SOURCE --help tells the options.")
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"which model? jaxformer evaluate SOURCE, {SOURCE}")
    place, rest = arguments[0], arguments[1:]
    folder = Path(place).expanduser()
    run = recorded(folder) if (folder / "experiment.json").is_file() else None
    options = parse(place, run, rest)
    if options.config is not None:
        load(options.config)
    machine.use_compilation_cache()
    experiment = prepared(place, run, options)
    corpora = documents(place, run, options)
    values = evaluate(place, run, experiment, corpora)
    count = sum(len(corpus.held_out) for corpus in corpora)
    name, many = type(experiment.task).__name__, "" if count == 1 else "s"
    _print(f"{place}: {name} on {count} document{many}, rows of {experiment.length} tokens", values)
    if options.out is not None:
        settings = {name: getattr(experiment, name) for name in ("length", "evaluation_stride")}
        told: dict[str, Any] = {"source": place, "task": codec.to_json(experiment.task), **settings}
        write_json(options.out, told | {"files": list(options.data.files), "documents": count, "values": values})
    return 0


def parse(place: str, run: Experiment | None, arguments: list[str]) -> Options:
    """The options of the command line; a run's own settings stand for what is not given."""
    default = Options()
    if run is not None:
        data = Data(text_field=run.data.text_field, on_error=run.data.on_error)
        default = Options(data, **{name: getattr(run, name) for name in SETTINGS})
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # first: a task brings options of its own
    chooser.add_argument("--task", nargs="?", const="")
    chosen, arguments = chooser.parse_known_args(arguments)
    if chosen.task is not None:
        if chosen.task not in TASKS:
            raise ValueError(f"--task {chosen.task}: expected {_listed()}")
        default = dataclasses.replace(default, task=TASKS[chosen.task]())
    return tyro.cli(
        Options,
        prog=f"jaxformer evaluate {place} [--task NAME]",
        description=f"Evaluate {place}. --task: {_listed()}.",
        default=default,
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),
    )


def prepared(place: str, run: Experiment | None, options: Options) -> Experiment:
    """The experiment that a model is evaluated as, which begins and ends with it."""
    alone = Experiment("evaluation", steps=1, optimizer=OptimizerConfig(warmup_steps=0))
    own = {"model": None, "start": place, "freeze": (), "adapter": None, "bits": None, "accumulate": 1, "prompts": ()}
    given = {name: getattr(options, name) for name in (*SETTINGS, "mesh")}
    return dataclasses.replace(run or alone, **own | given).validate()


def documents(place: str, run: Experiment | None, options: Options) -> list[Corpus]:
    """All documents of the files that are named, or what the run held out."""
    columns = options.task.columns
    if options.data.files:
        data = DataConfig(options.data.files, text_field=options.data.text_field, on_error=options.data.on_error)
        found = open_documents(data, columns)
        return [Corpus("", found, found)]
    if run is None:
        raise ValueError(f"{place} is no run, which would hold documents out: name some with --data.files")
    if not run.data.files and not run.data.mixture:
        raise ValueError(f"{place} learned from documents in memory: name some with --data.files")
    if columns != run.task.columns:
        raise ValueError(
            f"{place} held documents out by what {type(run.task).__name__} reads of them, which is not what"
            f" {type(options.task).__name__} reads: name some with --data.files"
        )
    corpora = open_corpora(None, run.data, columns)
    if not any(len(corpus.held_out) for corpus in corpora):
        raise ValueError(f"{place} held no documents out: name some with --data.files")
    return corpora


def evaluate(place: str, run: Experiment | None, experiment: Experiment, corpora: list[Corpus]) -> Values:
    """The task's values on the held-out documents of the corpora."""
    mesh, say = sharding.make_mesh(experiment.mesh), TrainingProgress(1)
    check_rows(experiment, mesh)
    start, trained = opened(place, run, experiment, mesh, say)
    for corpus in corpora:
        say.skipped(corpus.held_out.skipped)
    folder = None if run is None else Path(place).expanduser().resolve().parent / ".prepared"
    held_out = make_held_out(experiment, corpora, start, say, folder)
    with jax.set_mesh(mesh):
        evaluator = Evaluator(experiment, start, held_out, say)
        with say.busy("evaluating"):
            values = evaluator.values(trained, stride=experiment.evaluation_stride)
        return evaluator.scores(trained) | values


def opened(
    place: str, run: Experiment | None, experiment: Experiment, mesh: Mesh, say: TrainingProgress
) -> tuple[Start, Any]:
    """(a model that the task can evaluate, its parameters): as published, else of a run's newest checkpoint."""
    folder = Path(place).expanduser()
    if run is None or (folder / "model").is_dir():
        found = source.from_pretrained(place, mesh=mesh)
        experiment.check_model(found[0].config)
        start = starting.begin(experiment, found, found[2], mesh)
        return start, start.first
    start = reopened(run, folder, mesh)
    experiment.check_model(start.model.config)
    state = restored(run, start, folder)
    say.notice(f"{place} has no model/: evaluating its checkpoint of step {int(state.step)}")
    return start, averaged(state)


def _listed() -> str:
    return f"one of {', '.join(TASKS)}"


def _print(title: str, values: Values) -> None:
    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    table = Table("metric", "value", title=title, title_justify="left")
    for name, value in values.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
