"""Attention maps as figures for papers, and as a page to look around in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # unlike pyplot it leaves no global state
from matplotlib.layout_engine import ConstrainedLayoutEngine

from jaxformer.drawing.page import page
from jaxformer.inspect.attention import AttentionMap

COLORS = "Blues"


def draw_head(of: AttentionMap, layer: int, head: int, title: str = "") -> Figure:
    """One head: a row of each query, a column of each key, white where nothing is looked at.

    `figure.savefig("head.pdf")` writes it. Raises ValueError for a layer or a head that the map does not have.
    """
    shown = of.probabilities[_known(of, "layer", layer, 0), _known(of, "head", head, 1)]
    rows, columns = shown.shape
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(2 + 0.27 * columns, 1.4 + 0.27 * rows), dpi=150, layout=layout)
    axes = figure.add_subplot()
    image = axes.imshow(shown, cmap=COLORS, vmin=0, vmax=1)
    # A dollar sign in a text is no formula
    axes.set_xticks(
        range(columns), _labels(of.keys), rotation=55, ha="right", rotation_mode="anchor", parse_math=False
    )
    axes.set_yticks(range(rows), _labels(of.queries), parse_math=False)
    axes.set(xlabel="looked at", ylabel="looks")
    axes.set_title(title or f"layer {layer}, head {head}", parse_math=False)
    axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("0.8")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=24, pad=0.02, ticks=(0, 0.5, 1), label="probability")
    bar.outline.set_visible(False)
    return figure


def draw_heads(of: AttentionMap, layers: Sequence[int] | None = None, title: str = "") -> Figure:
    """All heads, a row of each layer (of `layers`; None: of all), each as `draw_head` has it, without the texts."""
    chosen = range(len(of.probabilities)) if layers is None else [_known(of, "layer", each, 0) for each in layers]
    heads = of.probabilities.shape[1]
    tall = len(of.queries) / len(of.keys)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=(0.5 + 0.75 * heads, 0.6 + 0.75 * tall * len(chosen)), dpi=150, layout=layout)
    grid = figure.subplots(len(chosen), heads, squeeze=False)
    for row, layer in zip(grid, chosen, strict=True):
        for head, axes in enumerate(row):
            axes.imshow(of.probabilities[layer, head], cmap=COLORS, vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.8")
            if layer == chosen[0]:
                axes.set_title(str(head), fontsize=8, pad=3)
        row[0].set_ylabel(str(layer), fontsize=8, rotation=0, ha="right", va="center")
    figure.supxlabel("head", fontsize=9)
    figure.supylabel("layer", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def attention_page(maps: Mapping[str, AttentionMap], title: str, layer: int = 0, head: int = 0) -> str:
    """One HTML file for maps by their names, as `attention_maps` gives them; `by_words` of them may stand beside.

    It shows one head as a matrix or as lines between two columns, and all heads small, beside it; probabilities are
    rounded to three digits. `layer` and `head`, of the first map, are shown when it is opened.
    """
    if not maps:
        raise ValueError("there is no map to show")
    first = next(iter(maps.values()))
    _known(first, "layer", layer, 0)
    _known(first, "head", head, 1)
    told = {name: _told(of) for name, of in maps.items()}
    return page(title, BODY, SCRIPT, {"maps": told, "layer": layer, "head": head}, STYLE)


def _told(of: AttentionMap) -> dict[str, Any]:
    thousandths = lambda array: np.rint(1000 * array).astype(int).ravel().tolist()
    layers, heads = of.probabilities.shape[:2]
    return {
        "queries": _labels(of.queries),
        "keys": _labels(of.keys),
        "layers": layers,
        "heads": heads,
        "thousandths": thousandths(of.probabilities),
        "uniform": thousandths(of.uniform),
    }


def _labels(units: Sequence[Any]) -> list[str]:
    return [unit.label for unit in units]


def _known(of: AttentionMap, what: str, number: int, axis: int) -> int:
    count = of.probabilities.shape[axis]
    if not 0 <= number < count:
        raise ValueError(f"{what} {number}: this map has {what}s 0 to {count - 1}")
    return number


STYLE = """
form { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin: .8rem 0 1rem; }
label { display: flex; align-items: center; gap: .4rem; }
main { display: flex; flex-wrap: wrap; gap: 2rem 3rem; align-items: flex-start; }
figure { margin: 0; } figcaption { opacity: .7; font-size: .85rem; margin-bottom: .4rem; }
svg { display: block; max-width: 100%; height: auto; touch-action: none; cursor: crosshair; }
svg text { fill: currentColor; dominant-baseline: central; } svg text.lit { font-weight: 700; fill: var(--accent); }
.cell { fill: var(--accent); stroke: var(--line); stroke-width: .5; }
.cell.lit { stroke: var(--ink); stroke-width: 1.5; }
.link { stroke: var(--accent); fill: none; } .number { fill: var(--accent); font-variant-numeric: tabular-nums; }
#told { min-height: 1.6rem; margin: 0 0 .6rem; font-variant-numeric: tabular-nums; }
#told b { color: var(--accent); }
#heads { color: var(--accent); cursor: pointer; display: block; }
#closest { display: flex; flex-wrap: wrap; gap: .4rem; max-width: 36rem; margin-top: .8rem; min-height: 2rem; }
.ramp { display: inline-block; width: 7rem; height: .7rem; vertical-align: -1px; border: 1px solid var(--line); }
"""

BODY = """<form>
<label>attention <select id="map"></select></label>
<label>layer <select id="layer"></select></label>
<label>head <select id="head"></select></label>
<label>shown as <select id="view"><option>matrix</option><option>lines</option></select></label>
<span>0 <canvas class="ramp" id="ramp" width="112" height="11"></canvas> 1</span>
</form>
<main>
<figure><p id="told" role="status"></p><svg id="head-map" role="img"></svg><div id="closest"></div></figure>
<figure><figcaption>All heads: a row of each layer. Choose one.</figcaption><canvas id="heads"></canvas></figure>
</main>"""

# Colours follow the root of the probability: of heads that look at twenty pieces the small ones would be lost.
SCRIPT = r"""
const $ = id => document.getElementById(id);
const strength = Math.sqrt, number = p => p.toFixed(3);
let map, layer = DATA.layer, head = DATA.head;
const probability = (l, h, t, s) =>
  map.thousandths[((l * map.heads + h) * map.queries.length + t) * map.keys.length + s] / 1000;
