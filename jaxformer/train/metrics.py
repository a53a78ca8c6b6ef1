"""What a run writes down about itself: metrics.jsonl, TensorBoard events, and a picture of the curves."""

import contextlib
import gc
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from matplotlib.figure import Figure  # unlike pyplot it leaves no global state
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, ScalarFormatter

from jaxformer import distributed
from jaxformer.train.events import Events

FILE, PICTURE, EVENTS = "metrics.jsonl", "curves.png", "tensorboard"
PARTS = ("rollout", "reward", "learning")
"""What a step that learns from its own answers spends its time on."""
POINTS = 1000
"""Lines that a picture is drawn of at most: a log grows without end, what is held of it does not."""
Line = dict[str, Any]


class MetricsLog:
    """The log of a run folder, one line a call, and each line on its way to the disk when the call returns.

    A line is {"step": n, "values": {...}, "time": {...}}. A run that is interrupted and resumed writes the
    same steps and values, bit for bit, as one that is not; what depends on the clock stands under "time".
    To resume, or to draw what is there already, `truncate` first. A context manager. Of several processes the first
    alone writes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._is_mute = not distributed.is_first()
        self._first = 0
        self._shown: dict[bool, _Spread] = {}
        self._file: TextIO | None = None
        self._events: Events | None = None

    def write(self, step: int, values: Mapping[str, float], time: Mapping[str, float]) -> None:
        """Append one line, and the values to the TensorBoard events; floats are written to the last bit."""
        if self._is_mute:
            return
        line = {"step": step, "values": dict(values), "time": dict(time)}
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / FILE).open("a", buffering=1, encoding="utf-8")
        self._file.write(json.dumps(line, default=float) + "\n")
        self._show(line)
        for name, value in values.items():
            if math.isfinite(value):
                self._board().add(step, name, float(value))

    def sync(self) -> None:
        """Return when all lines are on the disk: until then a power cut, though no kill, may take them."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def truncate(self, step: int) -> float:
        """Forget what comes after `step`, and a line that a kill left half-written; return its seconds."""
        self.close()
        self._first, self._shown, seconds = step + 1, {}, 0.0
        path, beside = self.folder / FILE, self.folder / f"{FILE}.tmp"
        if path.exists() and not self._is_mute:
            with beside.open("wb") as kept:
                for raw, line in _parsed(path):
                    if line["step"] <= step:
                        kept.write(raw)
                        self._show(line)
                    else:
                        seconds += line["time"].get("seconds", 0.0)
            os.replace(beside, path)
        return seconds

    def lines(self) -> Iterator[Line]:
        """All lines, those of earlier processes too, one by one."""
        path = self.folder / FILE
        return (line for _, line in _parsed(path)) if path.exists() else iter(())

    def draw(self) -> Path:
        """Draw curves.png anew, of a long log by lines that are spread evenly over it, and return its path."""
        path = self.folder / PICTURE
        if self._is_mute:
            return path
        lines = [line for spread in self._shown.values() for line in spread.kept]
        draw_curves(lines, path, self.folder.resolve().name)
        gc.collect()  # a figure is a heap of cycles, and left alone these stay for thousands of steps
        return path

    def close(self) -> None:
        """Close the files; the next `write` opens them again."""
        with contextlib.ExitStack() as both:  # the one though the other fails
            if self._file is not None:
                both.callback(self._file.close)
            if self._events is not None:
                both.callback(self._events.close)
            self._file = self._events = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show(self, line: Line) -> None:
        """What a step says and what an evaluation says are spread each for itself."""
        self._shown.setdefault(bool(line["time"]), _Spread()).add(line)

    def _board(self) -> Events:
        if self._events is None:
            self._events = Events(self.folder / EVENTS, self._first)
        return self._events


def read_metrics(folder: str | Path) -> list[Line]:
    """The lines of a run folder's metrics.jsonl; [] where there is no such file.

    A last line that is half-written is left out; any other that is no metrics is a ValueError that names it.
    """
    return list(MetricsLog(folder).lines())


