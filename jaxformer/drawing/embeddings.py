"""Vectors as points: a page to move about in, and a figure. N points in K dimensions, which are 2 or 3."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from jaxformer.drawing.page import page
from jaxformer.inspect.embeddings import visible

FEW = 60
"""Points that a figure names all of."""
PLACES = tuple((x, y) for y in (0, 8, -8, 16, -16, 24, -24) for x in (5, -5))
"""Where a label may stand beside its point."""
STYLE = """
body { margin-bottom: 0; }
#view { position: relative; height: calc(100vh - 9rem); min-height: 20rem; border: 1px solid var(--line);
        border-radius: 4px; }
canvas { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none; color: var(--accent); }
#tip { position: absolute; pointer-events: none; padding: .1rem .4rem; border-radius: 4px; white-space: pre;
       background: var(--back); border: 1px solid var(--line); }
#bar { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; margin-bottom: .6rem; }
#bar span span { margin-right: .8rem; }
#bar i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .3rem; }
"""
BODY = """<div id="bar"><input id="search" type="search" placeholder="search" aria-label="search labels">
<span id="found"></span><span id="groups"></span><button id="reset">reset view</button></div>
<div id="view"><canvas id="canvas"></canvas><div id="tip" hidden></div></div>"""
SCRIPT = """
const {points, labels, groups, names} = DATA, NAMED = 80, NEAR = 14, solid = points.length && points[0].length > 2;
const get = id => document.getElementById(id), canvas = get("canvas"), tip = get("tip");
const pen = canvas.getContext("2d");
const hue = group => `oklch(.65 .17 ${(group * 137.5 + 250) % 360})`;
const low = [0, 1, 2].map(k => points.reduce((most, p) => Math.min(most, p[k] ?? 0), Infinity));
const high = [0, 1, 2].map(k => points.reduce((most, p) => Math.max(most, p[k] ?? 0), -Infinity));
const middle = low.map((x, k) => (x + high[k]) / 2), lower = labels.map(each => each.toLowerCase());
const spans = high.map((x, k) => x - low[k] || 1e-9), longest = Math.max(...spans);
let zoom, shift, turn, places = [], hits = new Set(), over = -1, drag = null;

