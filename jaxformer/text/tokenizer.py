"""The tokenizer protocol, and the two ways to get one: train it, or load it from a folder."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from jaxformer.text.published import load_published
from jaxformer.text.sentencepiece import MODEL_FILE, json_twin, load_sentencepiece, train_sentencepiece
from jaxformer.text.special import Published, read_published
from jaxformer.text.template import Template
from jaxformer.text.tokenizer_json import JSON_FILE, load_json, train_byte_bpe, train_wordpiece

NAME = re.compile(r"<\S*[^\W_]\S*>|\[\S*[^\W_]\S*\]")  # of a special token


class Tokenizer(Protocol):
    """Text to ids and back; it knows no arrays.

    `encode` and `decode` speak of text alone: special tokens are added by `template`, where a model was trained
    with them around its text, or by the one who writes a prompt. Published tokenizers recognise the names of
    special tokens within a text. Loaded and saved again, a tokenizer's files are the same bytes.
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    @property
    def bos(self) -> int | None:
        """Id that begins a document."""
        ...

    @property
    def eos(self) -> int | None:
        """Id that ends a document."""
        ...

    @property
    def pad(self) -> int | None:
        """Id that fills a row."""
        ...

    @property
    def specials(self) -> Mapping[str, int]:
        """Ids of special tokens by role: bos, eos, unk, pad, mask, cls, sep, as far as there are."""
        ...

    @property
    def chat_template(self) -> str | None:
        """How messages become one text, for `chat.render`; None where nothing says it."""
        ...

    @property
    def template(self) -> Template:
        """`template(ids, pair_ids=None)` gives (ids, token types) with special tokens, as the model reads them."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; adds no special tokens."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes each text, on all cores."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special ids are skipped, and those behind the vocabulary, which a model may have."""
        ...

    def piece(self, id: int) -> str:
        """How the vocabulary writes `id`."""
        ...

    def id(self, piece: str) -> int | None:
        """The id that the vocabulary writes exactly so, special tokens included; None where there is none."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes the published layout: `load_tokenizer(folder)` and the reference's AutoTokenizer read it."""
        ...

    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids."""
        ...


@dataclass(frozen=True)
class TokenizerConfig:
    """How to train a tokenizer."""

    kind: Literal["sentencepiece", "byte_bpe", "wordpiece"] = "sentencepiece"
    """sentencepiece: BPE with byte fallback; byte_bpe: as GPT-2; wordpiece: as BERT."""
    vocab_size: int = 4096
    """Pieces at most, special ones included."""
    across_words: bool = False
    """sentencepiece: a piece may run over spaces and punctuation."""
    max_piece: int = 16
    """sentencepiece: characters of the longest piece."""
    lowercase: bool = True
    """wordpiece: lower-case the text and strip accents."""
    add_bos: bool = False
    """A start token goes before each prompt, as before the documents that a decoder learns from: for prompts that are
    no text's middle. wordpiece has [CLS] there in any case."""
    specials: tuple[str, ...] = ()
    """Further special tokens, such as <mask> or <extra_id_0>; a text that contains such a name is plain text."""


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains a tokenizer; the same texts in the same order give the same bytes.

    `config.specials` get the ids behind those that its kind always has, in their order. `encode` never gives them,
    `decode` skips them, `id` finds them. One that is named after a role, as <mask> or [MASK], takes that role where
    the kind has no token for it. Names are written in <> or []: those are never pieces of a text.

    Raises ValueError where there is no text, too few pieces asked for to hold its alphabet, or a name is another's.
    """
    if wrong := [name for name in config.specials if not NAME.fullmatch(name)]:
        raise ValueError(f"tokenizer.specials: expected names such as <mask> or [MASK], found {', '.join(wrong)}")
    specials = tuple(dict.fromkeys(config.specials))
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError("a tokenizer learns from text, and there is none: every document is empty")
    if config.kind == "sentencepiece":
        return train_sentencepiece(
            texts, config.vocab_size, config.across_words, config.max_piece, specials, config.add_bos
        )
    if config.kind == "byte_bpe":
        return train_byte_bpe(texts, config.vocab_size, specials, config.add_bos)
    if config.kind == "wordpiece":
        return train_wordpiece(texts, config.vocab_size, config.lowercase, specials)
    raise ValueError(f"tokenizer kind {config.kind!r}: expected sentencepiece, byte_bpe or wordpiece")


def load_tokenizer(folder: str | Path, tokenizer: Mapping[str, Any] | None = None) -> Tokenizer:
    """Opens the tokenizer in `folder`: tokenizer.json as it is; without one, as a family's TOKENIZER says.

    tokenizer.json goes first because it alone holds the tokens that were added to a published model file. Where
    tokenizer.model says the very same, as for tokenizers trained here, that is opened in its place: it is faster.
    Without `tokenizer` (see published.py) a tokenizer.model is read as its own library reads it.

    Raises FileNotFoundError where there is no tokenizer that can be read, ValueError where a file is broken.
    """
    published = read_published(folder)
    if JSON_FILE in published.files:
        return load_sentencepiece(published) if _is_twin(published) else load_json(published)
    if tokenizer is not None:
        return load_published(published, tokenizer)
    if MODEL_FILE in published.files:
        return load_sentencepiece(published)
    folder = Path(folder)
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) if folder.is_dir() else "no such folder"
    raise FileNotFoundError(
        f"{folder}: no tokenizer: looked for {JSON_FILE} and {MODEL_FILE}, found: {there or 'nothing'}; "
        "other files need the family's TOKENIZER to be read"
    )


def _is_twin(published: Published) -> bool:
    """Whether tokenizer.json is what `SentencePieceTokenizer.save` writes beside this tokenizer.model."""
    if MODEL_FILE not in published.files or not published.split_special:
        return False
    twin = json_twin(load_sentencepiece(published))
    return twin is not None and twin.to_str() == load_json(published).inner.to_str()
