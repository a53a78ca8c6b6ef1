"""How tokenizers cut a text, as a table and as a page, side by side."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from jaxformer.drawing.page import page
from jaxformer.inspect.pieces import Piece, together

HEADER = ("piece", "id", "kind", "text", "characters", "bytes")


def pieces_table(tokenized: Mapping[str, Sequence[Piece]]) -> str:
    """Plain text. Of one tokenizer a line of each piece; of several, by their names, what stands for the same text.

    `tokenized`: {name: `pieces(tokenizer, text)`}, all of one text.
    """
    if len(tokenized) == 1:
        (only,) = tokenized.values()
        return _aligned([HEADER, *map(_row, only)])
    rows = [[" | ".join(map(_short, some)) for some in row] for row in together(*tokenized.values())]
    counts = [f"{name} ({len(some)})" for name, some in tokenized.items()]
    return _aligned([counts, *rows])


def pieces_page(tokenized: Mapping[str, Sequence[Piece]], title: str) -> str:
    """One HTML file: each piece in its place, with its id, what it stands for and its bytes where it is pointed at.

    `tokenized` as for `pieces_table`. Several tokenizers stand in columns, whose rows are stretches of the text at
    whose ends all of them cut.
    """
    if not tokenized:
        raise ValueError("there are no pieces to show")
    rows = [[[_told(piece) for piece in some] for some in row] for row in together(*tokenized.values())]
    return page(title, BODY, SCRIPT, {"names": list(tokenized), "rows": rows}, STYLE)


def _told(piece: Piece) -> dict[str, Any]:
    told = dict(zip(HEADER, _row(piece), strict=True))
    return told | {"id": piece.id, "label": piece.label, "word": piece.word}


def _row(piece: Piece) -> tuple[str, ...]:
    where = f"{piece.span[0]}:{piece.span[1]}" if piece.text else ""
    written = "" if piece.data is None else piece.data.hex(" ").upper()
    return repr(piece.name)[1:-1], str(piece.id), piece.kind, repr(piece.text)[1:-1], where, written


def _short(piece: Piece) -> str:
    marks = {"byte": " (byte)", "unknown": " (unknown)"}
    return f"{repr(piece.name)[1:-1]} {piece.id}{marks.get(piece.kind, '')}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = [[cell + " " * (size - _width(cell)) for cell, size in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * size for size in widths])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _width(text: str) -> int:
    """Columns of a terminal: characters of East Asia and emoji take two, marks none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


STYLE = """
:root { --even: light-dark(#e3edfb, #22324a); --odd: light-dark(#fbefdc, #46361f);
        --byte: light-dark(#e9e0fa, #3b2c5c); --lost: light-dark(#fbdcdc, #5c2626); }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; padding: .3rem 2rem .5rem 0; }
th small { font-weight: 400; opacity: .7; }
td { padding: .05rem 2rem .05rem 0; vertical-align: top; border-top: 1px solid var(--line); }
.piece { display: inline-flex; flex-direction: column; align-items: center; margin: .1rem .15rem .1rem 0;
         padding: .1rem .45rem; border-radius: 4px; border: 1px solid #0000; background: var(--even);
         line-height: 1.3; cursor: default; }
.piece.odd { background: var(--odd); } .piece.byte { background: var(--byte); }
.piece.unknown { background: var(--lost); }
.piece.special { background: none; border: 1px dashed var(--line); }
.piece:hover, .piece:focus { border: 1px solid var(--ink); outline: none; }
.piece small { opacity: .65; font-size: .72rem; font-variant-numeric: tabular-nums; }
.piece code { font-size: .95rem; }
#told { min-height: 1.6rem; font-variant-numeric: tabular-nums; }
.legend { font-size: .85rem; }
"""
BODY = """<p class="legend">words in turns <span class="piece">this</span><span class="piece odd">that</span>
&ensp;<span class="piece byte">bytes</span><span class="piece unknown">unknown</span>
<span class="piece special">special</span></p>
<p id="told" role="status">Point at a piece.</p>
<table><thead><tr id="names"></tr></thead><tbody id="rows"></tbody></table>"""
SCRIPT = r"""
const $ = id => document.getElementById(id);
function made(name, text, classes) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (classes) element.className = classes;
  return element;
}
function tell(piece) {
  const parts = [`id ${piece.id}`, `written ${piece.piece}`, piece.kind];
  if (piece.text) parts.push(`stands for “${piece.text}”, characters ${piece.characters}`);
  if (piece.bytes) parts.push(`bytes ${piece.bytes}`);
  $("told").textContent = parts.join("  ·  ");
}
function chip(piece) {
  const chip = made("span", undefined, `piece ${piece.kind}${piece.word % 2 ? " odd" : ""}`);
  chip.tabIndex = 0;
  chip.append(made("code", piece.label), made("small", piece.id));
  chip.onpointerenter = chip.onfocus = () => tell(piece);
  return chip;
}
DATA.names.forEach((name, i) => {
  const count = DATA.rows.reduce((sum, row) => sum + row[i].length, 0), head = made("th", name + " ");
  head.append(made("small", count === 1 ? "1 piece" : `${count} pieces`));
  $("names").append(head);
});
if (DATA.names.length === 1) DATA.rows = [[DATA.rows.flatMap(row => row[0])]];
for (const row of DATA.rows) {
  const line = made("tr");
  for (const pieces of row) {
    const cell = made("td");
    cell.append(...pieces.map(chip));
    line.append(cell);
  }
  $("rows").append(line);
}
"""
