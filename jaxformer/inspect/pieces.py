"""How a tokenizer cuts a text: each piece, what it stands for, and which pieces make a word."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from jaxformer.text.offsets import BYTE, Span, offsets
from jaxformer.text.token_bytes import token_bytes
from jaxformer.text.tokenizer import Tokenizer

MARK = "\N{COMBINING GRAVE ACCENT}"
WORD = re.compile(rf"\w[\w{MARK}]*(?:['’]\w[\w{MARK}]*)*|[^\w\s]{MARK}*")  # of a text whose marks are all MARK
SHOWN = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"})


@dataclass(frozen=True)
class Piece:
    """One id of a text."""

    id: int
    name: str
    """How the vocabulary writes it."""
    kind: Literal["text", "byte", "unknown", "special"]
    """byte: one that the vocabulary falls back to, or part of a character; unknown: the text is lost."""
    text: str
    """The characters of the text that it stands for, those of which it is a byte too; "" for spaces alone."""
    span: Span
    """Where they stand: the first, and the one behind the last."""
    data: bytes | None
    """What it writes when it is decoded; None where it writes nothing, or this or that, as others follow."""
    word: int | None = None
    """The number of its word in the text; None for special tokens and spaces."""

    @property
    def label(self) -> str:
        """What to call it in a picture."""
        if self.kind == "byte" and self.data is not None:
            return self.data.strip(b" ").hex(" ").upper()
        if self.kind == "special":
            return self.name
        return self.text or (self.data or self.name.encode()).decode(errors="replace").translate(SHOWN)


@dataclass(frozen=True)
class Word:
    """Pieces that are one word of a text, or one that is none."""

    pieces: tuple[Piece, ...]
    text: str
    span: Span

    @property
    def label(self) -> str:
        """What to call it in a picture."""
        return self.text or " ".join(piece.label for piece in self.pieces)


def pieces(tokenizer: Tokenizer, text: str, special: bool = True) -> tuple[Piece, ...]:
    """The pieces of `text`; `special`: with the tokens that the tokenizer's template puts around it.

    A word is a run of letters, digits and marks (with apostrophes inside), or one other sign: where the script has
    no spaces, a run of letters is long. Words that share a piece count as one.
    """
    ids, spans = offsets(tokenizer, text)
    inside = [_piece(tokenizer, id, text, span) for id, span in zip(ids, spans, strict=True)]
    inside = _numbered(text, _by_bytes(text, inside) or inside)
    if not special:
        return tuple(inside)
    around, at = list[Piece](), 0
    for part, _ in tokenizer.template.single:
        if isinstance(part, str):
            around, at = [*around, *inside], len(text)
        else:
            around += [_piece(tokenizer, id, "", (at, at)) for id in part]
    return tuple(around)


def words(pieces: Sequence[Piece]) -> tuple[Word, ...]:
    """The pieces put together to words; special tokens and spaces stay alone."""
    keys = [(piece.word, i if piece.word is None else 0) for i, piece in enumerate(pieces)]
    runs = (tuple(pieces[i] for i in run) for _, run in groupby(range(len(pieces)), lambda i: keys[i]))
    return tuple(Word(run, _joined(run), (run[0].span[0], max(piece.span[1] for piece in run))) for run in runs)


def together(*sides: Sequence[Piece]) -> tuple[tuple[tuple[Piece, ...], ...], ...]:
    """Pieces of one text by several tokenizers, side by side: rows of the shortest stretches at whose ends all cut.

    Each row holds the pieces of each tokenizer; one column, top to bottom, is what was given.
    """
    rows, at = [], [0] * len(sides)
    while left := [side[i].span for side, i in zip(sides, at, strict=True) if i < len(side)]:
        first = min(left)
        stop, row = first[1], [list[Piece]() for _ in sides]
        while some := [k for k, side in enumerate(sides) if at[k] < len(side) and _within(side[at[k]], first, stop)]:
            for k in some:
                row[k].append(piece := sides[k][at[k]])
                at[k], stop = at[k] + 1, max(stop, piece.span[1])
        rows.append(tuple(map(tuple, row)))
    return tuple(rows)


def _within(piece: Piece, first: Span, stop: int) -> bool:
    return piece.span[0] < stop or piece.span == first


def _piece(tokenizer: Tokenizer, id: int, text: str, span: Span) -> Piece:
    name = tokenizer.piece(id)
    try:
        known = token_bytes(tokenizer)
        data = known[id] if id < len(known) else None
        is_silent = data is None
    except ValueError:
        data, is_silent = None, False
    kind: Literal["text", "byte", "unknown", "special"] = "text"
    if id == tokenizer.specials.get("unk") and span[0] < span[1]:
        kind = "unknown"
    elif is_silent or id in tokenizer.specials.values():
        kind = "special"
    elif data is not None and _is_byte(name, data):
        kind = "byte"
    return Piece(id, name, kind, text[slice(*span)], span, data)


def _is_byte(name: str, data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return len(data) == 1 and BYTE.fullmatch(name) is not None


def _by_bytes(text: str, pieces: Sequence[Piece]) -> list[Piece] | None:
    """The pieces where their bytes stand, if those are the text. (`offsets` goes by letters, and signs have none.)"""
    data = [piece.data or b"" for piece in pieces]
    if b"".join(data) != text.encode():
        return None
    owner = [i for i, character in enumerate(text) for _ in character.encode()]
    placed, at = list[Piece](), 0
    for piece, each in zip(pieces, data, strict=True):
        start, stop = (owner[at], owner[at + len(each) - 1] + 1) if each else (0, 0)
        at += len(each)
        lead = len(text[start:stop]) - len(text[start:stop].lstrip())
        span = start + lead, start + lead + len(text[start:stop].strip())
        placed.append(replace(piece, text=text[slice(*span)], span=span))
    return placed


def _numbered(text: str, pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with the numbers of their words. Spans never go back."""
    plain = "".join(MARK if unicodedata.category(c)[0] == "M" else c for c in text)
    spans = [match.span() for match in WORD.finditer(plain)]
    numbered, number, end, at = list[Piece](), -1, 0, 0
    for piece in pieces:
        start, stop = piece.span
        if start == stop and start >= end:
            numbered.append(piece)
            continue
        if start >= end:
            number += 1
        while at < len(spans) and spans[at][0] < stop:
            end, at = max(end, spans[at][1]), at + 1
        numbered.append(replace(piece, word=number))
    return numbered


def _joined(pieces: Sequence[Piece]) -> str:
    """Their text, that of several bytes once."""
    text, at = "", 0
    for piece in pieces:
        text, at = text + piece.text[max(at - piece.span[0], 0) :], max(at, piece.span[1])
    return text
