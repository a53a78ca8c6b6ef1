"""Tokenizers of folders without a tokenizer.json: the ids that the models were trained with, and all files kept."""

import io
import json
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers

from jaxformer import families
from jaxformer.text.pieces import PieceTokenizer
from jaxformer.text.sentencepiece import SentencePieceTokenizer
from jaxformer.text.token_bytes import token_bytes
from jaxformer.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from jaxformer.text.tokenizer_json import JsonTokenizer

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
CODE = (LIBRARY / "heapq.py").read_text()
BATTERY = {
    "empty": "",
    "space": " ",
    "spaces": "   ",
    "newline": "\n",
    "tab": "\t",
    "word": "hello",
    "leading": "  hello",
    "trailing": "hello  ",
    "runs": "a  b   c",
    "lines": " a\n\n b\t\tc\r\nd ",
    "prose": "Hello World! It's 3,000.50 dollars, isn't it?",
    "marks": "e\u0301 \u00e9 n\u0303a A\u030a \u0041\u030a\u0301 o\u0302\u0323",
    "many marks": "a" + "\u0301" * 20,
    "emoji": "\U0001f917 \U0001f469\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f1e9\U0001f1ea",
    "han": "\u4f60\u597d\u4e16\u754c \u65e5\u672c\u8a9e",
    "cjk": "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u30c6\u30b9\u30c8 \u30ab\u30ac \uff8a\uff9f \ud55c\uad6d\uc5b4",
    "lower bar": "\u2581 a\u2581b \u2581\u2581",
    "quotes": "``quoted'' text",
    "compatible": "\ufb01ne \u00bd \u2126 \u2460 \uff21\uff22 \U0001d573\U0001d586",
    "odd spaces": "\ufeffbom \u200bzero\u200cwidth\u00a0nbsp\u2003em\u3000id \u2028line \x0b\x0c\x85",
    "cases": "\u0130stanbul \u00df \u0395\u03bb\u03b9\u03ba\u03ac \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
    "scripts": "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0915\u094d\u0937\u093f \u0e44\u0e17\u0e22",
    "control": "\0 \x01 \x7f \ufffd",
    "function": "def f(x):\n    return x + 1  # done\n",
    "long word": "x" * 300,
    "digits": "1234567890 12 345",
    "specials": "<s> hi </s> <pad><unk> [CLS] [SEP] [PAD] [UNK] <|endoftext|> <extra_id_0> <extra_id_99>x en_XX",
    "masks": "a <mask> b<mask>c [MASK] d  <mask>  e <mask_1> <mask_2> <unk_2>",
    "inside": "hello</s>world </s> hello<eos>",
    "code": CODE[:10_000],
    "10 kB": "the fox, the dog. " * 600,
}


# Tiny vocabularies.


@cache
def lines() -> list[str]:
    text = "\n".join((LIBRARY / name).read_text() for name in ("textwrap.py", "heapq.py"))
    more = ["the quick brown fox jumps over the lazy dog, isn't it? 3,000 dollars, 12, 45, 7,"] * 20
    more += ["\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u65e5\u672c\u8a9e\u30c6\u30b9\u30c8 \u30ab\u30ac\u30af"] * 10
    more += ["Gr\u00fc\u00dfe \u00e9 \u00e0 \u00f1 f\u00fcr Caf\u00e9 na\u00efve fi ABC \u00bd hello world"] * 10
    return [line for line in text.split("\n") if line.strip()] + more


@cache
def model(**settings) -> bytes:
    out = io.BytesIO()
    settings = {"vocab_size": 600, "hard_vocab_limit": False, "minloglevel": 2, **settings}
    if settings.get("model_type") == "bpe":
        settings |= {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
        settings |= {"split_digits": True, "allow_whitespace_only_pieces": True}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines()), model_writer=out, **settings)
    return out.getvalue()


def wordpiece(lowercase: bool) -> dict[str, str]:
    tokenizer = train_tokenizer(TokenizerConfig("wordpiece", 500, lowercase=lowercase), lines())
    return {"vocab.txt": "".join(f"{tokenizer.piece(i)}\n" for i in range(tokenizer.vocab_size))}


