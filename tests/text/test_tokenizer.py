"""Laws of every tokenizer that is trained here."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jaxformer.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from jaxformer.text.turns import begun

CODE = Path(__file__).read_text()
TEXTS = [CODE, "def f(x):\n    return x + 1\n" * 50, "Grüße, 你好, 🤖!\r\n\tzwei\u2581Zeichen\0\n" * 20, ""]
SPECIALS = ("<mask>", "<extra_id_0>", "<|fim_prefix|>", "[R]", "<fim\u2581end>")
CONFIGS = [
    TokenizerConfig("sentencepiece", 600, across_words=True),
    TokenizerConfig("sentencepiece", 600, across_words=False),
    TokenizerConfig("byte_bpe", 600),
    TokenizerConfig("wordpiece", 600),
    *(TokenizerConfig(kind, 600, specials=SPECIALS) for kind in ("sentencepiece", "byte_bpe", "wordpiece")),
]
LOSSLESS = [config for config in CONFIGS if config.kind != "wordpiece"]
ODD = [
    "",
    " ",
    "\n",
    "\t\t\n\n\t",
    "\r\n",
    "\0",
    "\u2581",
    "a\u2581 \u2581b",
    "\ufeff",
    "   runs    of  spaces \n    \n\n\n",
    "<unk><s>hi</s><pad><0x0A> [MASK]",
    "".join(SPECIALS),
    "a <mask> b<extra_id_0>c [R]",
    "e\u0301 \u00e9 🤖 👩\u200d👩\u200d👧 \u202e",
    " " * 1000,
    "-" * 1001,
    "ab" * 500,
]
STRINGS = st.text() | st.text(alphabet=" \n\t\r\0<>s/:)(_=a1\u2581")


def name(config: TokenizerConfig) -> str:
    return f"{config.kind}-{'across' if config.across_words else 'words'}{'-specials' if config.specials else ''}"


@pytest.fixture(scope="module")
def trained() -> dict:
    return {config: train_tokenizer(config, TEXTS) for config in CONFIGS}


@pytest.mark.parametrize("config", LOSSLESS, ids=name)
def test_decoding_gives_back_every_string(config, trained):
    tokenizer = trained[config]

    def check(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    given(STRINGS)(check)()
    for text in [*TEXTS, *ODD]:
        check(text)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_a_batch_is_its_texts_one_by_one(config, trained):
    texts = [*ODD, *TEXTS]
    assert trained[config].encode_batch(texts) == [trained[config].encode(text) for text in texts]
    assert trained[config].encode_batch([]) == []


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_what_is_saved_loads_as_the_same(config, trained, tmp_path):
    trained[config].save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint() == trained[config].fingerprint()
    assert loaded.specials == trained[config].specials
    for text in [*ODD, CODE]:
        assert loaded.encode(text) == trained[config].encode(text)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_ids_are_within_the_vocabulary_and_special_ids_are_skipped(config, trained):
    tokenizer = trained[config]
    ids = tokenizer.encode(CODE)
    assert min(ids) >= 0
    assert max(ids) < tokenizer.vocab_size <= config.vocab_size
    special = [tokenizer.bos, tokenizer.eos, tokenizer.pad]
    assert None not in special
    assert not set(special) & set(ids)
    assert tokenizer.decode([special[0], *ids, *special[1:], tokenizer.vocab_size]) == tokenizer.decode(ids)
    assert "".join(map(tokenizer.piece, tokenizer.encode("return"))).replace("##", "") == "return"


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_every_id_is_found_by_what_the_vocabulary_writes(config, trained):
    tokenizer = trained[config]
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    assert [tokenizer.id(piece) for piece in pieces] == list(range(tokenizer.vocab_size))
    assert tokenizer.id("no such piece") is None
    assert tokenizer.id("") is None


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.specials], ids=name)
def test_further_special_tokens_follow_those_of_the_kind_and_are_never_text(config, trained, tmp_path):
    tokenizer = trained[config]
    first = 5 if config.kind == "wordpiece" else 4
    ids = list(range(first, first + len(SPECIALS)))
    assert [tokenizer.piece(i) for i in ids] == list(SPECIALS)
    tokenizer.save(tmp_path)
    text = "return x"
    for each in (tokenizer, load_tokenizer(tmp_path)):
        assert [each.id(name) for name in SPECIALS] == ids
        for literal in ("".join(SPECIALS), " ".join(SPECIALS), *SPECIALS):
            assert not set(each.encode(literal)) & set(ids)
        assert each.decode([ids[0], *each.encode(text), *ids]) == text
        assert each.specials["mask"] == (4 if config.kind == "wordpiece" else each.id("<mask>"))


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_bpe", "wordpiece"])
def test_a_special_token_asked_for_twice_or_held_by_the_kind_is_there_once(kind):
    own = "[SEP]" if kind == "wordpiece" else "</s>"
    tokenizer = train_tokenizer(TokenizerConfig(kind, 400, specials=("<x>", own, "<x>", "<y>")), TEXTS)
    first = 5 if kind == "wordpiece" else 4
    assert [tokenizer.id(name) for name in ("<x>", "<y>", own)] == [first, first + 1, tokenizer.eos]


def test_a_special_token_that_a_text_could_hold_as_a_piece_is_an_error():
    for kind in ("sentencepiece", "byte_bpe", "wordpiece"):
        for wrong in ("and", "<>", "[_]", "<a b>", "", "x<y>"):
            with pytest.raises(ValueError, match=r"tokenizer\.specials: expected names such as <mask>"):
                train_tokenizer(TokenizerConfig(kind, 400, specials=("<x>", wrong)), TEXTS)
    with pytest.raises(ValueError, match="<0x41> is already defined"):
        train_tokenizer(TokenizerConfig("sentencepiece", 400, specials=("<0x41>",)), TEXTS)


def test_training_twice_in_two_processes_gives_the_same_bytes(trained):
    code = (
        "import sys; from test_tokenizer import *\n"
        "for config in CONFIGS: print(train_tokenizer(config, TEXTS).fingerprint())"
    )
    path = [str(Path(__file__).parent), *sys.path]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [trained[config].fingerprint() for config in CONFIGS]


def test_long_texts_are_learnt_from_and_encoded():
    long = "total_value = other_value + 1\n" * 7_000
    assert len(long) > 200_000
    config = TokenizerConfig("sentencepiece", 400, across_words=True)
    tokenizer = train_tokenizer(config, [long])
    ids = tokenizer.encode(long)
    assert tokenizer.decode(ids) == long
    assert len(ids) < len(long) / 4
    one_line = long.replace("\n", ";")
    tokenizer = train_tokenizer(config, [one_line])
    assert len(tokenizer.encode(one_line)) < len(one_line) / 4


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path):
    (tmp_path / "vocab.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json and tokenizer\.model.*vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)


def test_training_on_nothing_or_with_too_few_pieces_is_an_error():
    for config in CONFIGS:
        with pytest.raises(ValueError, match="there is none"):
            train_tokenizer(config, ["", ""])
    with pytest.raises(ValueError, match="could not train 100 pieces"):
        train_tokenizer(TokenizerConfig("sentencepiece", 100), ["abc"])
    with pytest.raises(ValueError, match="expected sentencepiece"):
        train_tokenizer(TokenizerConfig("words", 100), ["abc"])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_bpe"])
@pytest.mark.parametrize("add_bos", [False, True])
def test_a_start_token_goes_before_prompts_where_that_is_asked_for(kind, add_bos, tmp_path):
    train_tokenizer(TokenizerConfig(kind, 400, add_bos=add_bos), TEXTS).save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    ids = loaded.encode("return x")
    assert loaded.bos not in ids
    assert loaded.template(ids)[0] == begun(loaded, ids) == [loaded.bos][: int(add_bos)] + ids
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("return x").ids == begun(loaded, ids)
    assert begun(loaded, []) == [loaded.bos]


@pytest.mark.parity
@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_the_reference_opens_the_saved_folder_with_equal_ids(config, trained, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig

    tokenizer = trained[config]
    tokenizer.save(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)  # a model lies beside it
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert len(reference) == tokenizer.vocab_size
    for role, i in tokenizer.specials.items():
        assert getattr(reference, f"{role}_token_id") == i
    for special in config.specials:
        assert reference.convert_tokens_to_ids(special) == tokenizer.id(special)
        assert reference.decode([tokenizer.id(special)], skip_special_tokens=True) == ""

    def check(text):
        ids = tokenizer.encode(text)
        assert reference(text, add_special_tokens=False).input_ids == ids
        assert reference.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)

    given(STRINGS)(check)()
    for text in [*TEXTS, *ODD, Path(subprocess.__file__).read_text()]:
        check(text)
