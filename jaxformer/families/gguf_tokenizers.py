"""GGUF's names of tokenizers -> what they mean: how a text is cut into words, and which bytes are pieces."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families import qwen2, smollm3

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(ending: str, digits: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{_UPPER}*{_LOWER}+{ending}|{start}{_UPPER}+{_LOWER}*{ending}|{digits}{_SLASHES}"


_PLAIN: dict[str, Any] = {"patterns": (_GPT2,)}
_LLAMA: dict[str, Any] = {"patterns": (smollm3.TOKENIZER["pattern"],), "whole_words": True, "bos": True}
_QWEN: dict[str, Any] = {"patterns": (qwen2.TOKENIZER["pattern"],), "nfc": True}
_GPT4O: dict[str, Any] = {"patterns": (_cased(f"{_ENDINGS}?", r"\p{N}{1,3}"),)}
WORDS: dict[str, dict[str, Any]] = {
    "default": {"patterns": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")},
    "gpt-2": _PLAIN,
    "phi-2": _PLAIN,
    "olmo": _PLAIN,
    "smollm": {"patterns": (r"\p{N}", _GPT2)},
    "llama-bpe": _LLAMA,
    "llama-v3": _LLAMA,
    "llama3": _LLAMA,
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "gpt-4o": _GPT4O,
    "tekken": {"patterns": (_cased("", r"\p{N}"),), "whole_words": True, "bos": True},
}
"""tokenizer.ggml.pre -> patterns that cut a text one after the other (what matches and what lies between are
words), whether a word that is a piece stays whole, whether characters are composed first, whether a document
begins with bos."""
KEEPS_SPACE = ("<s>", "<unk>", "<|endoftext|>")


def description(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What `text.gguf_tokenizer` asks for beside the metadata. Raises ValueError for a name that is not known."""
    model, words = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if model == "llama":
        strips = metadata.get("general.architecture") == "phi3"
        return {"kind": "sentencepiece", "bos": True, "strips": strips, "keeps_space": KEEPS_SPACE}
    if model != "gpt2":
        raise ValueError(f"tokenizer.ggml.model {model!r} is not known; known are gpt2, llama")
    if words not in WORDS:
        raise ValueError(f"tokenizer.ggml.pre {words!r} is not known; known are {', '.join(WORDS)}")
    return {"kind": "byte_bpe", **WORDS[words]}
