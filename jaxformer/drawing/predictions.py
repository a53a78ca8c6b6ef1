"""What a model expects, as pictures and as a page. N tokens, K choices, L layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxformer.drawing.page import page
from jaxformer.inspect.embeddings import visible

PER_ROW = 30
"""Tokens that stand side by side in a figure of losses."""
STYLE = """
#text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2; max-width: 60rem; }
#text span { padding: .2rem 0; border-radius: 3px; cursor: default; }
#text span:hover, #text span:focus { outline: 2px solid var(--accent); }
#told { position: absolute; padding: .5rem .8rem; border-radius: 6px; background: var(--back); pointer-events: none;
        border: 1px solid var(--line); box-shadow: 0 2px 10px #0004; }
#told td { padding: 0 .6rem 0 0; white-space: pre; } #told .bar { height: .6rem; background: var(--accent); }
#told tr.own { font-weight: 700; } #told .number { text-align: right; font-variant-numeric: tabular-nums; }
#scale { display: flex; gap: .5rem; align-items: center; margin-bottom: 1rem; }
#scale i { width: 10rem; height: .8rem; border-radius: 3px; }
"""
BODY = """<div id="scale"><span>0</span><i></i><span id="most"></span><span id="mean"></span></div>
<div id="text"></div><div id="told" hidden></div>"""
SCRIPT = """
const {before, tokens, loss, choices, probability} = DATA, told = document.getElementById("told");
const make = (kind, text, name = "") =>
  Object.assign(document.createElement(kind), {textContent: text, className: name});
const share = p => `${(100 * p).toFixed(p < .001 ? 3 : 1)}%`, most = Math.max(...loss, 1e-9);
const tint = nats => `rgb(235 80 40 / ${(.85 * nats / most).toFixed(3)})`;
const seen = text => text.replace(/\\n/g, "\\u23ce\\n");
const flat = text => text.trim() ? text.replace(/\\n/g, "\\u23ce") : JSON.stringify(text);
document.querySelector("#scale i").style.background = `linear-gradient(to right, ${tint(0)}, ${tint(most)})`;
document.getElementById("most").textContent = `${most.toFixed(2)} nats`;
const mean = loss.reduce((sum, x) => sum + x, 0) / loss.length;
document.getElementById("mean").textContent =
  `mean ${mean.toFixed(3)} nats a token, perplexity ${Math.exp(mean).toFixed(2)}`;
