"""Where in a text each of its tokens stands, counted in characters."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import accumulate, groupby

from jaxformer.text.sentencepiece import MARK
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.text.tokenizer_json import JsonTokenizer

Span = tuple[int, int]
"""The first character, and the one behind the last."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how sentencepiece writes a byte of a character that it has no piece for
WORD = re.compile(r"\S+")
CLEANED = frozenset("\"'`" + MARK)
"""What a tokenizer may write otherwise, beside spaces, marks and control characters."""


def offsets(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[Span]]:
    """(the ids that `encode` gives, where each stands in the text), spaces left out at both ends of a span.

    Spans never go back. That of a token of spaces, or of what the tokenizer adds to a text, is empty; tokens that
    are bytes of one character, or parts of one unknown word, each have the span of all of it.
    """
    ids, spans, _ = raw_offsets(tokenizer, text)
    return ids, [_stripped(text, *span) for span in spans]


def raw_offsets(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[Span], list[int | None]]:
    """(ids, spans, words): as `offsets`, with what spaces a tokenizer takes into its tokens, and the number of each
    one's word; None where the tokenizer cuts no words.
    """
    if isinstance(tokenizer, JsonTokenizer):
        encoding = tokenizer.inner.encode_batch([text], add_special_tokens=False)[0]
        return encoding.ids, encoding.offsets, encoding.word_ids
    ids = tokenizer.encode(text)
    unknown = tokenizer.specials.get("unk")
    return ids, aligned(text, ["" if id == unknown else tokenizer.piece(id) for id in ids]), [None] * len(ids)


def aligned(text: str, pieces: Sequence[str]) -> list[Span]:
    """Where the pieces of a sentencepiece model stand in a text that they make up, whatever it does to case, accents,
    spaces and compatible forms of characters. "" is a piece of which is not known what it stands for.
    """
    letters, places = _letters(text)
    joined = _characters(pieces)
    found = _found(letters, [_letters(piece or "")[0] for piece in joined])
    starts = [places[place[0]][0] if place else len(text) for place in found]
    stops = [places[place[1] - 1][1] if place else 0 for place in found]
    spans, before = list[Span](), 0
    for is_known, group in groupby(range(len(pieces)), lambda i: found[i] is not None):
        some = [*group]
        if is_known:
            spans += [(starts[i], stops[i]) for i in some]
            before = stops[some[-1]]
        else:
            after = max(before, starts[some[-1] + 1] if some[-1] + 1 < len(pieces) else len(text))
            spans += _shared(text, before, after, [pieces[i] for i in some])
    for i, piece in enumerate(joined):
        if piece is None:
            spans[i] = spans[i - 1]
    return spans


def _characters(pieces: Sequence[str]) -> list[str | None]:
    """The pieces, with bytes put together: a character stands for the first of its bytes, None for the others."""
    out = list[str | None]()
    for are_bytes, run in groupby(pieces, lambda piece: BYTE.fullmatch(piece) is not None):
        if are_bytes:
            data = bytes(int(piece[3:5], 16) for piece in run)
            for character in data.decode(errors="surrogateescape"):
                size = len(character.encode(errors="surrogateescape"))
                out += [character, *[None] * (size - 1)]
        else:
            out += run
    return out


def _shared(text: str, start: int, stop: int, pieces: Sequence[str]) -> list[Span]:
    """Where pieces stand that make up this part of the text: a word each, where each begins one; else all of it."""
    words = [(start + word.start(), start + word.end()) for word in WORD.finditer(text[start:stop])]
    begun = [*accumulate(i == 0 or piece[:1] in (" ", MARK) for i, piece in enumerate(pieces))]
    return [words[i - 1] if len(words) == begun[-1] else (start, stop) for i in begun]


def _found(letters: str, wanted: Sequence[str]) -> list[Span | None]:
    """Where in `letters` the wanted ones stand, in their order; None for those that are empty or not there.

    What follows another stands right behind it. Behind what is not known as many as possible are sought together.
    """
    found: list[Span | None] = [None] * len(wanted)
    at, first, gap = 0, 0, False
    while first < len(wanted):
        last = first
        while last < len(wanted) and wanted[last]:
            last += 1
        while last > first and not _is_there(letters, run := "".join(wanted[first:last]), at, gap):
            last = first + (last - first) // 2
        if last == first:
            first, gap = first + 1, True
            continue
        at = letters.find(run, at)
        for i in range(first, last):
            found[i] = at, at + len(wanted[i])
            at += len(wanted[i])
        first, gap = last, False
    return found


def _is_there(letters: str, run: str, at: int, gap: bool) -> bool:
    return letters.find(run, at) >= 0 if gap else letters.startswith(run, at)


def _letters(text: str) -> tuple[str, list[Span]]:
    """What no tokenizer loses of a text, and for each letter of it its place in the text with the marks behind it."""
    letters, places = list[str](), list[Span]()
    for i, character in enumerate(text):
        kept = [c for c in unicodedata.normalize("NFKD", character).casefold() if _is_kept(c)]
        if not kept and places and unicodedata.category(character)[0] == "M":
            places[-1] = places[-1][0], i + 1
        letters += kept
        places += [(i, i + 1)] * len(kept)
    return "".join(letters), places


def _is_kept(character: str) -> bool:
    return not (
        character.isspace() or character in CLEANED or unicodedata.category(character) in ("Cc", "Cf", "Mn", "Me")
    )


def _stripped(text: str, start: int, stop: int) -> Span:
    """The span without spaces at its ends; of spaces alone the place behind them."""
    while start < stop and text[start].isspace():
        start += 1
    while start < stop and text[stop - 1].isspace():
        stop -= 1
    return start, stop