@cache
def byte_bpe(*special: str) -> dict[str, str]:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(lines(), vocab_size=500, show_progress=False)
    state = json.loads(tokenizer.to_str())["model"]
    vocab = {token: i for i, token in enumerate((*special, *state["vocab"]))}
    merges = "".join(f"{left} {right}\n" for left, right in state["merges"])
    return {"vocab.json": json.dumps(vocab), "merges.txt": f"#version: 0.2\n{merges}"}


def marian() -> dict[str, str | bytes]:
    source = processor(model())
    pieces = ["</s>", "<unk>", *(source.id_to_piece(i) for i in range(3, 550)), ">>fra<<", ">>deu<<", "<pad>"]
    return {
        "source.spm": model(),
        "target.spm": model(vocab_size=400),
        "vocab.json": json.dumps({piece: i for i, piece in enumerate(pieces)}),
    }


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


UNIGRAM = {"bos_id": -1, "pad_id": 0, "eos_id": 1, "unk_id": 2}
CLS = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "bos_piece": "[CLS]", "eos_piece": "[SEP]"}
CLS |= {"control_symbols": "[MASK]", "user_defined_symbols": '(,),",-,.'}
BPE = {"model_type": "bpe"}
TURNS = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"}
OTHERS = "<mask>,<start_of_turn>,<end_of_turn>,\u2581\u2581,\u2581\u2581\u2581\u2581"
TURNS |= {**BPE, "add_dummy_prefix": False, "user_defined_symbols": OTHERS}
OPT_CLASS = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>", "pad_token": "<pad>"}
OPT_CLASS |= {"eos_token": "</s>", "unk_token": "</s>"}
MBART, MBART50 = {"tokenizer_class": "MBartTokenizer"}, {"tokenizer_class": "MBart50Tokenizer"}
LLAMA = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
GEMMA = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}
MASKED = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# name: (model_type, files, tokenizer_config.json)
FOLDERS = {
    "bert": ("bert", lambda: wordpiece(True), {"do_lower_case": True}),
    "bert bare": ("bert", lambda: wordpiece(True), {}),
    "bert cased": ("bert", lambda: wordpiece(False), {"do_lower_case": False}),
    "bert accents": ("bert", lambda: wordpiece(True), {"strip_accents": False, "tokenize_chinese_chars": False}),
    "distilbert": ("distilbert", lambda: wordpiece(True), {}),
    "electra": ("electra", lambda: wordpiece(True), {}),
    "gpt2": ("gpt2", lambda: byte_bpe("<|endoftext|>"), {}),
    "gpt2 space": ("gpt2", lambda: byte_bpe(), {"add_prefix_space": True, "add_bos_token": True}),
    "roberta": ("roberta", lambda: byte_bpe(*MASKED), {}),
    "bart": ("bart", lambda: byte_bpe(*MASKED), {}),
    "opt": ("opt", lambda: byte_bpe(*MASKED), OPT_CLASS),
    "qwen2": ("qwen2", lambda: byte_bpe(), {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None}),
    "t5": ("t5", lambda: {"spiece.model": model(**UNIGRAM)}, {}),
    "mt5": ("mt5", lambda: {"spiece.model": model(**UNIGRAM)}, {"extra_ids": 0}),
    "albert": ("albert", lambda: {"spiece.model": model(**CLS)}, {}),
    "xlm-roberta": ("xlm-roberta", lambda: {"sentencepiece.bpe.model": model()}, {}),
    "camembert": ("camembert", lambda: {"sentencepiece.bpe.model": model()}, {}),
    "mbart": ("mbart", lambda: {"sentencepiece.bpe.model": model()}, MBART),
    "mbart german": ("mbart", lambda: {"sentencepiece.bpe.model": model()}, {**MBART, "src_lang": "de_DE"}),
    "mbart50": ("mbart", lambda: {"sentencepiece.bpe.model": model()}, {**MBART50, "src_lang": "fr_XX"}),
    "pegasus": ("pegasus", lambda: {"spiece.model": model(**UNIGRAM)}, {}),
    "llama": ("llama", lambda: {"tokenizer.model": model(**BPE)}, LLAMA),
    "llama once": ("llama", lambda: {"tokenizer.model": model(**BPE)}, {**LLAMA, "legacy": False}),
    "gemma": ("gemma", lambda: {"tokenizer.model": model(**TURNS)}, GEMMA),
    "marian": ("marian", marian, {"tokenizer_class": "MarianTokenizer"}),
}