function project() {
  const fits = k => solid ? longest : spans[k];  // a turned one may stand on any of its corners
  const size = zoom * .88 * Math.min(canvas.clientWidth / fits(0), canvas.clientHeight / fits(1));
  const [s, c] = [Math.sin(turn[0]), Math.cos(turn[0])], [u, v] = [Math.sin(turn[1]), Math.cos(turn[1])];
  places = points.map(p => {
    const [x, y, z] = middle.map((m, k) => (p[k] ?? 0) - (p.length > k ? m : 0));
    const a = solid ? c * x + s * z : x, deep = c * z - s * x, b = solid ? v * y - u * deep : y;
    return [canvas.clientWidth / 2 + shift[0] + a * size, canvas.clientHeight / 2 + shift[1] - b * size];
  });
}
function dot(i, radius, colour) {
  pen.fillStyle = colour;
  pen.beginPath(); pen.arc(...places[i], radius, 0, 2 * Math.PI); pen.fill();
}
function draw() {
  const ratio = devicePixelRatio || 1, ink = getComputedStyle(document.body).color;
  canvas.width = canvas.clientWidth * ratio; canvas.height = canvas.clientHeight * ratio;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  project();
  const radius = points.length > 1000 ? 2 : 3.5, accent = getComputedStyle(canvas).color;
  pen.globalAlpha = hits.size ? .2 : .75;
  points.forEach((_, i) => dot(i, radius, groups ? hue(groups[i]) : accent));
  pen.globalAlpha = 1;
  pen.font = "12px system-ui, sans-serif"; pen.textBaseline = "middle";
  const named = hits.size ? [...hits] : points.length <= NAMED ? points.map((_, i) => i) : [];
  for (const i of hits) dot(i, radius + 1.5, groups ? hue(groups[i]) : accent);
  pen.fillStyle = ink;
  const taken = hits.size ? [] : named.map(i => [places[i][0] - 3, places[i][1], 6]);
  for (const i of named.slice(0, NAMED)) {  // beside its point, or a line or two higher or lower, or not at all
    const wide = pen.measureText(labels[i]).width, aside = radius + 4;
    const free = ([x, y]) => taken.every(([a, b, w]) => x > a + w || a > x + wide || Math.abs(b - y) > 12);
    const around = [0, 13, -13, 26, -26].flatMap(by => [[aside, by], [-aside - wide, by]]);
    const place = around.map(by => by.map((d, k) => places[i][k] + d)).find(free);
    if (place) { taken.push([...place, wide]); pen.fillText(labels[i], ...place); }
  }
  if (over >= 0) dot(over, radius + 3, ink);
}
function point(x, y) {
  let best = NEAR ** 2;
  over = -1;
  places.forEach(([a, b], i) => {
    const away = (a - x) ** 2 + (b - y) ** 2;
    if (away < best && (!hits.size || hits.has(i))) [best, over] = [away, i];
  });
  tip.hidden = over < 0;
  if (over >= 0) {
    tip.textContent = labels[over] + (groups ? `\\n${names[groups[over]]}` : "");
    tip.style.left = `${Math.min(places[over][0] + 12, canvas.clientWidth - tip.offsetWidth - 4)}px`;
    tip.style.top = `${Math.max(places[over][1] - tip.offsetHeight - 8, 4)}px`;
  }
  draw();
}
function search() {
  const wanted = get("search").value.toLowerCase();
  hits = new Set(wanted ? lower.flatMap((label, i) => label.includes(wanted) ? [i] : []) : []);
  get("found").textContent = wanted ? `${hits.size} of ${labels.length}` : `${labels.length} points`;
  leave();
}
function leave() { over = -1; tip.hidden = true; draw(); }
function reset() { [zoom, shift, turn] = [1, [0, 0], [0, 0]]; draw(); }
canvas.onpointerdown = event => { drag = [event.offsetX, event.offsetY]; canvas.setPointerCapture(event.pointerId); };
canvas.onpointerup = canvas.onpointercancel = () => drag = null;
canvas.onpointermove = event => {
  const [x, y] = [event.offsetX, event.offsetY];
  if (drag) {
    const [a, b] = [x - drag[0], y - drag[1]];
    if (solid && !event.shiftKey) turn = [turn[0] + a / 150, turn[1] + b / 150];
    else shift = [shift[0] + a, shift[1] + b];
    drag = [x, y];
    leave();
  } else point(x, y);
};
canvas.onpointerleave = leave;
canvas.onwheel = event => {
  event.preventDefault();
  const by = Math.exp(-event.deltaY / 500), half = [canvas.clientWidth / 2, canvas.clientHeight / 2];
  shift = [event.offsetX, event.offsetY].map((at, k) => at - half[k] - (at - half[k] - shift[k]) * by);
  zoom *= by;
  draw(); point(event.offsetX, event.offsetY);
};
get("reset").onclick = reset; get("search").oninput = search; onresize = leave;
matchMedia("(prefers-color-scheme: dark)").onchange = draw;
for (const [group, name] of (names ?? []).entries()) {
  const item = document.createElement("span"), mark = document.createElement("i");
  mark.style.background = hue(group);
  item.append(mark, name);
  get("groups").append(item);
}
reset(); search();
"""


def scatter_page(
    points: Any, labels: Sequence[str], groups: Sequence[str] | None = None, title: str = "Embeddings"
) -> str:
    """HTML with `points` [N, K], such as `pca` gives; 3 dimensions turn when dragged. Thousands are no trouble.

    Pointing at one tells its label, a search marks all whose labels contain it, `groups` give colours. Raises
    ValueError where counts differ, or a number is not finite.
    """
    x_NK, names = _checked(points, labels, groups), None if groups is None else list(dict.fromkeys(groups))
    data = {
        "points": x_NK.tolist(),
        "labels": [visible(label) for label in labels],
        "groups": None if groups is None or names is None else [names.index(group) for group in groups],
        "names": names,
    }
    return page(title, BODY, SCRIPT, data, STYLE)


def draw_scatter(
    points: Any,
    labels: Sequence[str],
    groups: Sequence[str] | None = None,
    title: str = "",
    named: Sequence[int] | None = None,
) -> Figure:
    """The same as a figure; `named` are the points whose labels are written, None: all where there are but a few."""
    x_NK = _checked(points, labels, groups)
    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    axes: Any = figure.add_subplot(projection="3d" if x_NK.shape[1] == 3 else None)
    of_group = [""] * len(labels) if groups is None else groups
    for name in dict.fromkeys(of_group):
        some = x_NK[[own == name for own in of_group]]
        axes.scatter(*some.T, s=18 if len(labels) <= FEW else 6, alpha=0.8, linewidths=0, label=visible(name))
    if named is None:
        named = range(len(labels)) if len(labels) <= FEW else ()
    axes.set(title=title, xlabel="component 1", ylabel="component 2")
    if x_NK.shape[1] == 3:
        axes.set_zlabel("component 3")
        for i in named:
            axes.text(*x_NK[i], visible(labels[i]), fontsize=7, parse_math=False)
    else:
        axes.set_aspect("equal", adjustable="datalim")  # so that near is near
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if groups is not None:
        axes.legend(frameon=False, fontsize="small")
    if x_NK.shape[1] == 2:
        figure.draw_without_rendering()
        _write(axes, x_NK, labels, named)
    return figure


def _write(axes: Any, x_N2: np.ndarray, labels: Sequence[str], named: Sequence[int]) -> None:
    """Each label at the first place around its point where nothing stands yet, and at the first of all if none is."""
    corners = axes.transData.transform(x_N2[list(named)])
    taken = [Bbox.from_bounds(x - 2, y - 2, 4, 4) for x, y in corners]
    for i in named:
        note = axes.annotate("", x_N2[i], PLACES[0], textcoords="offset points", fontsize=7, va="center")
        note.set(text=visible(labels[i]), parse_math=False)
        for place in (*PLACES, PLACES[0]):
            note.set(position=place, ha="left" if place[0] > 0 else "right")
            box = note.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _checked(points: Any, labels: Sequence[str], groups: Sequence[str] | None) -> np.ndarray:
    x_NK = np.asarray(points, np.float32)
    counts = {"labels": len(labels)} | ({} if groups is None else {"groups": len(groups)})
    wrong = [f"{count} {name}" for name, count in counts.items() if x_NK.ndim == 2 and count != len(x_NK)]
    if x_NK.ndim != 2 or x_NK.shape[1] not in (2, 3) or not np.isfinite(x_NK).all():
        wrong.append("expected finite numbers [N, 2] or [N, 3]")
    if wrong:
        raise ValueError(f"points {x_NK.shape}: {'; '.join(wrong)}")
    return x_NK
