"""What a training does: how large its parameters and gradients are, and how two runs compare. L layers, S steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer import tree
from jaxformer.train.metrics import FILE, read_metrics

BLOCKS = "/blocks/"


@dataclass(frozen=True)
class Series:
    """One thing that several runs say of themselves, side by side."""

    steps: np.ndarray
    """int [S], ascending: each step at which any of the runs says it."""
    values: np.ndarray
    """float64 [runs, S]; NaN where a run does not say it."""


def norms(
    parts: Mapping[str, Any], patterns: Sequence[str] | None = None, by_layer: bool = False
) -> dict[str, Array]:
    """{pattern: the norm of all leaves whose paths it describes, float32}, of parameters, gradients, or what adds up.

    Each path must be described exactly once (see `tree`); without patterns each is by itself. `by_layer` gives [L]
    for patterns of blocks, one norm for each layer of the stacked leaves. Pure: jit it with the patterns closed over.

    Raises ValueError for paths that are not described exactly once, for patterns that describe nothing, and
    `by_layer` for a pattern that mixes the blocks of a stack with anything else.
    """
    leaves = tree.flatten(parts)
    patterns = [*leaves] if patterns is None else patterns
    of_path = tree.match([(pattern, pattern) for pattern in patterns], leaves, "norm")
    groups = {pattern: [path for path, own in of_path.items() if own == pattern] for pattern in patterns}
    wrong = [f"{pattern} describes nothing" for pattern, paths in groups.items() if not paths]
    stacks = {pattern: {_stack(path) for path in paths} for pattern, paths in groups.items()}
    if by_layer:
        mixed = [pattern for pattern, found in stacks.items() if len(found) > 1]
        wrong += [f"{pattern} mixes the blocks of a stack with what is not of them" for pattern in mixed]
    if wrong:
        raise ValueError("norms:\n" + "\n".join(f"  - {line}" for line in wrong))
    layered = {pattern: by_layer and None not in found for pattern, found in stacks.items()}
    return {
        pattern: jnp.sqrt(sum((_squares(leaves[path], layered[pattern]) for path in paths), jnp.zeros(())))
        for pattern, paths in groups.items()
    }


def compare(*folders: str | Path) -> dict[str, Series]:
    """{name: Series} of what the runs in these folders wrote into metrics.jsonl, in their order.

    Names are those of the values, such as "loss" and "held_out/loss"; what depends on the clock is called
    "time/...". Raises ValueError that lists every folder without metrics.
    """
    runs = [read_metrics(folder) for folder in folders]
    if silent := [str(folder) for folder, lines in zip(folders, runs, strict=True) if not lines]:
        raise ValueError(f"no lines of {FILE} in {', '.join(silent)}: give folders of runs that took a step")
    told = [_told(lines) for lines in runs]
    return {
        name: _aligned([each.get(name, {}) for each in told]) for name in dict.fromkeys(n for t in told for n in t)
    }


def _told(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """{name: {step: value}}."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in (
            *line["values"].items(),
            *((f"time/{name}", value) for name, value in line["time"].items()),
        ):
            found.setdefault(name, {})[line["step"]] = value
    return found


def _aligned(runs: Sequence[Mapping[int, float]]) -> Series:
    steps = sorted({step for run in runs for step in run})
    values = [[run.get(step, np.nan) for step in steps] for run in runs]
    return Series(np.array(steps, np.int64), np.array(values, np.float64))


def _stack(path: str) -> str | None:
    """The stack whose blocks this leaf is of."""
    stack, blocks, _ = path.partition(BLOCKS)
    return stack if blocks else None


def _squares(leaf: Array, by_layer: bool) -> Array:
    """The sum of squares; [L] of a leaf that is stacked over layers."""
    squares = jnp.square(jnp.abs(leaf).astype(jnp.float32))
    return squares.sum(tuple(range(by_layer, squares.ndim)))
