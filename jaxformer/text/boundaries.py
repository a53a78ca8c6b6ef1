"""Where words begin and sentences end, read off how a vocabulary writes its pieces."""

from functools import lru_cache

import numpy as np

from jaxformer.text.offsets import BYTE
from jaxformer.text.sentencepiece import MARK
from jaxformer.text.tokenizer import Tokenizer

CONTINUED = "##"
BYTES = str.maketrans({"Ġ": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"})  # how byte-level vocabularies write spaces
MANNERS = (MARK, " ", "Ġ", CONTINUED)
"""With what pieces begin that begin a word, or that do not: that of the most pieces is the vocabulary's manner."""
STOPS, WIDE_STOPS = tuple(".!?"), tuple("。！？")
CLOSING = "\"'”’»)]} \t\r\n"


class Boundaries:
    """What the ids of a vocabulary tell of words and sentences; special ids tell nothing.

    A vocabulary that marks neither the beginnings of words nor what goes on has pieces that are words.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [_piece(tokenizer, id) for id in range(tokenizer.vocab_size)]
        counts = {manner: sum(piece.startswith(manner) for piece in pieces) for manner in MANNERS}
        manner = max(counts, key=lambda each: counts[each])
        texts = [_text(piece, manner) for piece in pieces]
        if manner == CONTINUED or not counts[manner]:
            begins = [not piece.startswith(CONTINUED) for piece in pieces]
        else:
            begins = [text[:1].isspace() for text in texts]
        bare = [text.rstrip(CLOSING) for text in texts]
        self._begins = np.array(begins)
        self._breaks = np.array([text.endswith(("\n", "\t", "\r")) for text in texts])
        self._stops = np.array([text.endswith(STOPS) for text in bare])
        self._ends = np.array([text.endswith(WIDE_STOPS) for text in bare])
        self._ends |= self._stops & np.array([text[-1:].isspace() for text in texts])

    def word_starts(self, tokens: np.ndarray) -> np.ndarray:
        """Whether a word begins at each of `tokens` [T]: after a space, a line's end, or nothing. Bool [T].

        Punctuation is part of the word before it, but for vocabularies of "##".
        """
        starts = self._begins[tokens]
        starts[1:] |= self._breaks[tokens[:-1]]
        starts[:1] = True
        return starts

    def sentence_ends(self, tokens: np.ndarray) -> np.ndarray:
        """Whether a sentence ends at each of `tokens` [T]: a full stop, behind which a word begins, or nothing.

        Bool [T]. As in BART (Lewis et al., 2020, section 2.2) no grammar takes part: an abbreviation ends one too.
        """
        last = np.ones(len(tokens), bool)
        last[:-1] = self.word_starts(tokens)[1:]
        return self._ends[tokens] | (self._stops[tokens] & last)


def boundaries(tokenizer: Tokenizer) -> Boundaries:
    """Those of a tokenizer, made once."""
    return _made(tokenizer)  # type: ignore[arg-type]


_made = lru_cache(maxsize=4)(Boundaries)


def _piece(tokenizer: Tokenizer, id: int) -> str:
    try:
        return tokenizer.piece(id)
    except IndexError:  # vocabularies have holes
        return ""


def _text(piece: str, manner: str) -> str:
    """What a piece stands for, as far as spaces and punctuation go."""
    if manner == CONTINUED:
        return piece.removeprefix(CONTINUED)
    if manner == "Ġ":
        return piece.translate(BYTES)
    return chr(int(piece[3:5], 16)) if BYTE.fullmatch(piece) else piece.replace(MARK, " ")
