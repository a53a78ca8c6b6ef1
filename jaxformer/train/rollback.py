"""Batches that are passed over: a run that rolls back goes on without the one whose step was not finite.

A step takes the batch of its own number, counted from 0, and a later one for each that is passed over before it. So
the run equals, bit for bit, one whose data never had those batches.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxformer.train.loop import NotFiniteError

MOST = 3
"""Batches that may be passed over between two checkpoints; then it isn't the data that is wrong."""
PASSED_OVER = "passed_over"
"""Logged of a step: how many batches were passed over right before its own."""


def batch_of(step: int, passed_over: Iterable[int]) -> int:
    """The number, from 0, of the batch that a step, from 1, takes."""
    number = step - 1
    for passed in sorted(passed_over):
        number += passed <= number
    return number


def logged(step: int, passed_over: Iterable[int]) -> dict[str, float]:
    """What a step's line says of batches that were passed over; {} where there were none."""
    here, before = (batch_of(each, passed_over) for each in (step, step - 1))
    return {PASSED_OVER: float(here - before - 1)} if here - before > 1 else {}


def read(lines: Iterable[Mapping[str, Any]]) -> list[int]:
    """The batches that were passed over, from the lines of a run's log."""
    found: list[int] = []
    for line in lines:
        first = line["step"] - 1 + len(found)
        found += range(first, first + int(line["values"].get(PASSED_OVER, 0)))
    return found


def told(error: NotFiniteError, passed_over: Sequence[int], saved: Sequence[int]) -> str:
    """What is said of a roll back to a checkpoint of which `saved` are, in order to pass over the last batch, too.

    Raises the error where so many were passed over since the checkpoint that it cannot be the data.
    """
    if (more := len(passed_over) - len(saved)) > MOST:
        raise NotFiniteError(
            error.step,
            f"{error}. Since the newest checkpoint, which is kept, {more - 1} batches were passed over: it is not the"
            " data that is wrong",
        ) from error
    return f"step {error.step} was not finite: rolling back, to go on without batch {passed_over[-1]}"