function tell(i, span) {
  const table = document.createElement("table"), own = Math.exp(-loss[i]);
  told.replaceChildren(make("div", `${flat(tokens[i])}: ${loss[i].toFixed(3)} nats, ${share(own)}`), table);
  choices[i].forEach((choice, k) => {
    const row = table.insertRow(), bar = make("div", "", "bar");
    row.className = choice === tokens[i] ? "own" : "";
    row.append(make("td", flat(choice)), make("td", share(probability[i][k]), "number"), make("td", ""));
    bar.style.width = `${8 * probability[i][k]}rem`;
    row.lastChild.append(bar);
  });
  told.hidden = false;
  const box = span.getBoundingClientRect();
  told.style.left = `${scrollX + Math.max(4, Math.min(box.left, innerWidth - told.offsetWidth - 20))}px`;
  const below = box.bottom + 6 + told.offsetHeight < innerHeight || box.top < told.offsetHeight + 6;
  told.style.top = `${scrollY + (below ? box.bottom + 6 : box.top - told.offsetHeight - 6)}px`;
}
const text = document.getElementById("text");
text.append(seen(before));
tokens.forEach((token, i) => {
  const span = make("span", seen(token));
  span.style.background = tint(loss[i]);
  span.tabIndex = 0;
  span.onpointerenter = span.onfocus = () => tell(i, span);
  span.onpointerleave = span.onblur = () => told.hidden = true;
  text.append(span);
});
"""


def losses_page(
    tokens: Sequence[str],
    loss: Any,
    choices: Sequence[Sequence[str]],
    probability: Any,
    title: str = "Loss per token",
    before: str = "",
) -> str:
    """HTML with a text whose N tokens are the redder the less they were foreseen; pointing at one tells what was.

    `loss` [N] is in nats; `choices` and `probability` [N, K] are what had been thought likeliest. `before` is text
    that was given and not foreseen, such as the first token. Raises ValueError where sizes differ.
    """
    loss_N, p_NK = np.asarray(loss, np.float32), np.asarray(probability, np.float32)
    shape = (len(choices), len(choices[0]) if choices else 0)
    if not (loss_N.shape == (len(tokens),) == p_NK.shape[:1] and p_NK.shape == shape):
        raise ValueError(
            f"{len(tokens)} tokens, loss {loss_N.shape}, choices {shape}, probability {p_NK.shape}: expected "
            "N tokens, loss [N], choices and probability [N, K]"
        )
    told = {"before": before, "tokens": [*tokens], "choices": [[*each] for each in choices]}
    return page(title, BODY, SCRIPT, told | {"loss": loss_N.tolist(), "probability": p_NK.tolist()}, STYLE)


def draw_losses(tokens: Sequence[str], loss: Any, title: str = "") -> Figure:
    """Bars of the loss [N], in nats, of each token, in rows that are read like lines; dashed is the mean."""
    loss_N = np.asarray(loss, np.float64)
    _same("tokens", (len(tokens),), "loss", loss_N.shape)
    starts = range(0, max(len(loss_N), 1), PER_ROW)
    widest, top = min(PER_ROW, max(len(loss_N), 1)), 1.05 * max(loss_N.max(initial=0), 1e-3)
    size = (max(4.0, 0.42 * widest + 1), 2.4 * len(starts))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    rows: Any = figure.subplots(len(starts), 1, squeeze=False)[:, 0]
    for axes, start in zip(rows, starts, strict=True):
        some = loss_N[start : start + PER_ROW]
        axes.bar(range(len(some)), some, color=colormaps["OrRd"](0.25 + 0.7 * some / top), width=0.85)
        axes.axhline(loss_N.mean(), color="0.4", linewidth=0.8, linestyle="--")
        _ticks(axes.set_xticks, tokens[start : start + PER_ROW], rotation=60, ha="right", rotation_mode="anchor")
        axes.set(xlim=(-0.6, widest - 0.4), ylim=(0, top), ylabel="loss (nats)")
        axes.spines[["top", "right"]].set_visible(False)
    rows[0].set_title(title)
    return figure


def draw_distribution(pieces: Sequence[str], probability: Any, title: str = "") -> Figure:
    """Bars of the probability [K] of each of K pieces, the first on top."""
    p_K = np.asarray(probability, np.float64)
    _same("pieces", (len(pieces),), "probability", p_K.shape)
    figure = Figure(figsize=(5, 0.28 * len(p_K) + 0.9), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(range(len(p_K)), p_K)
    axes.bar_label(bars, [f"{100 * p:.1f}%" for p in p_K], padding=3, fontsize=8)
    _ticks(axes.set_yticks, pieces)
    axes.set(title=title, xlabel="probability", xlim=(0, min(1.0, 1.2 * p_K.max(initial=0)) or 1))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_lens(pieces: Sequence[Sequence[str]], probability: Any, tokens: Sequence[str], title: str = "") -> Figure:
    """The logit lens as a table: a row for each of L + 1 layers, the last on top, a column for each of N tokens read.

    In each field stands the likeliest piece [L + 1, N], coloured by its `probability`.
    """
    p_LN = np.asarray(probability, np.float64)
    shape = (len(pieces), len(tokens))
    _same("pieces and tokens", shape, "probability", p_LN.shape)
    _same("tokens in each row", (len(tokens),) * len(pieces), "pieces", tuple(map(len, pieces)))
    size = (0.85 * shape[1] + 1.6, 0.24 * shape[0] + 1.3)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(p_LN, origin="lower", aspect="auto", cmap="Blues", vmin=0, vmax=1)
    for (layer, place), p in np.ndenumerate(p_LN):
        piece, ink = visible(pieces[layer][place]), "white" if p > 0.55 else "black"
        shown = piece if len(piece) <= 11 else f"{piece[:10]}…"
        axes.text(place, layer, shown, ha="center", va="center", fontsize=7, color=ink, parse_math=False)
    _ticks(axes.set_xticks, tokens, rotation=40, ha="right", rotation_mode="anchor")
    names = ["embedded", *map(str, range(1, shape[0]))]
    axes.set_yticks(range(shape[0]), names, fontsize=7)
    axes.set(title=title, xlabel="token that was read", ylabel="behind layer")
    figure.colorbar(image, label="probability", aspect=30, pad=0.01)
    return figure


def _ticks(put: Any, texts: Sequence[str], **how: Any) -> None:
    put(range(len(texts)), [visible(text) for text in texts], fontsize=8, parse_math=False, **how)


def _same(what: str, expected: tuple[int, ...], other: str, found: tuple[int, ...]) -> None:
    if expected != found:
        raise ValueError(f"{what} are {expected}, {other} is {found}: expected the same")
