"""The laws of cutting a text: nothing is lost, nothing stands twice, and what is unknown is said."""

import functools
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxformer.inspect.pieces import pieces, together, words
from jaxformer.testing import SENTENCES
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

KINDS = ("sentencepiece", "byte_bpe", "wordpiece")
TEXTS = (*SENTENCES, "unbelievable", "naïve 😀", "", "  ", "it's\tthe dog's", "Äpfel 日本語 ́ हिन्दी")


@functools.cache
def tokenizer(kind, size=320):
    return train_tokenizer(TokenizerConfig(kind, size, add_bos=True), [sentence * 3 for sentence in SENTENCES])


@pytest.mark.parametrize("kind", KINDS)
@given(st.text(max_size=20))
@settings(max_examples=60)
def test_pieces_are_what_the_model_reads(kind, text):
    mine = tokenizer(kind)
    assert [piece.id for piece in pieces(mine, text)] == mine.template(mine.encode(text))[0]
    found = pieces(mine, text, special=False)
    assert [piece.id for piece in found] == mine.encode(text)
    assert [piece.name for piece in found] == [mine.piece(piece.id) for piece in found]
    assert all(piece.text == text[slice(*piece.span)] and piece.label for piece in found)


@pytest.mark.parametrize("kind", KINDS[:2])
@given(st.text(max_size=20))
@settings(max_examples=60)
def test_the_bytes_of_the_pieces_are_the_text(kind, text):
    found = pieces(tokenizer(kind), text)
    assert b"".join(piece.data or b"" for piece in found).decode() == text
    for piece in found:
        assert (piece.kind == "special") == (piece.data is None)
        if piece.kind == "text":
            assert piece.text in piece.data.decode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_words_hold_every_piece_once_and_the_text_but_for_its_spaces(kind, text):
    found = pieces(tokenizer(kind), text)
    cut = words(found)
    assert tuple(piece for word in cut for piece in word.pieces) == found
    if kind != "wordpiece":  # it drops what it takes for no character
        assert "".join(word.text for word in cut) == "".join(text.split())
    for word in cut:
        assert len(word.pieces) == 1 or not any(c.isspace() for c in word.text)


def test_words_are_those_that_one_reads():
    cut = lambda text: [word.text for word in words(pieces(tokenizer("byte_bpe"), text)) if word.text]
    assert cut("The dog didn't 'quote' हिन्दी, naïve😀.") == [
        *("The", "dog", "didn't", "'", "quote", "'", "हिन्दी", ",", "naïve", "😀", ".")
    ]


def test_bytes_that_the_vocabulary_falls_back_to_and_what_it_does_not_know_are_marked():
    kinds = lambda kind, text: [(piece.label, piece.kind) for piece in pieces(tokenizer(kind), text, special=False)]
    assert ("C3", "byte") in kinds("sentencepiece", "naïve")
    assert kinds("sentencepiece", "😀") == [(f"{byte:02X}", "byte") for byte in "😀".encode()]
    assert kinds("byte_bpe", "😀") == [(f"{byte:02X}", "byte") for byte in "😀".encode()]
    assert kinds("wordpiece", "the 😀") == [("the", "text"), ("😀", "unknown")]
    first, *_, last = pieces(tokenizer("wordpiece"), "the 😀")
    assert [(piece.label, piece.kind) for piece in (first, last)] == [("[CLS]", "special"), ("[SEP]", "special")]
    assert {piece.text for piece in pieces(tokenizer("sentencepiece"), "naïve 😀") if piece.kind == "byte"} == {
        *("ï", "😀")
    }


@given(st.text(alphabet="abcdeï😀 ,'日", max_size=24))
@settings(max_examples=60)
@example("".join(SENTENCES))
def test_side_by_side_each_column_is_what_was_given_and_no_row_could_be_cut(text):
    sides = [pieces(tokenizer(kind), text) for kind in KINDS]
    rows = together(*sides)
    for column, side in zip(zip(*rows, strict=True), sides, strict=False):
        assert tuple(piece for cell in column for piece in cell) == side
    spans = [[piece.span for cell in row for piece in cell] for row in rows]
    for above, below in itertools.pairwise(spans):
        assert max(stop for _, stop in above) <= min(start for start, _ in below)
    for row in spans:
        first, stop = min(row), max(stop for _, stop in row)
        assert all(any(start < cut < end for start, end in row) for cut in range(first[0] + 1, stop))
