"""What a person sees while a run goes on: one live line on a terminal, a line now and then elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from jaxformer.text.records import Problems
from jaxformer.train.metrics import PARTS

PLAIN_SECONDS = 10.0
"""Seconds between lines where the output is no terminal."""


class TrainingProgress:
    """Tells of one run: notices that stay, bars while something lasts, and the loss, rate and time left of steps."""

    def __init__(self, steps: int, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.steps, self.first, self.started, self.printed, self.rate = steps, 0, 0.0, 0.0, 0.0
        self.bar: Progress | None = None

    def _bar(self, *columns: ProgressColumn) -> Progress:
        """A bar that leaves nothing behind, and is not there at all where the output is no terminal."""
        return Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    def notice(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, markup=False)

    def changes(self, folder: Path, changes: list[str]) -> None:
        """Say that a run is continued with some of its settings changed."""
        for line in changes:
            self.notice(f"{folder.name}: going on with {line}")

    def skipped(self, problems: Problems) -> None:
        """Say how many rows or files could not be used, and the first of them."""
        if problems.count:
            self.notice(f"skipped {problems.count} rows or files that cannot be used:\n  {problems}")

    @contextlib.contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """Something that takes seconds and cannot say how far it is."""
        started = time.monotonic()
        with self._bar(SpinnerColumn(), TextColumn("{task.description}")) as bar:
            bar.add_task(title)
            yield
        self.notice(f"{title}: {time.monotonic() - started:.0f} s")

    @contextlib.contextmanager
    def preparing(self, documents: int) -> Iterator[Callable[[int, int], None]]:
        """A `progress(done, total)` for tokenizing documents."""
        columns = (
            TextColumn("tokenizing"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with self._bar(*columns) as bar:
            task = bar.add_task("", total=documents)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextlib.contextmanager
    def training(self, done: int) -> Iterator[None]:
        """The live line of a run that begins after `done` steps."""
        self.first, self.started = done, time.monotonic()
        columns: list[ProgressColumn] = [
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
        ]
        columns += [TextColumn("{task.fields[facts]}"), TextColumn("left"), TimeRemainingColumn(compact=True)]
        with self._bar(*columns) as self.bar:
            self.task = self.bar.add_task("", total=self.steps, completed=done, facts="compiling")
            yield
        self.bar = None

    def step(self, step: int, loss: float, tokens: float, seconds: float, reward: float | None = None) -> None:
        """A step that took `seconds` over `tokens` tokens; the first of a process includes its compilation.

        `reward`: what answers were worth, which then says more than the loss.
        """
        self.rate = tokens / seconds if step <= self.first + 2 else 0.95 * self.rate + 0.05 * tokens / seconds
        what = f"loss {loss:.3f}" if reward is None else f"reward {reward:.3f}"
        facts = f"{what} · {self.rate:,.0f} tokens/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, facts=facts)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self.printed > PLAIN_SECONDS or step == self.steps):
            left = int((now - self.started) / max(step - self.first, 1) * (self.steps - step))
            self.notice(f"step {step}/{self.steps} · {facts} · {left // 60}:{left % 60:02d} left")
            self.printed = now

    def result(self, evaluation: Mapping[str, float], marks: Mapping[str, float]) -> None:
        """What the run reached on its held-out documents, beside the compressors where they were asked."""
        for name, value in evaluation.items():
            self.notice(f"held-out {name.replace('_', ' ')}: {value:.4f}")
        if not marks or "bits_per_byte" not in evaluation:
            return
        table = Table("held-out text", "bits per byte")
        rows = {**marks, "this model": evaluation["bits_per_byte"]}
        for name, value in sorted(rows.items(), key=lambda row: -row[1]):
            style = "bold" if name == "this model" else ""
            table.add_row(name, f"{value:.3f}", style=style)
        self.console.print(table)

    def spent(self, shares: Mapping[str, float]) -> None:
        """Where the time of the run went; parts of a step stand in brackets behind the steps."""
        told = {name: f"{name} {share:.0%}" for name, share in shares.items()}
        if parts := ", ".join(text for name, text in told.items() if name in PARTS):
            told["steps"] += f" ({parts})"
        self.notice(f"time: {', '.join(text for name, text in told.items() if name not in PARTS)}")

    def completion(self, prompt: str, text: str) -> None:
        """Show a prompt and what the model made of it."""
        self.console.rule()
        self.console.print(prompt, style="bold", end="", markup=False)
        self.console.print(text, markup=False)
