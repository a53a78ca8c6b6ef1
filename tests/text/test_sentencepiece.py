"""Published SentencePiece models, and the model file itself."""

import io

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.text.sentencepiece import (
    SentencePieceTokenizer,
    chunks,
    field,
    fields,
    load_sentencepiece,
    train_sentencepiece,
)
from jaxformer.text.tokenizer import load_tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog", "she sells sea shells by the sea shore"] * 20


def published(**settings) -> bytes:
    """A model with the trainer's own defaults, as most published ones: a dummy prefix, no pad."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


LLAMA = {
    "model_type": "bpe",
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


@pytest.mark.parametrize("settings", [LLAMA, {"model_type": "unigram"}], ids=["llama", "unigram"])
def test_a_published_model_gives_the_ids_of_its_own_library(settings, tmp_path):
    model = published(**settings)
    (tmp_path / "tokenizer.model").write_bytes(model)
    tokenizer = load_sentencepiece(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in [*TEXTS[:2], "  two  spaces", "", "\n", "日本"]:
        assert tokenizer.encode(text) == processor.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == processor.decode(processor.encode(text))
    assert tokenizer.specials == {"unk": 0, "bos": 1, "eos": 2}
    assert tokenizer.pad is None
    SentencePieceTokenizer(model).save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == model
    assert (tmp_path / "saved" / "tokenizer.json").exists() == (settings is LLAMA)


def test_special_tokens_beside_the_model_go_before_its_own(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(published(**LLAMA))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<s>", "eos_token": "no such piece"}')
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "<unk>"}}')
    tokenizer = load_sentencepiece(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, 0)


def test_a_piece_that_is_not_there_has_no_id():
    tokenizer = SentencePieceTokenizer(published(**LLAMA))
    assert [tokenizer.id(piece) for piece in ("<unk>", "</s>", "<0x00>")] == [0, 2, 3]
    assert tokenizer.id("\u2581the") == tokenizer.encode("the")[0]
    assert tokenizer.id("<extra_id_0>") is None


def test_sentinels_that_a_family_adds_are_found_by_name(tmp_path):
    (tmp_path / "spiece.model").write_bytes(model := published(model_type="unigram"))
    special = {"unk": "<unk>", "eos": "</s>"}
    tokenizer = load_tokenizer(tmp_path, {"kind": "sentencepiece", "special": special, "sentinels": 3})
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    assert [tokenizer.id(f"<extra_id_{i}>") for i in range(4)] == [size + 2, size + 1, size, None]
    assert [tokenizer.id(tokenizer.piece(i)) for i in range(size + 3)] == list(range(size + 3))


@pytest.mark.parity
def test_the_reference_opens_a_saved_published_model_with_equal_ids(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = SentencePieceTokenizer(published(**LLAMA))
    tokenizer.save(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[:2], "  two  spaces ", "", "\n a\tb", "日本 é", "<s> the"]:
        ids = tokenizer.encode(text)
        assert reference(text, add_special_tokens=False).input_ids == ids
        assert reference.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_a_model_file_is_the_fields_read_from_it():
    model = published(**LLAMA)
    assert b"".join(raw for _, _, raw in fields(model)) == model


@given(st.integers(1, 100), st.integers(0, 1 << 40) | st.binary(max_size=300))
def test_a_field_written_is_read_back(number, value):
    raw = field(number, value)
    assert list(fields(raw)) == [(number, value, raw)]


@given(st.text(alphabet="ab\n", max_size=9000))
def test_chunks_lose_nothing_and_end_with_a_line_where_they_can(text):
    parts = list(chunks([text]))
    assert "".join(parts) == text
    assert all(0 < len(part) <= 2000 for part in parts)


def test_pieces_cross_words_only_if_asked():
    lines = ["for i in range(10):\n    print(i)\n"] * 30
    across = train_sentencepiece(lines, 340)
    words = train_sentencepiece(lines, 340, across_words=False)
    assert len(across.encode(lines[0])) < len(words.encode(lines[0]))
    assert not any(" " in words.piece(i)[1:].strip(" ") for i in range(words.vocab_size))
    assert any("i in" in across.piece(i) for i in range(across.vocab_size))


def test_a_prompt_that_stops_before_its_newline_reads_as_the_text_does():
    text = "for i in range(10):\n    print(i)\n"
    words = train_sentencepiece([text * 30], 340, across_words=False)
    assert not any("\n" in words.piece(i).lstrip("\n") for i in range(words.vocab_size))
    for stop in (i for i, c in enumerate(text) if c == "\n"):
        assert words.encode(text[:stop]) + words.encode(text[stop:]) == words.encode(text)
    assert words.decode(words.encode("a \ue000 b")) == "a \ue000 b"  # the border itself in a text
