"""Which checkpoints there are in a folder, and which of them stay."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Best = tuple[str, Literal["min", "max"]]
LOWEST_LOSS: Best = "loss", "min"
"""What a run keeps its best checkpoint by."""
DAMAGED, DISCARDED = "damaged", "discarded"
"""Folders beside the steps: what was set aside, and what is on its way to be deleted."""


def steps_in(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, rising."""
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def metrics_of(folder: Path, step: int) -> dict[str, float] | None:
    """What a checkpoint was saved with to be chosen by; None where it had none, or it cannot be read."""
    try:
        found = json.loads((folder / str(step) / "metrics" / "metrics").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def move(checkpoint: Path, place: str) -> Path:
    """Take a step's folder out of the others, into `place` beside them; in one go, for a kill may come."""
    (checkpoint.parent / place).mkdir(exist_ok=True)
    names = [checkpoint.name, *(f"{checkpoint.name}-{number}" for number in range(2, 1000))]
    target = next(path for name in names if not (path := checkpoint.parent / place / name).exists())
    return checkpoint.rename(target)


@dataclass(frozen=True)
class Retention:
    """What stays: the newest `keep` checkpoints, those whose step `every` divides, the best by a metric."""

    folder: Path
    """Where metrics of checkpoints are that this process has not saved."""
    keep: int
    every: int | None
    best: Best | None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One bool for each of orbax's records; this makes it one of orbax's preservation policies."""
        steps = [record.step for record in checkpoints]
        kept = self.kept(steps, {r.step: r.metrics for r in checkpoints if r.metrics is not None})
        return [step in kept for step in steps]

    def kept(self, steps: Sequence[int], metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Those of `steps` that stay. `metrics` of those that are not on the disk yet."""
        spaced = {step for step in steps if self.every is not None and step % self.every == 0}
        newest = {*sorted(steps)[-self.keep :]}
        return newest | spaced | {best for best in (self.best_of(steps, metrics),) if best is not None}

    def best_of(self, steps: Sequence[int], metrics: Mapping[int, Mapping[str, float]]) -> int | None:
        """The step with the best finite metric, the first of equals; None where there is none."""
        if self.best is None:
            return None
        name, mode = self.best
        sign = 1 if mode == "min" else -1
        found = {step: metrics[step] if step in metrics else metrics_of(self.folder, step) for step in steps}
        values = [(sign * (of_step or {}).get(name, math.nan), step) for step, of_step in found.items()]
        return min((pair for pair in values if math.isfinite(pair[0])), default=(0.0, None))[1]