def write(folder: Path, name: str, **more) -> dict:
    """Writes the folder called `name` and gives its family's TOKENIZER; `more` is further tokenizer_config.json."""
    model_type, files, config = FOLDERS[name]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for file, data in files().items():
        (folder / file).write_bytes(data if isinstance(data, bytes) else data.encode())
    if config or more:
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, **more}))
    return families.family(model_type).TOKENIZER


@pytest.fixture(params=FOLDERS)
def folder(request, tmp_path) -> tuple[str, Path, dict]:
    return request.param, tmp_path / "folder", write(tmp_path / "folder", request.param)


# Where the reference's own conversion (of version 5) parts from what the model was trained with: that is what the
# model's library gives, and is checked for itself below.
SPACES = {"space", "spaces", "newline", "tab", "trailing", "lines", "function", "code", "10 kB"}
APART = {
    "roberta": {"masks"},  # spaces before <mask> are no longer its own
    "bart": {"masks"},
    "t5": {"many marks", "odd spaces"},  # another normalization of long graphemes and of U+0085
    "albert": {"function", "code"},  # a space after each user-defined piece
    "mbart": {"marks", "many marks", "cjk", "lower bar", "compatible", "odd spaces", "control"},  # no normalization
    "mbart50": SPACES | {"many marks", "lower bar", "control", "specials", "inside"},  # a piece for spaces at the end
    "pegasus": SPACES | {"many marks", "lower bar", "control", "specials", "inside", "masks"},
    "llama": {"space", "spaces", "leading", "lines", "lower bar", "specials", "inside"},  # as `legacy: false`
    "gemma": {"lower bar"},
}
APART |= dict.fromkeys(("mt5", "xlm-roberta", "camembert"), APART["t5"]) | {"mbart german": APART["mbart"]}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses:UserWarning")
def test_ids_and_templates_are_those_of_the_reference(folder):
    from transformers import AutoTokenizer

    name, path, family = folder
    tokenizer = load_tokenizer(path, family)
    reference = AutoTokenizer.from_pretrained(path)
    assert tokenizer.vocab_size == len(reference)
    for role, id in tokenizer.specials.items():
        assert getattr(reference, f"{role}_token_id") in (id, None)
    theirs = {key: reference(text, add_special_tokens=False).input_ids for key, text in BATTERY.items()}
    differ = {key for key, text in BATTERY.items() if theirs[key] != tokenizer.encode(text)}
    assert differ == APART.get(name, set())
    for first, second in (("a b", None), ("", None), ("a", "b c"), ("", "a")):
        expected = reference(first, second)
        pair = None if second is None else tokenizer.encode(second)
        ids, types = tokenizer.template(tokenizer.encode(first), pair)
        assert ids == expected.input_ids
        assert types == expected.get("token_type_ids", types)


SHIFTS = {
    "t5": lambda i: i,
    "mt5": lambda i: i,
    "xlm-roberta": lambda i: {0: 3, 1: 0, 2: 2}.get(i, i + 1),
    "mbart": lambda i: {0: 3, 1: 0, 2: 2}.get(i, i + 1),
    "pegasus": lambda i: i + 103,
    "llama": lambda i: i,
    "gemma": lambda i: i,
}
PLAIN = [text for key, text in BATTERY.items() if key not in ("specials", "masks", "inside")]


