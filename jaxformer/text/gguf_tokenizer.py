"""The tokenizer in a GGUF file's metadata: byte-level BPE with merges, or sentencepiece's BPE with scores.

Byte-level BPE: Radford et al. 2019, section 2.2. Sentencepiece: Kudo & Richardson 2018, arXiv:1808.06226.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jaxformer.text.tokenizer_json import JsonTokenizer

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
"""Kinds of token, as tokenizer.ggml.token_type numbers them; 5 is one never used."""
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "mask": "mask",
    "cls": "cls",
    "sep": "seperator",  # so the format spells it
}
SENTENCEPIECE_IDS = {"unk": 0, "bos": 1, "eos": 2}
"""Special ids that sentencepiece models have where the file names none."""
SPACE = "▁"


def gguf_tokenizer(metadata: Mapping[str, Any], description: Mapping[str, Any]) -> JsonTokenizer:
    """The tokenizer of a GGUF file.

    `description` says what the file only names: kind ("byte_bpe" or "sentencepiece"), bos (a document begins
    with it, unless the file says otherwise); of byte_bpe patterns, nfc, whole_words; of sentencepiece strips
    (special tokens swallow the spaces behind them, but for those in keeps_space).

    Raises a ValueError that names the metadata which is missing or contradicts itself.
    """
    tokens, kinds = _vocabulary(metadata)
    sentencepiece = description["kind"] == "sentencepiece"
    roles = _roles(metadata, tokens, SENTENCEPIECE_IDS if sentencepiece else {})
    try:
        inner = (_sentencepiece if sentencepiece else _byte_bpe)(metadata, description, tokens, kinds, roles)
    except ValueError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"tokenizer.ggml: not a tokenizer: {error}") from None
    strips, kept = description.get("strips", False), description.get("keeps_space", ())
    inner.add_tokens(
        [
            AddedToken(token, special=kind != USER, normalized=False, rstrip=strips and token not in kept)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (UNKNOWN, CONTROL, USER)
        ]
    )
    _frame(inner, metadata, description, roles)
    return JsonTokenizer(inner, roles, chat_template=chat_template(metadata))


def chat_template(metadata: Mapping[str, Any]) -> str | None:
    """The template that makes a prompt of messages, None where the file has none."""
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(_texts(metadata, "tokenizer.ggml.tokens"))]
    kinds = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type: expected one for each of {len(tokens)} tokens")
    if len(set(tokens)) < len(tokens):
        ((twice, _),) = Counter(tokens).most_common(1)
        raise ValueError(f"tokenizer.ggml.tokens: {twice!r} is there twice")
    return tokens, kinds


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    found = metadata.get(key)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"{key}: expected a list of texts")
    return found


def _pair(merge: str) -> tuple[str, str]:
    """The two pieces of a merge, which a space divides; one that begins with a space has another behind it."""
    at = merge.find(" ", 1)
    if at < 0:
        raise ValueError(f"tokenizer.ggml.merges: {merge!r} is no pair")
    return merge[:at], merge[at + 1 :]


def _roles(metadata: Mapping[str, Any], tokens: list[str], usual: Mapping[str, int]) -> dict[str, str]:
    """{role: token}"""
    found = {}
    for role, name in ROLES.items():
        key = f"tokenizer.ggml.{name}_token_id"
        id = metadata.get(key, usual.get(role))
        if id is None:
            continue
        if id not in range(len(tokens)):
            raise ValueError(f"{key} is {id}, and there are {len(tokens)} tokens")
        found[role] = tokens[id]
    return found


def _byte_bpe(
    metadata: Mapping[str, Any],
    description: Mapping[str, Any],
    tokens: list[str],
    kinds: list[int],
    roles: Mapping[str, str],
) -> Tokenizer:
    merges = [_pair(merge) for merge in _texts(metadata, "tokenizer.ggml.merges")]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=description.get("whole_words", False)))
    if description.get("nfc", False):
        inner.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in description["patterns"]]
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def _sentencepiece(
    metadata: Mapping[str, Any],
    description: Mapping[str, Any],
    tokens: list[str],
    kinds: list[int],
    roles: Mapping[str, str],
) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ValueError(f"tokenizer.ggml.scores: expected one for each of {len(tokens)} tokens")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    inner = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(tokens, kinds, scores),
            unk_token=roles.get("unk"),
            fuse_unk=True,
            byte_fallback=BYTE in kinds,
        )
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return inner


def _merges(tokens: list[str], kinds: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that make a piece; that of the best score is merged first."""
    pieces = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (NORMAL, USER)}
    pairs = [
        (-scores[whole], whole, token[:cut], token[cut:])
        for token, whole in pieces.items()
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    return [(left, right) for _, _, left, right in sorted(pairs, key=lambda p: (p[:2], pieces[p[2]], pieces[p[3]]))]


def _frame(
    inner: Tokenizer, metadata: Mapping[str, Any], description: Mapping[str, Any], roles: Mapping[str, str]
) -> None:
    """What a document begins and ends with, for those who ask the library for it; `encode` adds nothing."""
    begins = metadata.get("tokenizer.ggml.add_bos_token", description.get("bos", False))
    ends = metadata.get("tokenizer.ggml.add_eos_token", False)
    before = [roles["bos"]] if begins and "bos" in roles else []
    after = [roles["eos"]] if ends and "eos" in roles else []
    if before or after:
        special = [(token, inner.token_to_id(token)) for token in {*before, *after}]
        inner.post_processor = processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=special)