const uniform = (l, t, s) => map.uniform[(l * map.queries.length + t) * map.keys.length + s] / 1000;

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}
function choices(select, labels, chosen) {
  select.replaceChildren(...labels.map((label, i) => new Option(label, i, false, i === chosen)));
}
const short = label => [...label].length > 18 ? [...label].slice(0, 17).join("") + "…" : label;
const pen = document.createElement("canvas").getContext("2d");
function widest(labels, size) {
  pen.font = size + "px system-ui, sans-serif";
  return Math.max(...labels.map(label => pen.measureText(short(label)).width));
}
function tell(t, s) {
  const bold = document.createElement("b");
  bold.textContent = number(probability(layer, head, t, s));
  $("told").replaceChildren(`${map.queries[t]} → ${map.keys[s]}  `, bold,
    `  in layer ${layer}, head ${head}; a uniform look gives ${number(uniform(layer, t, s))}`);
}
function hint(text) { $("told").textContent = text; }

function matrix(svg) {
  const rows = map.queries.length, columns = map.keys.length;
  const size = Math.max(9, Math.min(30, Math.floor(640 / Math.max(rows, columns))));
  const font = Math.min(14, size), left = widest(map.queries, font) + 12;
  const slant = widest(map.keys, font), top = .82 * slant + 22;
  const right = .6 * slant + 8;
  svg.setAttribute("viewBox", `0 0 ${left + columns * size + right} ${top + rows * size + 2}`);
  svg.setAttribute("width", left + columns * size + right);
  svg.style.fontSize = font + "px";
  const place = { x: s => left + (s + .5) * size, y: t => top + (t + .5) * size };
  const names = {
    rows: map.queries.map((label, t) =>
      element("text", { x: left - 7, y: place.y(t), "text-anchor": "end" }, short(label))),
    columns: map.keys.map((label, s) =>
      element("text", { transform: `translate(${place.x(s)} ${top - 9}) rotate(-55)` }, short(label))),
  };
  const cells = [];
  for (let t = 0; t < rows; t++) for (let s = 0; s < columns; s++) {
    const p = probability(layer, head, t, s);
    if (!p && !uniform(layer, t, s)) continue;
    cells[t * columns + s] = element("rect", { class: "cell", x: left + s * size, y: top + t * size, width: size,
      height: size, "fill-opacity": strength(p), "data-query": t, "data-key": s });
  }
  const mark = element("rect", { class: "cell lit", width: size, height: size, fill: "none", visibility: "hidden",
    "pointer-events": "none", style: "fill: none" });
  svg.append(...names.rows, ...names.columns, ...cells.filter(Boolean), mark);
  const clear = () => svg.querySelectorAll("text.lit").forEach(each => each.classList.remove("lit"));
  svg.onpointermove = event => {
    const { query, key } = event.target.dataset;
    if (query === undefined) return;
    clear();
    names.rows[query].classList.add("lit");
    names.columns[key].classList.add("lit");
    mark.setAttribute("x", left + key * size);
    mark.setAttribute("y", top + query * size);
    mark.setAttribute("visibility", "visible");
    tell(+query, +key);
  };
  svg.onpointerleave = () => { clear(); mark.setAttribute("visibility", "hidden"); };
  svg.onclick = ({ target: { dataset: { query, key } } }) => query !== undefined && closest(+query, +key);
  hint("Point at a field; click on it to find the heads that tie the same two.");
}