def _parsed(path: Path) -> Iterator[tuple[bytes, Line]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                return
            try:
                line = json.loads(raw)
                line["step"], line["values"], line["time"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{path}, line {number}: expected {{"step", "values", "time"}}, found {raw!r}'
                ) from error
            yield raw, line


class _Spread:
    """Of the lines that are added at most POINTS, evenly spread."""

    def __init__(self) -> None:
        self.kept: list[Line] = []
        self.seen, self.every = 0, 1

    def add(self, line: Line) -> None:
        if self.seen % self.every == 0:
            self.kept.append(line)
        self.seen += 1
        if len(self.kept) > POINTS:
            self.kept, self.every = self.kept[::2], 2 * self.every


def draw_curves(lines: list[Line], path: Path, title: str) -> None:
    """Draw loss, learning rate, gradient norm and speed over the steps into a PNG.

    Of a run that learns from its own answers: reward, how far it has come, gradient norm, and where the time goes.
    """
    figure = Figure(figsize=(10, 6.5), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    grid = figure.add_gridspec(2, 3, height_ratios=(2, 1))
    large, *small = (figure.add_subplot(place) for place in (grid[0, :], *(grid[1, i] for i in range(3))))
    answers = any(PARTS[0] in line["time"] for line in lines)
    name, label = ("reward", "reward") if answers else ("loss", "loss (nats)")
    _curve(large, *_series(lines, "values", name), label="training")
    steps, values = _series(lines, "values", f"held_out/{name}")
    large.plot(steps, values, "o-", color="C1", markersize=4, label="held out")
    large.set(title=title, ylabel=label)
    if large.get_legend_handles_labels()[0]:
        large.legend(frameon=False)
    norm = ("values", "gradient_norm", "gradient norm", ScalarFormatter())
    if answers:
        is_held = any("divergence" in line["values"] for line in lines)
        apart = ("divergence", "divergence (nats an answer)") if is_held else ("surprise", "surprise (nats a token)")
        _small(small[0], lines, "values", *apart, ScalarFormatter())
        _small(small[1], lines, *norm)
        _stack(small[2], lines)
    else:
        _small(small[0], lines, "values", "learning_rate", "learning rate", ScalarFormatter(useMathText=True))
        _small(small[1], lines, *norm)
        _small(small[2], lines, "time", "tokens_per_second", "tokens per second", EngFormatter(sep=""))
    for axes in figure.axes:
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    beside = path.with_name(f"{path.name}.tmp")
    figure.savefig(beside, format="png")
    os.replace(beside, path)


def shares(lines: Iterable[Line]) -> dict[str, float]:
    """Which share of the time of its steps a run spent on each of PARTS; {} where it has no such."""
    spent = dict.fromkeys(PARTS, 0.0)
    for line in lines:
        spent = {name: seconds + line["time"].get(name, 0.0) for name, seconds in spent.items()}
    total = sum(spent.values())
    return {name: seconds / total for name, seconds in spent.items()} if total else {}


def _series(lines: list[Line], where: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one name, where it is finite."""
    pairs = [(line["step"], line[where].get(name, math.nan)) for line in lines]
    steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
    return steps[np.isfinite(values)], values[np.isfinite(values)]


def _small(axes: Any, lines: list[Line], where: str, name: str, label: str, formatter: Any) -> None:
    _curve(axes, *_series(lines, where, name), smooth=name != "learning_rate")
    axes.set(ylabel=label, ylim=(0, None))
    axes.yaxis.set_major_formatter(formatter)
    if isinstance(formatter, ScalarFormatter):
        formatter.set_powerlimits((-2, 4))


def _stack(axes: Any, lines: list[Line]) -> None:
    """Seconds of each part of a step, one upon the other; the first steps of a process compile, and stand out."""
    series = [_series(lines, "time", name) for name in PARTS]
    axes.stackplot(series[0][0], *(values for _, values in series), labels=PARTS)
    total = np.sum([values for _, values in series], axis=0)
    axes.set(ylabel="seconds", ylim=(0, 1.5 * np.quantile(total, 0.9)))
    axes.legend(frameon=False, fontsize="small", ncols=len(PARTS), handlelength=1, columnspacing=1)


def _curve(axes: Any, steps: np.ndarray, values: np.ndarray, label: str | None = None, smooth: bool = True) -> None:
    """The values, faint, under their mean over a window of a fortieth of them."""
    if not len(values):
        return
    window = np.ones(max(1, len(values) // 40) if smooth else 1)
    count = np.convolve(np.ones(len(values)), window, "same")
    axes.plot(steps, values, color="C0", alpha=0.25, linewidth=0.8)
    axes.plot(steps, np.convolve(values, window, "same") / count, color="C0", label=label)
