"""Tokenizers of published folders without a tokenizer.json, built from what their family says of itself.

A family's TOKENIZER is plain data:

- kind: "wordpiece" (vocab.txt), "byte_bpe" (vocab.json, merges.txt) or "sentencepiece" (a model file);
- special: {role: token}; what the folder says of a role goes before it, null included;
- template: (single, pair), as "{cls} $A {sep}" and "{cls} $A {sep} $B:1 {sep}:1": names in braces are roles, all
  else but $A and $B are tokens, ":1" is a token type. {src_lang} is the src_lang of tokenizer_config.json;
- src_lang: its value where the folder has none;
- lstrip: roles whose token takes in the spaces before it;
- byte_bpe: normalizer ("NFC"), pattern (how text is cut before; without it as GPT-2 does);
- sentencepiece: before (tokens of the first ids, in place of the model's first `skip` pieces), after (tokens that
  follow its last piece), sentinels (number of <extra_id_...> that follow, counted down; `extra_ids` of
  tokenizer_config.json goes before), clean (what is done to a text first, of `pieces.CLEAN`), split_commas (a comma
  after a digit is a piece of its own);
- variants: {tokenizer_class: further entries}, for folders whose tokenizer_config.json names that class.

The folder's own do_lower_case, strip_accents, tokenize_chinese_chars, keep_accents, add_prefix_space, legacy,
add_bos_token, add_eos_token, split_special_tokens and added tokens are read from its files.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from jaxformer.text.pieces import PieceTokenizer, load_pieces
from jaxformer.text.special import Published
from jaxformer.text.template import of_family
from jaxformer.text.tokenizer_json import JsonTokenizer, add_tokens, check_ids

KEYS = {
    *("kind", "special", "template", "src_lang", "lstrip", "variants", "normalizer", "pattern"),
    *("before", "skip", "after", "sentinels", "clean", "split_commas"),
}
NORMALIZERS = {"NFC": normalizers.NFC}


def load_published(published: Published, family: Mapping[str, Any]) -> JsonTokenizer | PieceTokenizer:
    """The tokenizer of a folder, as `family`, a TOKENIZER, describes it; ids equal those it was trained with.

    Raises FileNotFoundError where the folder lacks the files of this kind, and a ValueError that names the file
    and what is wrong in it.
    """
    of_class = str(published.config.get("tokenizer_class")).removesuffix("Fast")
    family = {**family, **family.get("variants", {}).get(of_class, {})}
    if unknown := sorted(family.keys() - KEYS):
        raise ValueError(f"TOKENIZER has entries that are not known: {', '.join(unknown)}")
    kind = family.get("kind")
    if kind not in KINDS:
        raise ValueError(f"tokenizer kind {kind!r}: expected {', '.join(KINDS)}")
    roles = published.roles(family.get("special", {}))
    try:
        return KINDS[kind](published, family, roles)
    except ValueError as error:
        named = published.name in str(error)
        raise ValueError(str(error) if named else f"{published.name}: {error}") from None


def _wordpiece(published: Published, family: Mapping[str, Any], roles: Mapping[str, str]) -> JsonTokenizer:
    published.require("vocab.txt")
    lines = published.text("vocab.txt").removesuffix("\n").split("\n")
    vocab = {line.rstrip(): i for i, line in enumerate(lines)}
    if roles.get("unk") not in vocab:
        raise ValueError(f"vocab.txt lacks the token for the unknown, {roles.get('unk')!r}")
    inner = Tokenizer(models.WordPiece(vocab, unk_token=roles["unk"]))
    config = published.config
    inner.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return _finished(inner, published, family, roles)


def _byte_bpe(published: Published, family: Mapping[str, Any], roles: Mapping[str, str]) -> JsonTokenizer:
    published.require("vocab.json", "merges.txt")
    vocab = published.json("vocab.json")
    lines = published.text("merges.txt").split("\n")
    merges: list[Any] = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise ValueError(f"merges.txt: expected two pieces a line, found {' '.join(wrong)!r}")
    try:
        inner = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"vocab.json and merges.txt do not fit: {error}") from None
    if "normalizer" in family:
        inner.normalizer = NORMALIZERS[family["normalizer"]]()
    space = bool(published.config.get("add_prefix_space", False))
    if "pattern" in family:
        split = pre_tokenizers.Split(Regex(family["pattern"]), "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)
        inner.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    else:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    inner.decoder = decoders.ByteLevel()
    return _finished(inner, published, family, roles)


def _finished(
    inner: Tokenizer, published: Published, family: Mapping[str, Any], roles: Mapping[str, str]
) -> JsonTokenizer:
    check_ids(inner)
    add_tokens(inner, published.recognised(roles, family.get("lstrip", ())))
    template = of_family(family, roles, published.config, inner.token_to_id)
    return JsonTokenizer(inner, roles, published.split_special, template, published.chat_template, published)


KINDS: dict[str, Callable[..., JsonTokenizer | PieceTokenizer]] = {
    "wordpiece": _wordpiece,
    "byte_bpe": _byte_bpe,
    "sentencepiece": load_pieces,
}
