"""Tokenizers of the `tokenizers` library."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxformer.text.tokenizer_json import JsonTokenizer, load_json, train_wordpiece


def published(folder) -> None:
    """A tokenizer that adds special tokens, pads and truncates by itself."""
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
    inner.enable_padding(length=8)
    inner.enable_truncation(4)
    inner.save(str(folder / "tokenizer.json"))


def test_encoding_adds_nothing_and_cuts_nothing(tmp_path):
    published(tmp_path)
    assert load_json(tmp_path).encode("a b a b a b") == [3, 4, 3, 4, 3, 4]


def test_special_ids_are_read_from_the_files_beside_it(tmp_path):
    published(tmp_path)
    assert load_json(tmp_path).bos is None
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "a", "eos_token": "</s>", "pad_token": "b"}')
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "pad_token": null}')
    tokenizer = load_json(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, None)
    assert tokenizer.decode([1, 3, 2]) == "a"


def test_special_tokens_in_a_text_are_found_unless_they_are_split(tmp_path):
    published(tmp_path)
    assert load_json(tmp_path).encode("a </s>") == [3, 2]
    (tmp_path / "tokenizer_config.json").write_text('{"split_special_tokens": true}')
    split = load_json(tmp_path)
    assert isinstance(split, JsonTokenizer)
    assert split.inner.encode_special_tokens


def test_wordpiece_keeps_words_and_continues_them():
    tokenizer = train_wordpiece(["Playing plays played play player"] * 10, 60)
    assert tokenizer.piece(tokenizer.encode("play")[0]) == "play"
    assert tokenizer.decode(tokenizer.encode("PLAYER plays")) == "player plays"
    assert tokenizer.encode("\u6f22") == [tokenizer.specials["unk"]]
    assert (tokenizer.bos, tokenizer.eos) == (tokenizer.specials["cls"], tokenizer.specials["sep"])


def test_who_reads_our_wordpiece_with_the_library_alone_gets_the_special_tokens_too(tmp_path):
    tokenizer = train_wordpiece(["Playing plays played play player"] * 10, 60)
    tokenizer.save(tmp_path)
    alone, play = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), tokenizer.encode("play")
    assert alone.encode("play").ids == [2, *play, 3] == tokenizer.template(play)[0]
    pair = alone.encode("play", "plays")
    assert (pair.ids, pair.type_ids) == tokenizer.template(play, tokenizer.encode("plays"))
    assert load_json(tmp_path).template == tokenizer.template


def test_an_id_outside_the_vocabulary_is_an_error(tmp_path):
    published(tmp_path)
    with pytest.raises(IndexError, match="id 99 is not in this vocabulary of 5"):
        load_json(tmp_path).piece(99)


def test_an_id_is_found_by_its_exact_piece_alone(tmp_path):
    published(tmp_path)
    tokenizer = load_json(tmp_path)
    assert [tokenizer.id(piece) for piece in ("a", "</s>", "[UNK]", "A", " a", "ab")] == [3, 2, 0, None, None, None]