@pytest.mark.parametrize("name", SHIFTS)
def test_ids_are_those_of_the_library_that_the_model_was_trained_with(name, tmp_path):
    tokenizer = load_tokenizer(tmp_path, write(tmp_path, name))
    (data,) = (path.read_bytes() for path in tmp_path.glob("*.model"))
    library = processor(data)

    def check(text):
        assert tokenizer.encode(text) == [SHIFTS[name](i) for i in library.encode(text)]

    for text in PLAIN:
        check(text)
    given(st.text(st.characters(exclude_characters="<_", exclude_categories=["Cs"])))(check)()
    assert tokenizer.encode_batch(PLAIN) == [tokenizer.encode(text) for text in PLAIN]
    for text in ("hello world, fi 12", "the fox"):
        assert tokenizer.decode(tokenizer.template(tokenizer.encode(text))[0]) == text


def test_bytes_of_ids_are_what_they_decode_to_behind_others(folder):
    _, path, family = folder
    tokenizer = load_tokenizer(path, family)
    written, random = token_bytes(tokenizer), np.random.default_rng(0)
    known = [id for id, each in enumerate(written) if each is not None]
    before = (
        tokenizer.encode("the fox")[-2:] if getattr(tokenizer, "target", None) is None else [known[40], known[41]]
    )
    for ids in (random.choice(known, 3).tolist() for _ in range(100)):
        try:
            text = b"".join(written[id] for id in ids).decode()
        except UnicodeDecodeError:
            continue
        assert tokenizer.decode([*before, *ids]) == tokenizer.decode(before) + text


def test_a_folder_goes_back_out_byte_for_byte(folder, tmp_path):
    _, path, family = folder
    (path / "special_tokens_map.json").write_text('{"additional_special_tokens": [ "<x>"],\n "y": 1}')
    (path / "chat_template.jinja").write_text("{{ messages }}\r\n")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (path / "added_tokens.json").write_text("{ }")
    (path / "README.md").write_text("no file of a tokenizer")
    tokenizer = load_tokenizer(path, family)
    assert tokenizer.chat_template == "{{ messages }}\n"
    assert tokenizer.encode("a<x>")[-1] == tokenizer.vocab_size - 1
    before, saved = contents(path), tmp_path / "saved"
    del before["README.md"], before["config.json"]
    tokenizer.save(saved)
    assert contents(saved) == before
    again = load_tokenizer(saved, family)
    assert (again.fingerprint(), again.specials) == (tokenizer.fingerprint(), tokenizer.specials)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tokens_that_a_folder_adds_have_the_ids_it_gives_them(tmp_path):
    flags = {"lstrip": False, "rstrip": True, "single_word": False, "normalized": False, "special": False}
    added = {"600": {"content": "<|user|>", **flags}, "7": {"content": "<|kept|>", **flags, "special": True}}
    family = write(tmp_path, "llama", added_tokens_decoder=added, unk_token="<unk>", pad_token="<|kept|>")
    tokenizer = load_tokenizer(tmp_path, family)
    hello = tokenizer.encode("hello")
    assert tokenizer.encode("<|user|> \n hello<|kept|>") == [600, *hello, 7]
    assert tokenizer.decode([1, 600, *hello, 7, 2]) == "<|user|>hello"
    assert (tokenizer.pad, tokenizer.piece(7), tokenizer.vocab_size) == (7, "<|kept|>", 601)
    with pytest.raises(IndexError, match="id 601 is not in this vocabulary of 601"):
        tokenizer.piece(601)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_added_tokens_of_older_folders_are_found(name, tmp_path):
    family = write(tmp_path, name)
    size = load_tokenizer(tmp_path, family).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<b>": size + 1, "<a>": size}))
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "<c>", "lstrip": true}}')
    tokenizer = load_tokenizer(tmp_path, family)
    assert [tokenizer.encode(text)[-1] for text in ("<a>", "x<b>", "  <c>")] == [size, size + 1, size + 2]
    assert tokenizer.encode("  <c>") == [size + 2]
    assert tokenizer.pad == size + 2


def test_roles_that_a_folder_leaves_empty_are_empty(tmp_path):
    assert load_tokenizer(tmp_path, write(tmp_path, "llama", bos_token=None, add_bos_token=False)).bos is None


