import numpy as np
import pytest

from jaxformer.text.boundaries import Boundaries, boundaries
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

TEXT = 'Anna sees a fox. "It is red!" Is it?\nThe fox sees 3.5 dogs. (A lot.) Good'
SENTENCES = ["Anna sees a fox.", ' "It is red!"', " Is it?", "\nThe fox sees 3.5 dogs.", " (A lot.)", " Good"]
WORDS = TEXT.split()


class Vocabulary:
    """A tokenizer of these pieces; "" is a hole."""

    def __init__(self, *pieces):
        self.pieces, self.vocab_size = pieces, len(pieces)

    def piece(self, id):
        if not self.pieces[id]:
            raise IndexError(id)
        return self.pieces[id]


def starts(*pieces):
    return Boundaries(Vocabulary(*pieces)).word_starts(np.arange(len(pieces))).tolist()


def ends(*pieces):
    return Boundaries(Vocabulary(*pieces)).sentence_ends(np.arange(len(pieces))).tolist()


def cut(tokenizer, tokens, flags, before):
    """The texts between the flagged places."""
    places = np.flatnonzero(flags) + (0 if before else 1)
    return [tokenizer.decode(part.tolist()) for part in np.split(tokens, places) if len(part)]


@pytest.fixture(scope="module", params=["sentencepiece", "byte_bpe"])
def tokenizer(request):
    return train_tokenizer(TokenizerConfig(request.param, 330), [TEXT] * 3)


def test_words_of_tokenizers_trained_here_are_those_between_spaces(tokenizer):
    tokens = np.array(tokenizer.encode(TEXT))
    found = cut(tokenizer, tokens, boundaries(tokenizer).word_starts(tokens), before=True)
    assert "".join(found) == TEXT
    assert [word for word in map(str.strip, found) if word] == WORDS


def test_sentences_of_tokenizers_trained_here_end_with_a_full_stop_before_a_space(tokenizer):
    tokens = np.array(tokenizer.encode(TEXT))
    found = cut(tokenizer, tokens, boundaries(tokenizer).sentence_ends(tokens), before=False)
    assert "".join(found) == TEXT
    joined = [sentence for sentence in SENTENCES if '"' not in sentence]  # a quote may be a token of its own
    assert [sentence for sentence in found if '"' not in sentence][-len(joined) + 1 :] == joined[1:]


def test_words_and_sentences_of_wordpieces():
    tokenizer = train_tokenizer(TokenizerConfig("wordpiece", 60), [TEXT] * 3)
    tokens = np.array(tokenizer.encode("the fox sees 35 . anna"))
    found = cut(tokenizer, tokens, boundaries(tokenizer).word_starts(tokens), before=True)
    assert found == ["the", "fox", "sees", "35", ".", "anna"]
    assert len(tokens) > len(found)
    assert cut(tokenizer, tokens, boundaries(tokenizer).sentence_ends(tokens), before=False) == [
        "the fox sees 35 .",
        "anna",
    ]


def test_words_by_hand_in_each_manner():
    assert starts("a", "▁b", "c", "▁", "d") == [True, True, False, True, False]
    assert starts("a", " b", "c", "\n", "d", "", " ") == [True, True, False, True, True, False, True]
    assert starts("a", "Ġb", "c", "Ċ", "d", "##") == [True, True, False, True, True, False]
    assert starts("a", "##b", "c", "Ġ", "##d", "") == [True, False, True, True, False, True]
    assert starts("▁a", "<0x0A>", "b", "<0xC3>", "<0xA9>") == [True, True, True, False, False]
    assert starts("a", "b", "", "<s>") == [True, True, True, True]


def test_sentence_ends_by_hand_in_each_manner():
    assert ends("▁3", ".", "5", "▁x", ".", "▁y") == [False, False, False, False, True, False]
    assert ends("a", '."', " b", ". ", "?", ")") == [False, True, False, True, False, False]
    assert ends("a", "!?", "Ġb", ".", "Ċ", "c") == [False, True, False, True, False, False]
    assert ends("a", ".", "##b", "?") == [False, False, False, True]
    assert ends("▁a", "。", "b", "！", "▁.5") == [False, True, False, True, False]


def test_no_token_has_no_boundary_and_a_tokenizer_is_read_once(tokenizer):
    nothing = np.empty(0, np.int32)
    assert (
        boundaries(tokenizer).word_starts(nothing).shape == boundaries(tokenizer).sentence_ends(nothing).shape == (0,)
    )
    assert boundaries(tokenizer) is boundaries(tokenizer)


def test_tokens_of_a_store_stay_as_they_are(tokenizer):
    tokens = np.array(tokenizer.encode(TEXT), np.uint16)
    tokens.flags.writeable = False
    found = boundaries(tokenizer)
    one, other = found.word_starts(tokens), found.word_starts(tokens)
    one[:] = False
    assert other.any()
    assert found.sentence_ends(tokens).any()
