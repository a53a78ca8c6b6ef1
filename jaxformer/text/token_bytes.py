"""The bytes that each id of a vocabulary writes into a text."""

import json
from collections.abc import Callable
from functools import lru_cache

from tokenizers import Tokenizer as Library
from tokenizers import pre_tokenizers

from jaxformer.text.offsets import BYTE
from jaxformer.text.pieces import PieceTokenizer
from jaxformer.text.sentencepiece import MARK, SentencePieceTokenizer
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.text.tokenizer_json import JsonTokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
BEFORE = "a"
"""What stands before a token when the library is asked how it writes it there."""
NOT_ALONE = {"BPEDecoder", "CTC"}
"""Decoders by which what a token writes depends on the next one."""


def token_bytes(tokenizer: Tokenizer) -> tuple[bytes | None, ...]:
    """What each id adds to a text that goes on, the space before it included; made once for a tokenizer.

    None for ids that write nothing: special ones, those that stand for the unknown, and holes of the vocabulary.
    `decode` of any ids that it does not begin with is the bytes of all on end, as UTF-8.

    Raises ValueError for a vocabulary whose ids write this or that, as others follow.
    """
    return _made(tokenizer)  # type: ignore[arg-type]


def opening_bytes(tokenizer: Tokenizer) -> tuple[bytes | None, ...]:
    """As `token_bytes`, of ids that a text begins with: many a tokenizer drops the first one's space."""
    return tuple(
        None if each is None else _opening(tokenizer, id, each) for id, each in enumerate(token_bytes(tokenizer))
    )


@lru_cache(maxsize=4)
def _made(tokenizer: Tokenizer) -> tuple[bytes | None, ...]:
    if isinstance(tokenizer, JsonTokenizer):
        return _of_library(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _of_sentencepiece(tokenizer)
    if isinstance(tokenizer, PieceTokenizer):
        return _of_pieces(tokenizer.target or tokenizer)
    return _of_any(tokenizer)


def _of_library(tokenizer: JsonTokenizer) -> tuple[bytes | None, ...]:
    inner = tokenizer.inner
    special = {id for id, token in inner.get_added_tokens_decoder().items() if token.special}
    special |= {*tokenizer.specials.values()}
    write = _writer(inner)
    size = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    names = (None if id in special else inner.id_to_token(id) for id in range(size))
    return tuple(None if name is None else write(name) for name in names)


def _writer(inner: Library) -> Callable[[str], bytes]:
    """What turns the name of a token into its bytes, as the tokenizer's decoder does."""
    if inner.decoder is None:
        return lambda name: f" {name}".encode()
    state = json.loads(inner.decoder.__getstate__())
    kinds = {each["type"] for each in (state, *state.get("decoders", ()))}
    if kinds & NOT_ALONE:
        raise ValueError(f"the decoder {', '.join(sorted(kinds & NOT_ALONE))} has no bytes for each token by itself")
    if "ByteLevel" in kinds:
        return byte_level

    def write(name: str) -> bytes:
        if "ByteFallback" in kinds and BYTE.fullmatch(name):
            return bytes([int(name[3:5], 16)])
        return inner.decoder.decode([BEFORE, name])[len(inner.decoder.decode([BEFORE])) :].encode()

    return write


def byte_level(name: str) -> bytes:
    """The bytes that a byte-level vocabulary writes as `name`; one that has other characters is plain text."""
    found = [BYTE_OF.get(character) for character in name]
    return bytes(byte for byte in found if byte is not None) if None not in found else name.encode()


def _byte_of() -> dict[str, int]:
    """{character: byte}: visible bytes of Latin-1 stand for themselves, the others for 256 and on, in their order."""
    visible = {chr(byte): byte for byte in range(256) if chr(byte) in {*pre_tokenizers.ByteLevel.alphabet()}}
    others = [byte for byte in range(256) if byte not in visible.values()]
    return visible | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_of()


def _of_sentencepiece(tokenizer: SentencePieceTokenizer) -> tuple[bytes | None, ...]:
    processor, silent = tokenizer.processor, {*tokenizer.specials.values()}

    def write(id: int) -> bytes | None:
        if id in silent or processor.is_control(id) or processor.is_unknown(id) or processor.is_unused(id):
            return None
        piece = processor.id_to_piece(id)
        if processor.is_byte(id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(MARK, " ").encode()

    return tuple(write(id) for id in range(tokenizer.vocab_size))


def _of_pieces(tokenizer: PieceTokenizer) -> tuple[bytes | None, ...]:
    processor = tokenizer.pieces.full
    silent = tokenizer._skipped | {*tokenizer.specials.values()}

    def write(id: int) -> bytes | None:
        name = tokenizer.names.get(id)
        if name is None or id in silent:
            return None
        if id in tokenizer._added:
            return name.encode()
        is_byte = BYTE.fullmatch(name) and processor.is_byte(processor.piece_to_id(name))
        return bytes([int(name[3:5], 16)]) if is_byte else name.replace(MARK, " ").encode()

    return tuple(write(id) for id in range(tokenizer.vocab_size))


def _of_any(tokenizer: Tokenizer) -> tuple[bytes | None, ...]:
    """Of a tokenizer that we know nothing else of, by what it decodes."""
    texts = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]
    before = next(id for id, text in enumerate(texts) if text.strip() and BROKEN not in text)
    start = len(tokenizer.decode([before]))
    after = [tokenizer.decode([before, id])[start:] for id in range(tokenizer.vocab_size)]
    if broken := [id for id, text in enumerate(after) if BROKEN in text]:
        raise ValueError(
            f"id {broken[0]} of this {type(tokenizer).__name__} is part of a character: of which bytes is known for "
            "tokenizers of jaxformer.text alone"
        )
    return tuple(text.encode() or None for text in after)


def _opening(tokenizer: Tokenizer, id: int, written: bytes) -> bytes:
    try:
        written.decode()
    except UnicodeDecodeError:
        return written
    return tokenizer.decode([id]).encode()