def test_split_special_tokens_makes_their_names_ordinary_text(tmp_path):
    family = write(tmp_path, "llama", split_special_tokens=True)
    assert load_tokenizer(tmp_path, family).encode("</s>") == processor(model(**BPE)).encode("</s>")


def test_only_the_start_of_a_text_gets_a_space_where_a_folder_says_so(tmp_path):
    once = load_tokenizer(tmp_path / "once", write(tmp_path / "once", "llama once"))
    each = load_tokenizer(tmp_path / "each", write(tmp_path / "each", "llama"))
    pieces = lambda tokenizer, text: "|".join(map(tokenizer.piece, tokenizer.encode(text)))
    assert pieces(each, "a<s>a").replace("\u2581", "_") == "_a|<s>|_a"
    assert pieces(once, "a<s>a").replace("\u2581", "_") == "_a|<s>|a"
    assert once.encode(" hello") == once.encode("hello") == each.encode("hello") != each.encode(" hello")
    for text in ("a<s>a", "hello <s> world"):
        assert once.decode(once.encode(text)) == text.replace("<s>", "")


def test_text_is_cleaned_as_the_family_was_trained(tmp_path):
    tokenizer = load_tokenizer(tmp_path, write(tmp_path, "albert"))
    same = tokenizer.encode
    assert same(" Gr\u00fc\u00dfe\n ``Hello'' ") == same('gru\u00dfe "hello"')
    ids = tokenizer.encode("12, 45, 7")
    assert not any(len(tokenizer.piece(i)) > 1 and tokenizer.piece(i).endswith(",") for i in ids)
    assert "".join(map(tokenizer.piece, ids)).replace("\u2581", " ") == " 12, 45, 7"
    kept = load_tokenizer(
        tmp_path, write(tmp_path, "albert", do_lower_case=False, keep_accents=True, remove_space=False)
    )
    assert kept.encode("HELLO") != kept.encode("hello")
    assert kept.encode("Caf\u00e9") != kept.encode("Cafe")


def test_source_and_target_have_their_own_models(tmp_path):
    tokenizer = load_tokenizer(tmp_path, write(tmp_path, "marian"))
    assert isinstance(tokenizer, PieceTokenizer)
    text = "the fox is quick"
    for side, data in ((tokenizer, model()), (tokenizer.target, model(vocab_size=400))):
        pieces = processor(data).encode(text, out_type=str)
        assert [side.piece(i) for i in side.encode(text)] == [p if p in side.ids else "<unk>" for p in pieces]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(f">>fra<< {text}") == [tokenizer.ids[">>fra<<"], *tokenizer.encode(text)]
    assert tokenizer.encode(">>none<<") == [tokenizer.specials["unk"]]

    (tmp_path / "target_vocab.json").write_text(json.dumps({"</s>": 0, "<unk>": 1, "\u2581the": 2, "<pad>": 3}))
    family = write(tmp_path, "marian", separate_vocabs=True)
    tokenizer = load_tokenizer(tmp_path, family)
    assert tokenizer.target.encode("the") == [2]
    assert tokenizer.decode([2, 0]) == "the"
    assert tokenizer.encode("the") != [2]


def test_tokenizer_json_goes_before_the_files_beside_it(tmp_path):
    family = write(tmp_path, "llama")
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    inner.save(str(tmp_path / "tokenizer.json"))
    assert isinstance(load_tokenizer(tmp_path, family), JsonTokenizer)
    assert isinstance(load_tokenizer(tmp_path), JsonTokenizer)
    train_tokenizer(TokenizerConfig("sentencepiece", 400), lines()).save(tmp_path / "ours")
    assert isinstance(load_tokenizer(tmp_path / "ours"), SentencePieceTokenizer)
    state = json.loads((tmp_path / "ours" / "tokenizer.json").read_text())
    state["model"]["merges"].pop()
    (tmp_path / "ours" / "tokenizer.json").write_text(json.dumps(state))
    assert isinstance(load_tokenizer(tmp_path / "ours"), JsonTokenizer)


