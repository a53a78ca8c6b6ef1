import io
import json
from itertools import pairwise

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.testing import SENTENCES, tiny_tokenizer
from jaxformer.text.offsets import aligned, offsets
from jaxformer.text.sentencepiece import SentencePieceTokenizer
from jaxformer.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

LINES = [*SENTENCES * 3, "Café naïve Grüße, it's 3,000 dollars; the fine ABC ½.\n" * 4]
TEXTS = [
    "",
    "  ",
    "The fox",
    " a  fox,\n\tjumps ",
    "Äpfel, 日本語 fox 日本 x",
    "e\u0301 Cafe\u0301 A\u030a fox",
    "😀 fox 👩\u200d👧 ok 🇩🇪",
    "a\u200bb \ufeffc",
    "ﬁne ½ Ω ＡＢ",
    "İstanbul ß ΣΑΣ",
    "``quoted'' \"text\" 'a'",
    "\u2581 a\u2581b",
    "العربية क्षि ไทย",
    "<unk> <s> [UNK] <0x41>",
]


def model(**settings):
    out = io.BytesIO()
    settings = {"vocab_size": 120, "hard_vocab_limit": False, "minloglevel": 2, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=out, **settings)
    return out.getvalue()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    (folder / "spiece.model").write_bytes(model(model_type="unigram"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"keep_accents": False}))
    cleaning = {
        "kind": "sentencepiece",
        "special": {"unk": "<unk>", "pad": "<pad>", "eos": "</s>"},
        "before": ("<pad>", "</s>", "<unk>"),
        "skip": 3,
        "clean": ("spaces", "quotes", "accents", "lowercase"),
    }
    return {
        "lossless": tiny_tokenizer(),
        "byte_bpe": train_tokenizer(TokenizerConfig("byte_bpe", 300), LINES),
        "wordpiece": train_tokenizer(TokenizerConfig("wordpiece", 150), LINES),
        "unigram": SentencePieceTokenizer(model(model_type="unigram")),
        "bytes": SentencePieceTokenizer(model(model_type="bpe", byte_fallback=True, vocab_size=400)),
        "cleaning": load_tokenizer(folder, cleaning),
    }


KINDS = ["lossless", "byte_bpe", "wordpiece", "unigram", "bytes", "cleaning"]


def check(tokenizer, text):
    """The spans of a text: in order, inside, without spaces around."""
    ids, spans = offsets(tokenizer, text)
    assert ids == tokenizer.encode(text)
    assert len(spans) == len(ids)
    for a, b in pairwise(spans):
        assert a[0] <= b[0]
        assert a[1] <= b[1]
    for start, stop in spans:
        assert 0 <= start <= stop <= len(text)
        assert text[start:stop] == text[start:stop].strip()
    return spans


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_spans_are_in_order_and_hold_every_letter(tokenizers, kind, text):
    spans = check(tokenizers[kind], text)
    held = {i for start, stop in spans for i in range(start, stop)}
    assert not [c for i, c in enumerate(text) if i not in held and c.isalnum()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_span_of_a_word_is_that_of_its_pieces(tokenizers, kind):
    text = "The quick  brown fox jumps over it; the Café"
    spans = check(tokenizers[kind], text)
    for word in ("The", "quick", "brown", "fox", "jumps", "over", "Café"):
        start = text.index(word)
        inside = [span for span in spans if span[0] < span[1] and span[0] < start + len(word) and span[1] > start]
        assert (inside[0][0], inside[-1][1]) == (start, start + len(word))


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=30))
@settings(max_examples=60)
def test_any_text_has_spans(tokenizers, kind, text):
    check(tokenizers[kind], text)


def test_spans_worked_out_by_hand():
    assert aligned("Der Äpfel", ["▁der", "▁a", "pfel"]) == [(0, 3), (4, 5), (5, 9)]
    assert aligned("a 日本 語 b", ["▁a", "▁", "", "▁", "", "▁b"]) == [(0, 1), (2, 4), (2, 4), (5, 6), (5, 6), (7, 8)]
    assert aligned("日x", ["<0xE6>", "<0x97>", "<0xA5>", "x"]) == [(0, 1)] * 3 + [(1, 2)]
    assert aligned("``a''", ['▁"', "a", '"']) == [(0, 2), (2, 3), (3, 5)]
    assert aligned("e\u0301a", ["▁e", "a"]) == [(0, 2), (2, 3)]
    assert aligned("½b", ["▁1", "⁄", "2", "b"]) == [(0, 1)] * 3 + [(1, 2)]


def test_unknown_pieces_take_the_letters_that_their_neighbours_leave():
    assert aligned("a qu b", ["▁a", "", "▁b"]) == [(0, 1), (2, 4), (5, 6)]
    assert aligned("xu ub", ["", "▁u", "b"]) == [(0, 2), (3, 4), (4, 5)]  # what follows is sought as one
    assert aligned("abc", ["a", "", "c"]) == [(0, 1), (1, 2), (2, 3)]
    assert aligned("ab", ["", ""]) == [(0, 2), (0, 2)]


def test_what_no_rule_explains_is_taken_for_unknown():
    assert aligned("colour red", ["▁color", "▁red"]) == [(0, 6), (7, 10)]
    assert aligned("red", ["▁blue", "▁green"])[0] == (0, 3)
