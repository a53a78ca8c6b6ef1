"""SentencePiece tokenizers: trained here without loss, or read from a published tokenizer.model.

SentencePiece: Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as JsonTokenizer

from jaxformer.text.files import write_file
from jaxformer.text.special import Published, named_after_roles, read_published, write_special
from jaxformer.text.template import Template, flagged
from jaxformer.text.tokenizer_json import starting

MODEL_FILE = "tokenizer.model"
MARK = "\u2581"  # how SentencePiece writes a space in its pieces, unless told not to
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # ModelProto.SentencePiece.Type
TOKENS = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}  # of the models trained here
CHUNK = 2000  # characters of a training sentence
BORDER = "\ue000"  # of the private use area: where the trainer may not join pieces; it is no part of the text


class SentencePieceTokenizer:
    """A SentencePiece model (the bytes of a tokenizer.model) behind the Tokenizer protocol.

    `tokens` names special tokens by role where they differ from those of the model itself. `published` is what
    `save` writes, in place of files of its own.
    """

    def __init__(
        self,
        model: bytes,
        tokens: dict[str, str] | None = None,
        chat_template: str | None = None,
        published: Published | None = None,
        add_bos: bool = False,
    ) -> None:
        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self.processor.get_piece_size()
        ids = {role: getattr(self.processor, f"{role}_id")() for role in ("bos", "eos", "unk", "pad")}
        self.specials = {role: i for role, i in ids.items() if i >= 0}
        for role, token in (tokens or {}).items():
            if (i := self.id(token)) is not None:
                self.specials[role] = i
        self.bos, self.eos, self.pad = (self.specials.get(role) for role in ("bos", "eos", "pad"))
        self.chat_template = chat_template
        self.published = published
        told = published.config if published else {"add_bos_token": add_bos, "add_eos_token": False}
        self.template = flagged(Template(), told, self.bos, self.eos)
        self._skipped = frozenset(self.specials.values())

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens."""
        return self.processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes each text, on all cores."""
        return self.processor.encode(list(texts)) if texts else []

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special ids are skipped, and those behind the vocabulary, which a model may have."""
        kept = (id for id in map(int, ids) if id < self.vocab_size and id not in self._skipped)
        return self.processor.decode(list(kept))

    def piece(self, id: int) -> str:
        """How the vocabulary writes `id`."""
        return self.processor.id_to_piece(int(id))

    def id(self, piece: str) -> int | None:
        """The id that the vocabulary writes exactly so; None where there is none."""
        id = self.processor.piece_to_id(piece)  # that of unk for what is no piece
        return id if self.processor.id_to_piece(id) == piece else None

    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids."""
        digest = hashlib.sha256(self.model)
        digest.update(repr(sorted(self.specials.items())).encode())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes the files that were read; else tokenizer.model, special tokens, and tokenizer.json if it can."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.published is not None:
            self.published.write(folder)
            return
        write_file(folder / MODEL_FILE, self.model)
        config: dict[str, Any] = {"add_bos_token": self.template != Template(), "add_eos_token": False}
        twin = json_twin(self)
        if twin is not None:
            write_file(folder / "tokenizer.json", twin.to_str(pretty=True).encode())
            config |= {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
                "split_special_tokens": True,
            }
        write_special(folder, {role: self.piece(i) for role, i in self.specials.items()}, config, self.chat_template)


def load_sentencepiece(published: Published | str | Path) -> SentencePieceTokenizer:
    """Reads tokenizer.model, and special tokens from the files beside it."""
    if not isinstance(published, Published):
        published = read_published(published)
    try:
        return SentencePieceTokenizer(
            published.files[MODEL_FILE], published.special, published.chat_template, published
        )
    except (RuntimeError, TypeError, UnicodeDecodeError) as error:  # the last two of texts that are not Unicode
        raise ValueError(f"{published.name}/{MODEL_FILE}: not a SentencePiece model: {error}") from None


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    across_words: bool = True,
    max_piece: int = 16,
    specials: Sequence[str] = (),
    add_bos: bool = False,
) -> SentencePieceTokenizer:
    """Trains byte-pair pieces that lose nothing: decode(encode(x)) == x for every string x.

    No normalization, no dummy prefix, every digit alone, bytes for characters that are not in the vocabulary.
    `across_words` lets a piece run over spaces and punctuation ("):\\n        return"), up to `max_piece`
    characters. Without it none ends its line ("):\\n" is two pieces), so that a prompt may stop there and reads
    as the text did in training. Few texts may give fewer pieces than `vocab_size`.
    Special ids: <unk> 0, <s> 1, </s> 2, <pad> 3, then `specials`. `add_bos`: the template puts <s> before a text.
    """
    further = [name for name in specials if name not in TOKENS.values()]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chunks(texts) if across_words else with_line_borders(chunks(texts)),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            split_by_whitespace=not across_words,
            split_by_unicode_script=not across_words,
            pretokenization_delimiter="" if across_words else BORDER,
            max_sentencepiece_length=max_piece,
            max_sentence_length=8 * CHUNK,
            character_coverage=0.9995,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            control_symbols=further,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"sentencepiece could not train {vocab_size} pieces: {error}") from None
    tokens = named_after_roles(further) | TOKENS
    return SentencePieceTokenizer(with_plain_spaces(model.getvalue()), tokens, add_bos=add_bos)


def chunks(texts: Iterable[str]) -> Iterator[str]:
    """Groups of whole lines of about CHUNK characters, newlines kept: the trainer drops long sentences."""
    for text in texts:
        start = 0
        while start < len(text):
            stop = text.find("\n", start + CHUNK // 2, start + CHUNK) + 1 or start + CHUNK
            yield text[start:stop]
            start = stop


def with_line_borders(texts: Iterable[str]) -> Iterator[str]:
    """Each text with a BORDER at the end of each of its lines, before the newline."""
    return (text.replace("\n", f"{BORDER}\n") for text in texts)


def json_twin(tokenizer: SentencePieceTokenizer) -> JsonTokenizer | None:
    """The same tokenizer for the `tokenizers` library, or None where that can not be said exactly.

    It can for byte-pair models with byte fallback that neither normalize nor hold user-defined pieces.
    """
    settings = Settings(tokenizer.model)
    if not settings.exact_as_json:
        return None
    vocab = {piece: i for i, (piece, _) in enumerate(settings.pieces)}
    model = models.BPE(vocab, merges(vocab), byte_fallback=True, fuse_unk=True, unk_token=settings.unknown)
    twin = JsonTokenizer(model)
    before: list[Any] = [normalizers.Prepend(MARK)] if settings.dummy_prefix else []
    after: list[Any] = []
    if settings.marks_spaces:
        before.append(normalizers.Replace(" ", MARK))
        after.append(decoders.Replace(MARK, " "))
    after += [decoders.ByteFallback(), decoders.Fuse()]
    if settings.dummy_prefix:
        after.append(decoders.Strip(" ", 1, 0))
    if before:
        twin.normalizer = normalizers.Sequence(before)
    twin.decoder = decoders.Sequence(after)
    special = [p for p, kind in settings.pieces if kind in (UNKNOWN, CONTROL)]
    twin.add_special_tokens([AddedToken(p, special=True, normalized=False) for p in special])
    if tokenizer.bos is not None and tokenizer.template.single == (((tokenizer.bos,), 0), ("A", 0)):
        twin.post_processor = starting(tokenizer.piece(tokenizer.bos), tokenizer.bos)
    return twin


def merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, in SentencePiece's order: the rank of the piece made."""
    found = []
    for piece, rank in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                found.append((rank, vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


# The model file is a protocol buffer (sentencepiece_model.proto). Reading three messages of it by hand saves
# a dependency on protobuf, whose generated code is bound to its runtime's version.


def fields(message: bytes) -> Iterator[tuple[int, Any, bytes]]:
    """(number, value, its own bytes) of each field of a protocol buffer message; a value is int or bytes.

    Raises ValueError where the message breaks off, or is a number.
    """
    if not isinstance(message, bytes):
        raise ValueError("not a SentencePiece model: a number where there should be fields")

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        for byte in message[at : at + 10]:
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at
        raise ValueError("not a SentencePiece model: a number breaks off")

    at = 0
    while at < len(message):
        start = at
        tag, at = varint(at)
        value: Any
        if tag & 7 == 0:
            value, at = varint(at)
        else:
            size, at = varint(at) if tag & 7 == 2 else ({1: 8, 5: 4}.get(tag & 7, len(message)), at)
            value, at = message[at : at + size], at + size
            if at > len(message):
                raise ValueError("not a SentencePiece model: a field breaks off")
        yield tag >> 3, value, message[start:at]


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer message: a number (varint) or bytes."""

    def varint(n: int) -> bytes:
        return (bytes([n & 127 | 128]) + varint(n >> 7)) if n > 127 else bytes([n])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


class Settings:
    """What a model file says of itself: pieces (text, type) and how text is normalized."""

    def __init__(self, model: bytes) -> None:
        self.pieces: list[tuple[str, int]] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value, _ in fields(model):
            if number == 1:
                piece = {n: v for n, v, _ in fields(value)}
                self.pieces.append((piece[1].decode(), piece.get(3, 1)))
            elif number in (2, 3):
                target = trainer if number == 2 else normalizer
                target.update({n: v for n, v, _ in fields(value)})
        self.dummy_prefix = bool(normalizer.get(3, 1))
        self.marks_spaces = bool(normalizer.get(5, 1))
        self.unknown = next(piece for piece, kind in self.pieces if kind == UNKNOWN)
        self.exact_as_json = (
            trainer.get(3, 1) == 2  # byte-pair
            and bool(trainer.get(35, 0))  # byte_fallback
            and not trainer.get(24, 0)  # treat_whitespace_as_suffix
            and not normalizer.get(2, b"")  # character map
            and not normalizer.get(4, 1)  # remove_extra_whitespaces
            and all(kind != USER_DEFINED for _, kind in self.pieces)
        )


def with_plain_spaces(model: bytes) -> bytes:
    """The model with real spaces in its pieces, so that the character U+2581 in a text stays itself.

    It stays itself in the names of special tokens too.
    """
    out = []
    for number, value, raw in fields(model):
        if number == 1:
            piece = {n: (v, r) for n, v, r in fields(value)}
            kind, _ = piece.get(3, (None, b""))
            if kind != CONTROL:
                text = field(1, piece[1][0].decode().replace(MARK, " ").encode())
                raw = field(1, b"".join(text if n == 1 else r for n, (_, r) in piece.items()))
        elif number == 3:
            kept = (r for n, _, r in fields(value) if n != 5)
            raw = field(3, b"".join(kept) + field(5, 0))
        out.append(raw)
    return b"".join(out)