function lines(svg) {
  const size = 24, wide = 260, number_width = 52, rows = Math.max(map.queries.length, map.keys.length);
  const left = widest(map.queries, 14) + number_width, right = widest(map.keys, 14) + number_width;
  svg.setAttribute("viewBox", `0 0 ${left + wide + right} ${rows * size + 8}`);
  svg.setAttribute("width", left + wide + right);
  svg.style.fontSize = "14px";
  const y = i => 4 + (i + .5) * size, links = [];
  map.queries.forEach((_, t) => map.keys.forEach((_, s) => {
    const p = probability(layer, head, t, s);
    if (p < .005) return;
    const middle = left + wide / 2;
    const d = `M${left + 8} ${y(t)}C${middle} ${y(t)} ${middle} ${y(s)} ${left + wide - 8} ${y(s)}`;
    links.push({ t, s, p, drawn: element("path", { class: "link", d, "stroke-width": 1 + 3 * p,
      "stroke-opacity": p, "pointer-events": "none" }) });
  }));
  const numbers = element("g", {});
  const side = (labels, x, anchor, name) => labels.map((label, i) =>
    element("text", { x, y: y(i), "text-anchor": anchor, ["data-" + name]: i }, short(label)));
  const queries = side(map.queries, left, "end", "query"), keys = side(map.keys, left + wide, "start", "key");
  svg.append(...links.map(link => link.drawn), ...queries, ...keys, numbers);
  const show = own => {
    for (const { drawn, ...link } of links)
      drawn.setAttribute("stroke-opacity", !own ? link.p : own(link) ? strength(link.p) : 0);
    numbers.replaceChildren();
    svg.querySelectorAll("text.lit").forEach(each => each.classList.remove("lit"));
  };
  svg.onpointermove = event => {
    const { query, key } = event.target.dataset, of_query = query !== undefined;
    if (!of_query && key === undefined) return;
    const own = link => of_query ? link.t === +query : link.s === +key;
    show(own);
    event.target.classList.add("lit");
    for (const link of links.filter(own)) {
      const [x, at, anchor] = of_query ? [left + wide + right, link.s, "end"] : [0, link.t, "start"];
      numbers.append(element("text", { class: "number", x, y: y(at), "text-anchor": anchor }, number(link.p)));
    }
    const most = links.filter(own).sort((a, b) => b.p - a.p)[0];
    if (most) tell(most.t, most.s);
  };
  svg.onpointerleave = () => show();
  svg.onclick = null;
  hint("Point at a word: on the left what it looks at, on the right what looks at it. The strongest is told here.");
}

