"""How far a long list of inputs is."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE = 2.0
"""Seconds before a bar is shown."""
T = TypeVar("T")


def tracked(batches: Sequence[T], console: Console | None = None) -> Iterator[T]:
    """The batches, with a bar on a terminal once they have taken `PATIENCE`; nothing of it stays."""
    console, begun = console or Console(stderr=True), time.monotonic()
    columns = TextColumn("batches"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with ExitStack() as held:
        bar: Progress | None = None
        for done, batch in enumerate(batches):
            if bar is None and done and console.is_terminal and time.monotonic() - begun > PATIENCE:
                bar = held.enter_context(Progress(*columns, console=console, transient=True))
                bar.add_task("", total=len(batches))
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)
            yield batch
