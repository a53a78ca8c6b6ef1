"""Tokenizers of the `tokenizers` library: byte-level BPE and WordPiece trained here, any tokenizer.json read.

Byte-level BPE: Radford et al. 2019, section 2.2. WordPiece as used by Devlin et al. 2018, section 3.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxformer.text.files import write_file
from jaxformer.text.special import Published, named_after_roles, read_published, write_special
from jaxformer.text.template import Template, of_post_processor

JSON_FILE = "tokenizer.json"
BYTE_BPE_TOKENS = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
WORDPIECE_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MOST_IDS = 1 << 24
ALPHABET = 1000  # characters that a WordPiece vocabulary keeps, the most frequent ones


class JsonTokenizer:
    """A `tokenizers.Tokenizer` behind the Tokenizer protocol; `tokens` names its special tokens by role.

    Where a model has cls and sep alone (BERT), they stand for bos and eos. `split_special` makes the names
    of special tokens within a text ordinary text; published tokenizers mostly recognise them. `template`:
    None takes that of the post_processor. `published` is what `save` writes, in place of files of its own.
    """

    def __init__(
        self,
        inner: Tokenizer,
        tokens: Mapping[str, str],
        split_special: bool = False,
        template: Template | None = None,
        chat_template: str | None = None,
        published: Published | None = None,
    ) -> None:
        self.inner = inner
        self.inner.no_padding()
        self.inner.no_truncation()
        self.inner.encode_special_tokens = split_special
        self.vocab_size: int = inner.get_vocab_size()
        ids = {role: inner.token_to_id(token) for role, token in tokens.items()}
        self.specials = {role: i for role, i in ids.items() if i is not None}
        self.bos = self.specials.get("bos", self.specials.get("cls"))
        self.eos = self.specials.get("eos", self.specials.get("sep"))
        self.pad = self.specials.get("pad")
        self.template = template or of_post_processor(_state(inner.post_processor))
        self.chat_template = chat_template
        self.published = published
        self._skipped = frozenset(self.specials.values())

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens."""
        return self.encode_batch([text])[0]  # the library's own encode keeps the GIL

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes each text, on all cores."""
        return [e.ids for e in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special ids are skipped."""
        return self.inner.decode([int(i) for i in ids if int(i) not in self._skipped])

    def piece(self, id: int) -> str:
        """How the vocabulary writes `id`."""
        piece = self.inner.id_to_token(int(id))
        if piece is None:
            raise IndexError(f"id {id} is not in this vocabulary of {self.vocab_size}")
        return piece

    def id(self, piece: str) -> int | None:
        """The id that the vocabulary writes exactly so; None where there is none."""
        return self.inner.token_to_id(piece)

    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids."""
        digest = hashlib.sha256(self.inner.to_str().encode())
        digest.update(repr((sorted(self.specials.items()), self.inner.encode_special_tokens)).encode())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes the files that were read, or else tokenizer.json and what lies beside it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.published is not None:
            self.published.write(folder)
            return
        write_file(folder / JSON_FILE, self.inner.to_str(pretty=True).encode())
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": self.inner.encode_special_tokens,
        }
        write_special(folder, {role: self.piece(i) for role, i in self.specials.items()}, config, self.chat_template)


def load_json(published: Published | str | Path) -> JsonTokenizer:
    """Reads tokenizer.json as it is, and adds the tokens that the files beside it name and it does not."""
    if not isinstance(published, Published):
        published = read_published(published)
    path = f"{published.name}/{JSON_FILE}"
    try:
        inner = Tokenizer.from_buffer(published.files[JSON_FILE])
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: not a tokenizer of the tokenizers library: {error}") from None
    try:
        check_ids(inner)
        add_tokens(inner, published.added)
        template = of_post_processor(_state(inner.post_processor))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return JsonTokenizer(
        inner, published.special, published.split_special, template, published.chat_template, published
    )


def check_ids(inner: Tokenizer) -> None:
    """Raises a ValueError for an id that no vocabulary is large enough for: the library lists all ids below it."""
    largest = max(inner.get_vocab().values(), default=0)
    if largest >= MOST_IDS:
        raise ValueError(f"the id {largest}, of {inner.id_to_token(largest)!r}: expected ids below {MOST_IDS}")


def add_tokens(inner: Tokenizer, added: Iterable[tuple[int | None, AddedToken]]) -> None:
    """Adds each token that `inner` does not recognise yet. Raises a ValueError where one cannot have its id."""
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    missing = [(i, token) for i, token in added if token.content not in known]
    inner.add_tokens([token for _, token in missing])
    wrong = [(t.content, i, inner.token_to_id(t.content)) for i, t in missing if i is not None]
    wrong = [each for each in wrong if each[1] != each[2]]
    if wrong:
        listed = ", ".join(f"{token!r} asks for id {asked}, {got} is free" for token, asked, got in wrong[:5])
        raise ValueError(f"added tokens do not follow the vocabulary: {listed}")


def _state(post_processor: Any) -> Any:
    return None if post_processor is None else json.loads(post_processor.__getstate__())


def train_byte_bpe(
    texts: Iterable[str], vocab_size: int, specials: Sequence[str] = (), add_bos: bool = False
) -> JsonTokenizer:
    """Trains byte-level BPE: decode(encode(x)) == x for every string.

    Special ids: <unk> 0, <s> 1, </s> 2, <pad> 3, then `specials`. `add_bos`: the template puts <s> before a text.
    """
    tokens = list(dict.fromkeys((*BYTE_BPE_TOKENS.values(), *specials)))
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    if add_bos:
        inner.post_processor = starting(BYTE_BPE_TOKENS["bos"], 1)
    return JsonTokenizer(inner, named_after_roles(specials) | BYTE_BPE_TOKENS, split_special=True)


def starting(bos: str, id: int) -> processors.TemplateProcessing:
    """What puts a start token before a text."""
    return processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B:1", [(bos, id)])


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, lowercase: bool = True, specials: Sequence[str] = ()
) -> JsonTokenizer:
    """Trains WordPiece as BERT has it: words and "##" continuations, text normalized (not lossless).

    Special ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then `specials`. The template puts [CLS] before a text
    and [SEP] behind it.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    characters: Counter[str] = Counter()

    def counted() -> Iterator[str]:
        for text in texts:
            text = normalizer.normalize_str(text)
            characters.update(text)
            yield text

    kept = list(counted())
    common = sorted(characters, key=lambda c: (-characters[c], c))
    alphabet = [c for c in common if not c.isspace()][:ALPHABET]
    tokens = list(dict.fromkeys((*WORDPIECE_TOKENS.values(), *specials)))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The trainer numbers "##c" in the order of a hash table, another one in each process; given ids
        # beforehand they are the same in all.
        special_tokens=[*tokens, *alphabet, *(f"##{c}" for c in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner = Tokenizer(models.WordPiece(unk_token=WORDPIECE_TOKENS["unk"]))
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner.train_from_iterator(kept, trainer)

    vocab = learner.get_vocab(with_added_tokens=True)
    inner = Tokenizer(models.WordPiece(vocab, unk_token=WORDPIECE_TOKENS["unk"]))
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(cleanup=False)
    sep, cls = ((token := WORDPIECE_TOKENS[role], vocab[token]) for role in ("sep", "cls"))
    inner.post_processor = processors.BertProcessing(sep, cls)
    return JsonTokenizer(inner, named_after_roles(specials) | WORDPIECE_TOKENS, split_special=True)
