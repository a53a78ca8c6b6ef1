"""`jaxformer checkpoint list | verify | prune FOLDER`: look after what a run has saved."""

import contextlib
import datetime
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxformer.train import checksums
from jaxformer.train.checksums import DamagedError
from jaxformer.train.retention import DAMAGED, DISCARDED, LOWEST_LOSS, Retention, metrics_of, move, steps_in
from jaxformer.train.run_folder import RunFolder

PATIENCE = 2.0
"""Seconds before a bar is shown."""
AGES = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


@dataclass(frozen=True)
class List:
    """Show which checkpoints there are: size, age, metrics, and what saved them. Their contents are not read."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or the folder of its checkpoints."""


@dataclass(frozen=True)
class Verify:
    """Compare every file with its checksum; exit code 1 for one that is damaged, missing or unexpected."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or the folder of its checkpoints."""
    step: int | None = None
    """This checkpoint alone."""


@dataclass(frozen=True)
class Prune:
    """Delete checkpoints, but for the newest, the spaced and the one with the best held-out loss.

    Refuses while the run goes on. A good checkpoint always stays, also where the rule would delete it.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or the folder of its checkpoints."""
    keep: int
    """How many of the newest stay."""
    every: int | None = None
    """Those whose step this number divides stay, too."""
    dry_run: bool = False
    """Only say what would be deleted."""


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Prune, tyro.conf.subcommand("prune")]
)


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 where `verify` finds anything wrong."""
    command = tyro.cli(Command, prog="jaxformer checkpoint", args=arguments)
    folder = _found(command.folder)
    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    if isinstance(command, Prune):
        prune(folder, command, console)
    elif isinstance(command, Verify):
        return 0 if verify(folder, command.step, console) else 1
    else:
        console.print(table(folder))
        for line in _beside(folder):
            console.print(line)
    return 0


def table(folder: Path) -> Table:
    """A row for each checkpoint."""
    found = Table("step", "size", "age", "metrics", "saved by", "checksums", title=str(folder), title_justify="left")
    for step in steps_in(folder):
        try:
            of_step, state = checksums.read(folder / str(step)), "yes"
        except ValueError:
            of_step, state = None, "DAMAGED"
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in (metrics_of(folder, step) or {}).items())
        size, age, by = decimal(checksums.size(folder / str(step))), _age(folder / str(step), of_step), _by(of_step)
        found.add_row(str(step), size, age, metrics or "-", by, state if of_step or state != "yes" else "none")
    return found


def verify(folder: Path, step: int | None, console: Console) -> bool:
    """Whether all files of the step, or of all steps, are as they were written; tells of each step."""
    steps = steps_in(folder)
    if step is not None and step not in steps:
        raise FileNotFoundError(f"no checkpoint of step {step} in {folder}; there are {steps}")
    steps = steps if step is None else [step]
    passed = True
    with _bar(sum(checksums.size(folder / str(step)) for step in steps)) as done:
        for step in steps:
            wrong = checksums.damages(folder / str(step), done=done)
            strange = checksums.unexpected(folder / str(step))
            sealed = (folder / str(step) / checksums.FILE).exists()
            verdict = "DAMAGED" if wrong else "good" if sealed else "has no checksums; all of it can be read"
            console.print("\n  - ".join([f"step {step}: {verdict}", *wrong, *strange]))
            passed = passed and not wrong and not strange
    return passed


def prune(folder: Path, rule: Prune, console: Console) -> None:
    """Delete what the rule doesn't keep, and say so."""
    if rule.keep < 1 or (rule.every is not None and rule.every < 1):
        raise ValueError(f"--keep is {rule.keep}, --every {rule.every}: make them at least 1")
    is_of_run = folder.name == "checkpoints"
    with RunFolder(folder.parent) if is_of_run and not rule.dry_run else contextlib.nullcontext():
        steps = steps_in(folder)
        kept = Retention(folder, rule.keep, rule.every, LOWEST_LOSS).kept(steps, {})
        newest_kept_first = sorted(steps, key=lambda step: (step in kept, step), reverse=True)
        damaged: dict[Path, list[str]] = {}
        for good in newest_kept_first:
            if not (wrong := checksums.damages(folder / str(good))):
                break
            damaged[folder / str(good)] = wrong
        else:
            raise DamagedError(damaged)
        if good not in kept:
            console.print(f"step {good} stays: it is the newest that is not damaged")
        freed = 0
        for step in sorted({*steps} - kept - {good}):
            freed += (size := checksums.size(folder / str(step)))
            if not rule.dry_run:
                shutil.rmtree(move(folder / str(step), DISCARDED))
            console.print(f"{'would delete' if rule.dry_run else 'deleted'} step {step} ({decimal(size)})")
        left = ", ".join(map(str, sorted(kept | {good})))
        console.print(f"{decimal(freed)} {'would be freed' if rule.dry_run else 'freed'}; steps that stay: {left}")


def _found(folder: Path) -> Path:
    """The folder of checkpoints."""
    inner = folder.expanduser() / "checkpoints"
    found = (inner if inner.is_dir() else folder.expanduser()).resolve()
    if not found.is_dir() or not steps_in(found):
        raise FileNotFoundError(f"{folder}: no checkpoint there, nor in its checkpoints/: expected a run's folder")
    return found


def _beside(folder: Path) -> Iterator[str]:
    """What else lies there."""
    if aside := sorted(path.name for path in (folder / DAMAGED).glob("*")):
        yield f"set aside in {DAMAGED}/, to be deleted by hand: {', '.join(aside)}"
    if half := sorted(path.name for path in folder.glob("*tmp*")):
        yield f"half-written, cleared when the run goes on: {', '.join(half)}"


def _age(folder: Path, listed: checksums.Json | None) -> str:
    then = datetime.datetime.fromisoformat(listed["saved"]["time"]).timestamp() if listed else folder.stat().st_mtime
    seconds = max(int(time.time() - then), 0)
    name, unit = next((pair for pair in AGES if seconds >= 2 * pair[1]), AGES[-1])
    return f"{seconds // unit} {name}"


def _by(listed: checksums.Json | None) -> str:
    if listed is None:
        return "unknown"
    saved = listed["saved"]
    return f"{saved['devices']} x {saved['platform']}, {saved['processes']} process{'es' * (saved['processes'] > 1)}"


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """To be told of bytes done, from any thread; shows a bar on a terminal once it lasts."""
    console, begun, lock = Console(stderr=True), time.monotonic(), threading.Lock()
    columns = TextColumn("verifying"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with contextlib.ExitStack() as held:
        bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        task = bar.add_task("", total=total)

        def done(size: int) -> None:
            with lock:
                if not bar.live.is_started and time.monotonic() - begun > PATIENCE:
                    held.enter_context(bar)
                bar.advance(task, size)

        yield done