def test_tokenizer_json_gets_the_tokens_that_the_files_beside_it_add(tmp_path):
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "<s>": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([AddedToken("<s>", special=True, lstrip=True)])
    inner.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "pad_token": "<pad>", "extra_special_tokens": ["<x>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a <s>a<pad>a<x>") == [1, 2, 1, 3, 1, 4]
    assert (tokenizer.bos, tokenizer.pad, tokenizer.vocab_size) == (2, 3, 5)


def test_what_cannot_be_read_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"looked for vocab\.txt, found: nothing"):
        load_tokenizer(tmp_path, families.family("bert").TOKENIZER)
    sentencepiece_alone = families.family("t5").TOKENIZER
    with pytest.raises(FileNotFoundError, match=r"spiece\.model or sentencepiece\.bpe\.model or tokenizer\.model"):
        load_tokenizer(tmp_path, sentencepiece_alone)
    with pytest.raises(ValueError, match=r"kind 'words': expected wordpiece, byte_bpe, sentencepiece"):
        load_tokenizer(tmp_path, {"kind": "words"})
    with pytest.raises(ValueError, match=r"TOKENIZER has entries that are not known: cut, joined"):
        load_tokenizer(tmp_path, {**sentencepiece_alone, "cut": 1, "joined": 2})


@pytest.mark.parametrize(
    ("name", "file", "data", "message"),
    [
        ("gpt2", "merges.txt", b"a b\na b c\n", r"merges\.txt: expected two pieces a line, found 'a b c'"),
        ("gpt2", "merges.txt", b"\xff", r"merges\.txt: expected UTF-8"),
        ("gpt2", "merges.txt", b"no such\n", r"vocab\.json and merges\.txt do not fit"),
        ("gpt2", "vocab.json", b"[", r"vocab\.json: expected JSON"),
        ("gpt2", "added_tokens.json", b'{"<a>": 1000}', r"'<a>' asks for id 1000, 501 is free"),
        ("gpt2", "tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}', r"added tokens cannot be read"),
        ("gpt2", "tokenizer_config.json", b'{"chat_template": 3}', r"chat_template: expected text, found int"),
        ("gpt2", "chat_template.jinja", b"\xff", r"chat_template\.jinja: expected UTF-8"),
        ("bert", "vocab.txt", b"a\n[CLS]\n", r"vocab\.txt lacks the token for the unknown, '\[UNK\]'"),
        ("t5", "spiece.model", b"broken", r"spiece\.model: not a SentencePiece model"),
        ("xlm-roberta", "tokenizer_config.json", b'{"unk_token": "??"}', r"lacks the token for the unknown, '\?\?'"),
        ("mbart", "tokenizer_config.json", b'{"src_lang": "xx"}', r"token 'xx' is not in the vocabulary"),
        ("marian", "vocab.json", b"{}", r"vocabulary of vocab\.json lacks the token for the unknown"),
    ],
)
def test_a_broken_folder_is_an_error_that_says_what_is_wrong(name, file, data, message, tmp_path):
    family = write(tmp_path, name)
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path, family)
    assert str(error.value).count(str(tmp_path)) == 1


@pytest.mark.parametrize("in_one_file", [False, True])
def test_an_id_that_no_vocabulary_is_large_enough_for_is_refused(in_one_file, tmp_path):
    """To write one down the library lists all ids below it, and ends the process where they have no room."""
    family = write(tmp_path, "gpt2")
    vocab = tmp_path / "vocab.json"
    if in_one_file:
        inner = Tokenizer(models.BPE.from_file(str(vocab), str(tmp_path / "merges.txt")))
        state = json.loads(inner.to_str())
        state["model"]["vocab"]["a"] = 1 << 31
        (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    vocab.write_text(json.dumps(json.loads(vocab.read_text()) | {"a": 1 << 31}))
    with pytest.raises(ValueError, match=r"the id 2147483648, of 'a': expected ids below 16777216"):
        load_tokenizer(tmp_path, family)
