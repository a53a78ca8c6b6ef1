"""What each id writes: put on end, the bytes of ids are the text that they decode to."""

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from jaxformer import testing
from jaxformer.text.token_bytes import opening_bytes, token_bytes
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer
from jaxformer.text.tokenizer_json import JsonTokenizer

TEXTS = ["Hello world! It's 3,000.50 dollars.\n", "naïve café, 你好 🙂 déjà vu", "def f(x):\n\treturn  ▁x##y <s>"]


def library(decoder, *pieces):
    vocab = {piece: i for i, piece in enumerate(("<unk>", "</s>", *pieces))}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.decoder = decoder
    inner.add_special_tokens(["<unk>", "</s>"])
    inner.add_tokens([AddedToken("<plain>", special=False, normalized=False)])
    return JsonTokenizer(inner, {"unk": "<unk>", "eos": "</s>"})


class Characters:
    """A tokenizer of one's own: ids are code points, 0 is special."""

    vocab_size = 128

    def decode(self, ids):
        return "".join(map(chr, filter(None, ids)))


class Bytes(Characters):
    vocab_size = 256

    def decode(self, ids):
        return bytes(filter(None, ids)).decode(errors="replace")


PIECES = ("▁the", "fox", "▁", "▁▁", "é", "<0xE4>", "<0xBD>", "<0xA0>", "##s", ".", "'s", "n't")
BYTE_FALLBACK = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
KINDS = {
    "sentencepiece": lambda: train_tokenizer(TokenizerConfig("sentencepiece", 330), TEXTS * 3),
    "across words": lambda: train_tokenizer(TokenizerConfig("sentencepiece", 330, across_words=True), TEXTS * 3),
    "byte_bpe": lambda: train_tokenizer(TokenizerConfig("byte_bpe", 330, specials=("<mask>",)), TEXTS * 3),
    "wordpiece": lambda: train_tokenizer(TokenizerConfig("wordpiece", 330), TEXTS * 3),
    "tiny": testing.tiny_tokenizer,
    "metaspace": lambda: library(decoders.Metaspace(), *PIECES),
    "byte fallback": lambda: library(decoders.Sequence(BYTE_FALLBACK), *PIECES),
    "cleaned wordpiece": lambda: library(decoders.WordPiece(cleanup=True), *PIECES),
    "no decoder": lambda: library(None, *PIECES),
    "characters": Characters,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def strict(data):
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def test_the_bytes_of_ids_are_the_text_that_they_decode_to(tokenizer):
    written, opening = token_bytes(tokenizer), opening_bytes(tokenizer)
    known = [id for id, each in enumerate(written) if each is not None]
    begins = next(id for id in known if (strict(written[id]) or "").strip())
    random, compared = np.random.default_rng(0), 0
    for _ in range(300):
        ids = random.choice(known, random.integers(1, 5)).tolist()
        if (text := strict(b"".join(written[id] for id in ids))) is not None:
            assert tokenizer.decode([begins, *ids]) == tokenizer.decode([begins]) + text
            compared += 1
        if (
            opening[ids[0]]
            and (text := strict(opening[ids[0]] + b"".join(written[id] for id in ids[1:]))) is not None
        ):
            assert tokenizer.decode(ids) == text
    assert compared > 50


@pytest.mark.parametrize("kind", ["sentencepiece", "across words", "byte_bpe"])
def test_the_ids_of_a_text_write_its_bytes(kind):
    tokenizer = KINDS[kind]()
    for text in (*TEXTS, "\0 \x7f ￿", "  two  spaces ", "\ue000"):
        assert b"".join(token_bytes(tokenizer)[id] for id in tokenizer.encode(text)) == text.encode()


def test_special_ids_and_holes_write_nothing():
    tokenizer = KINDS["byte_bpe"]()
    written = token_bytes(tokenizer)
    assert len(written) == tokenizer.vocab_size
    assert [id for id, each in enumerate(written) if each is None] == [0, 1, 2, 3, tokenizer.id("<mask>")]
    plain = KINDS["metaspace"]()
    assert token_bytes(plain)[plain.id("<plain>")] == b"<plain>"
    vocab = {"<unk>": 0, "a": 5}
    assert token_bytes(JsonTokenizer(Tokenizer(models.WordLevel(vocab, "<unk>")), {"unk": "<unk>"})) == (
        *(None,) * 5,
        b" a",
    )


def test_what_has_no_bytes_of_its_own_is_refused():
    with pytest.raises(ValueError, match="BPEDecoder"):
        token_bytes(library(decoders.BPEDecoder(), "a</w>"))
    with pytest.raises(ValueError, match="id 128 of this Bytes is part of a character"):
        token_bytes(Bytes())