function closest(t, s) {
  const all = [];
  for (let l = 0; l < map.layers; l++) for (let h = 0; h < map.heads; h++) all.push([probability(l, h, t, s), l, h]);
  all.sort((a, b) => b[0] - a[0]);
  const title = document.createElement("span");
  title.textContent = `${map.queries[t]} → ${map.keys[s]}, closest in layer · head:`;
  $("closest").replaceChildren(title, ...all.slice(0, 6).map(([p, l, h]) => {
    const button = document.createElement("button");
    button.textContent = `${l} · ${h}  ${number(p)}`;
    button.onclick = () => { choose(l, h); tell(t, s); };
    return button;
  }));
}

const EDGE = 22;
let thumb;
function heads() {
  const canvas = $("heads"), scale = window.devicePixelRatio || 1;
  const rows = map.queries.length, columns = map.keys.length;
  thumb = Math.max(14, Math.min(48, Math.floor(460 / map.heads), Math.floor(640 / map.layers)));
  const width = EDGE + map.heads * thumb + 2, height = EDGE + map.layers * thumb + 2;
  Object.assign(canvas, { width: width * scale, height: height * scale });
  Object.assign(canvas.style, { width: width + "px", height: height + "px" });
  const context = canvas.getContext("2d"), accent = getComputedStyle(canvas).color;
  const ink = getComputedStyle(document.body).color, inner = thumb - 3;
  context.scale(scale, scale);
  Object.assign(context, { font: "11px system-ui, sans-serif", textAlign: "center", textBaseline: "middle" });
  for (let h = 0; h < map.heads; h++) {
    context.fillStyle = ink;
    context.fillText(h, EDGE + (h + .5) * thumb, EDGE / 2);
  }
  for (let l = 0; l < map.layers; l++) {
    context.fillStyle = ink;
    context.fillText(l, EDGE / 2, EDGE + (l + .5) * thumb);
    for (let h = 0; h < map.heads; h++) {
      const x = EDGE + h * thumb + 1, y = EDGE + l * thumb + 1;
      context.fillStyle = accent;
      for (let t = 0; t < rows; t++) for (let s = 0; s < columns; s++) {
        const p = probability(l, h, t, s);
        if (p < .01) continue;
        context.globalAlpha = strength(p);
        context.fillRect(x + s * inner / columns, y + t * inner / rows, inner / columns, inner / rows);
      }
      const is_chosen = l === layer && h === head;
      Object.assign(context, { globalAlpha: is_chosen ? 1 : .25, strokeStyle: ink, lineWidth: is_chosen ? 2 : .5 });
      context.strokeRect(x - .5, y - .5, inner + 1, inner + 1);
      context.globalAlpha = 1;
    }
  }
}
$("heads").onclick = event => {
  const h = Math.floor((event.offsetX - EDGE) / thumb), l = Math.floor((event.offsetY - EDGE) / thumb);
  if (h >= 0 && h < map.heads && l >= 0 && l < map.layers) choose(l, h);
};
function ramp() {
  const context = $("ramp").getContext("2d");
  context.clearRect(0, 0, 112, 11);
  context.fillStyle = getComputedStyle($("heads")).color;
  for (let i = 0; i < 112; i++) { context.globalAlpha = strength(i / 111); context.fillRect(i, 0, 1, 11); }
}
function draw() {
  const svg = $("head-map");
  svg.replaceChildren();
  svg.setAttribute("aria-label", `attention of layer ${layer}, head ${head}`);
  ($("view").value === "lines" ? lines : matrix)(svg);
  heads();
  ramp();
}
function choose(l, h) {
  [layer, head] = [l, h];
  $("layer").value = l;
  $("head").value = h;
  draw();
}
function open_map() {
  map = Object.values(DATA.maps)[$("map").value];
  [layer, head] = [Math.min(layer, map.layers - 1), Math.min(head, map.heads - 1)];
  choices($("layer"), [...Array(map.layers).keys()], layer);
  choices($("head"), [...Array(map.heads).keys()], head);
  $("closest").replaceChildren();
  draw();
}
choices($("map"), Object.keys(DATA.maps), 0);
$("map").onchange = open_map;
$("layer").onchange = $("head").onchange = () => choose(+$("layer").value, +$("head").value);
$("view").onchange = draw;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
open_map();
"""
