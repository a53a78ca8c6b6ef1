"""Tokenizers out of GGUF metadata."""

import io
import json

import pytest
import sentencepiece

from jaxformer.families import gguf_tokenizers
from jaxformer.text.gguf_tokenizer import gguf_tokenizer
from jaxformer.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. It's 2024; naïve café owners say 日本語!\n\n  def f(x):\n"
BATTERY = (
    "",
    " ",
    "hello",
    "  two  spaces  ",
    "It's what we'LL see",
    "1234567 and 12",
    "naïve café, e\u0301te\u0301",
    "日本語 한국어",
    "👍🏽 👩‍👩‍👧",
    "def f(x):\n\treturn x**2  # no\r\n\r\n\n",
    "\u2581 \u2581\u2581",
    "<0x41>",
)


@pytest.fixture(scope="module")
def byte_bpe():
    return train_tokenizer(TokenizerConfig("byte_bpe", 300), [TEXT] * 5)


@pytest.fixture(scope="module")
def pieces():
    return trained_pieces(add_dummy_prefix=False)


def trained_pieces(**options):
    """A model of the sentencepiece library itself, which writes spaces as marks."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 5),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def byte_metadata(trained, **more):
    """Metadata of a tokenizer trained here, as a converter writes them."""
    model = json.loads(trained.inner.to_str())["model"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(model["vocab"], key=model["vocab"].get),
        "tokenizer.ggml.token_type": [2, 3, 3, 3] + [1] * (len(model["vocab"]) - 4),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 3,
    } | {f"tokenizer.{name.replace('__', '.')}": value for name, value in more.items()}


def piece_metadata(model, **more):
    ids = range(model.get_piece_size())
    asked = (model.is_unknown, 2), (model.is_control, 3), (model.is_byte, 6)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [next((kind for is_one, kind in asked if is_one(i)), 1) for i in ids],
        "tokenizer.ggml.add_space_prefix": False,
    } | {f"tokenizer.{name.replace('__', '.')}": value for name, value in more.items()}


def read(metadata):
    return gguf_tokenizer(metadata, gguf_tokenizers.description(metadata))


def test_byte_bpe_gives_the_ids_that_it_was_trained_with(byte_bpe):
    found = read(byte_metadata(byte_bpe))
    assert found.encode_batch(BATTERY) == byte_bpe.encode_batch(BATTERY)
    assert [found.decode(found.encode(text)) for text in BATTERY] == list(BATTERY)
    assert found.specials == byte_bpe.specials
    assert found.vocab_size == byte_bpe.vocab_size


def test_sentencepiece_gives_the_ids_of_its_own_library(pieces):
    found = read(piece_metadata(pieces))
    texts = [*BATTERY, TEXT, TEXT[::-1], TEXT * 20]
    assert found.encode_batch(texts) == pieces.encode(texts)
    assert [found.decode(found.encode(text)) for text in texts] == [pieces.decode(pieces.encode(t)) for t in texts]
    assert (found.bos, found.eos, found.specials["unk"]) == (1, 2, 0)


def test_a_space_comes_before_a_text_where_the_file_does_not_say_otherwise():
    model = trained_pieces(add_dummy_prefix=True)
    metadata = piece_metadata(model)
    del metadata["tokenizer.ggml.add_space_prefix"]
    found = read(metadata)
    assert found.encode_batch(BATTERY) == model.encode(list(BATTERY))
    assert found.encode("x </s>y") == [*model.encode("x "), 2, *model.encode("y")]
    assert found.decode(found.encode("The  fox ")) == "The  fox "


@pytest.mark.parametrize(
    ("words", "cut"),
    {
        "gpt-2": "It|'s| 12345| a|/|b|\n| x",
        "default": "It|'|s| |123|45| a|/|b|\n| x",
        "smollm": "It|'s| |1|2|3|4|5| a|/|b|\n| x",
        "llama-bpe": "It|'s| |123|45| a|/b|\n| x",
        "qwen2": "It|'s| |1|2|3|4|5| a|/b|\n| x",
        "gpt-4o": "It's| |123|45| a|/b|\n| x",
        "tekken": "It|'s| |1|2|3|4|5| a|/b|\n| x",
    }.items(),
)
def test_a_text_is_cut_as_the_file_names_it(byte_bpe, words, cut):
    found = read(byte_metadata(byte_bpe, ggml__pre=words))
    pieces = found.inner.pre_tokenizer.pre_tokenize_str("It's 12345 a/b\n x")
    assert [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in pieces] == cut.split("|")


@pytest.mark.parametrize("words", gguf_tokenizers.WORDS)
def test_no_cut_loses_anything(byte_bpe, words):
    found = read(byte_metadata(byte_bpe, ggml__pre=words))
    composed = [text.replace("e\u0301", "é") if words in ("qwen2", "deepseek-r1-qwen") else text for text in BATTERY]
    assert [found.decode(found.encode(text)) for text in BATTERY] == composed


def test_a_word_that_is_a_piece_stays_whole_where_the_file_wants_it(byte_bpe):
    metadata = byte_metadata(byte_bpe)
    metadata["tokenizer.ggml.tokens"] += ["zqz"]
    metadata["tokenizer.ggml.token_type"] += [1]
    assert len(read(metadata).encode("zqz")) == 3
    assert read(metadata | {"tokenizer.ggml.pre": "llama-bpe"}).encode("zqz") == [
        len(metadata["tokenizer.ggml.tokens"]) - 1
    ]


def test_special_and_added_tokens_are_found_in_a_text(byte_bpe):
    metadata = byte_metadata(byte_bpe)
    first = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] += ["<|turn|>", "<think>", "  ", "", "[PAD]"]
    metadata["tokenizer.ggml.token_type"] += [3, 4, 4, 5, 5]
    found = read(metadata)
    assert found.encode("<|turn|>a<think>  [PAD]") == [
        first,
        *found.encode("a"),
        first + 1,
        first + 2,
        *found.encode("[PAD]"),
    ]
    assert len(found.encode("[PAD]")) > 1
    assert found.piece(first + 3) == f"[EMPTY_{first + 3}]"
    assert found.decode([first + 1, first + 2]) == "<think>  "


def test_spaces_behind_special_tokens_are_swallowed_where_the_file_was_made_so(pieces):
    metadata = piece_metadata(pieces, ggml__add_space_prefix=True)
    plain, swallowing = read(metadata), read(metadata | {"general.architecture": "phi3"})
    assert swallowing.encode("</s>\n x") == plain.encode("</s>x")
    assert swallowing.encode("<s>\n x") == plain.encode("<s>\n x")


def test_what_a_document_begins_and_ends_with(byte_bpe, pieces):
    def framed(metadata):
        return read(metadata).template([9])[0]

    assert framed(byte_metadata(byte_bpe)) == [9]
    assert framed(byte_metadata(byte_bpe, ggml__pre="llama-bpe")) == [1, 9]
    assert framed(byte_metadata(byte_bpe, ggml__add_bos_token=True, ggml__add_eos_token=True)) == [1, 9, 2]
    assert framed(piece_metadata(pieces)) == [1, 9]
    assert framed(piece_metadata(pieces, ggml__add_bos_token=False)) == [9]


def test_it_goes_out_with_its_chat_template_and_comes_back(byte_bpe, tmp_path):
    metadata = byte_metadata(byte_bpe, chat_template="{{ messages }}", ggml__add_bos_token=True)
    found = read(metadata)
    found.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.chat_template == found.chat_template == "{{ messages }}"
    assert (again.specials, again.template) == (found.specials, found.template)
    assert again.encode_batch(BATTERY) == found.encode_batch(BATTERY)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"ggml__model": "rwkv"}, "tokenizer.ggml.model 'rwkv' is not known; known are gpt2, llama"),
        ({"ggml__pre": "viking"}, "tokenizer.ggml.pre 'viking' is not known; known are default, gpt-2"),
        ({"ggml__tokens": None}, "tokenizer.ggml.tokens: expected a list of texts"),
        ({"ggml__tokens": ["a", "b", "a"], "ggml__token_type": [1] * 3}, "tokens: 'a' is there twice"),
        ({"ggml__token_type": [1]}, "tokenizer.ggml.token_type: expected one for each of 300 tokens"),
        ({"ggml__eos_token_id": 300}, "tokenizer.ggml.eos_token_id is 300, and there are 300 tokens"),
        ({"ggml__merges": ["x q"]}, "tokenizer.ggml: not a tokenizer: .*xq"),
        ({"ggml__merges": None}, "tokenizer.ggml.merges: expected a list of texts"),
        ({"ggml__merges": ["xq"]}, "tokenizer.ggml.merges: 'xq' is no pair"),
        ({"ggml__model": "llama"}, "tokenizer.ggml.scores: expected one for each of 300 tokens"),
    ],
)
def test_metadata_that_make_no_tokenizer_are_refused_by_name(byte_bpe, changed, reason):
    with pytest.raises(ValueError, match=reason):
        read(byte_metadata(byte_bpe, **changed))
