"""Trainings as pictures: runs over each other, and norms over layers. L layers, S steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from jaxformer.inspect.training import Series

SHOWN = ("loss", "held_out/loss", "gradient_norm", "learning_rate")


def draw_runs(series: Mapping[str, Series], names: Sequence[str], shown: Sequence[str] | None = None) -> Figure:
    """What `compare` gives, a picture for each name in `shown`, the runs over each other under their `names`.

    Faint is each value, strong their mean over a window of a fortieth of them. None: of SHOWN what is there. Raises
    ValueError for what no run says, and for names that are not as many as the runs.
    """
    shown = [name for name in SHOWN if name in series] if shown is None else shown
    count = len(next(iter(series.values())).values) if series else 0
    wrong = [f"no run says {name!r}" for name in shown if name not in series]
    wrong += [f"{len(names)} names for {count} runs"] if len(names) != count else []
    wrong += [] if shown else ["nothing is shown"]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}; there is {', '.join(series)}")
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), dpi=120, layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for axes, name in zip(places, shown, strict=False):
        for run, (values, label) in enumerate(zip(series[name].values, names, strict=True)):
            _curve(axes, series[name].steps, values, f"C{run}", label, smooth=name != "learning_rate")
        axes.set(title=name, xlabel="step")
        axes.margins(x=0.02)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[len(shown) :]:
        axes.set_axis_off()
    figure.axes[0].legend(frameon=False)
    return figure


def draw_norms(norms: Mapping[str, Any], title: str = "") -> Figure:
    """What `norms` gives by layer as a heat map: a row for each pattern with norms [L], a column for each layer.

    Colours go by the logarithm; a norm of 0, and what a shorter stack does not have, is left white.
    """
    layered = {pattern: np.asarray(values, np.float64) for pattern, values in norms.items() if np.ndim(values) == 1}
    if not layered:
        raise ValueError("none of these norms is by layer: ask norms(..., by_layer=True) for patterns of blocks")
    depth = max(map(len, layered.values()))
    table = np.full((len(layered), depth), np.nan)
    for row, values in zip(table, layered.values(), strict=True):
        row[: len(values)] = np.where(values > 0, values, np.nan)
    longest = max(map(len, layered))
    size = (0.35 * depth + 0.075 * longest + 1.8, 0.28 * len(layered) + 1.2)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(table, aspect="auto", cmap="viridis", norm=LogNorm())
    axes.set_yticks(range(len(layered)), [*layered], fontsize=8, parse_math=False)
    axes.set_xticks(range(depth), [str(layer + 1) for layer in range(depth)], fontsize=8)
    axes.set(title=title, xlabel="layer")
    figure.colorbar(image, label="norm", aspect=15, pad=0.01)
    return figure


def _curve(axes: Any, steps: np.ndarray, values: np.ndarray, color: str, label: str, smooth: bool) -> None:
    there = np.isfinite(values)
    steps, values = steps[there], values[there]
    window = np.ones(max(1, len(values) // 40) if smooth else 1)
    if not len(values):
        return
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    mean = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    axes.plot(steps, mean, "-" if len(values) > 1 else "o", color=color, label=label)
