"""Published SentencePiece models with the ids, the cleaning and the special tokens that their families add.

Text is cut by the SentencePiece library itself, on the very model that was published: no conversion stands between.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken

from jaxformer.text.sentencepiece import MARK, field, fields
from jaxformer.text.special import Published
from jaxformer.text.template import of_family

MODELS = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
SOURCE, TARGET, VOCAB, TARGET_VOCAB = "source.spm", "target.spm", "vocab.json", "target_vocab.json"
CODE = re.compile(r">>.*?<<", re.DOTALL)  # the language asked for, at the start of a text
CLEAN: dict[str, Callable[[str], str]] = {
    "spaces": lambda text: " ".join(text.split()),
    "quotes": lambda text: text.replace("``", '"').replace("''", '"'),
    "accents": lambda text: "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)),
    "lowercase": lambda text: "".join(c.lower() for c in text),  # one by one: a final sigma is as any other
}


class Pieces:
    """A SentencePiece model; `table` holds our ids of each of its pieces.

    `clean`: names of CLEAN, done first. `prefix_once`: where the model puts a space before a text, only the start
    of the whole text gets it, and none that begins with a space.
    """

    def __init__(
        self, model: bytes, table: Sequence[Sequence[int]], clean: Collection[str] = (), prefix_once: bool = False
    ) -> None:
        self.settings = (model, table, tuple(clean), prefix_once)
        self.table, self.clean = table, [CLEAN[name] for name in clean]
        normalizer = {n: v for number, spec, _ in fields(model) if number == 3 for n, v, _ in fields(spec)}
        self.prefix_once = prefix_once and bool(normalizer.get(3, 1))
        self.drops_spaces = bool(normalizer.get(4, 1))
        self.full = read_model(model)
        self.bare = read_model(without_prefix(model)) if self.prefix_once else self.full

    def encode(self, parts: Iterable[tuple[str, bool]]) -> Iterator[list[int]]:
        """Our ids of each (text, whether another text begins with it)."""
        texts: list[tuple[str, bool]] = []
        for text, first in parts:
            for step in self.clean:
                text = step(text)
            spaced = text[:1] in (" ", MARK)
            prefix = (first or spaced) if self.drops_spaces else (first and not spaced)
            texts.append((text, prefix or not self.prefix_once))
        made = {
            prefix: iter(processor.encode([text for text, each in texts if each == prefix]))
            for prefix, processor in ((True, self.full), (False, self.bare))
        }
        for _, prefix in texts:
            yield [id for piece in next(made[prefix]) for id in self.table[piece]]

    def decode(self, pieces: list[str], first: bool) -> str:
        """The text of some pieces; `first` as in `encode`. Pieces of another model keep their mark of a space."""
        return (self.full if first else self.bare).decode(pieces).replace(MARK, " ")


class PieceTokenizer:
    """A published SentencePiece model behind the Tokenizer protocol.

    `names` and `ids` hold every token, `tokens` those that are recognised in a text. Where source and target have a
    model each (Marian), `target` is the tokenizer of the target, and decodes.
    """

    def __init__(
        self,
        pieces: Pieces,
        names: Mapping[int, str],
        ids: Mapping[str, int],
        tokens: Mapping[str, AddedToken],
        family: Mapping[str, Any],
        roles: Mapping[str, str],
        published: Published,
        target: "PieceTokenizer | None" = None,
    ) -> None:
        self.pieces, self.names, self.ids = pieces, names, ids
        self.published, self.target = published, target
        self.vocab_size = max(self.names) + 1
        self.specials = {role: ids[token] for role, token in roles.items() if token in ids}
        self.bos = self.specials.get("bos", self.specials.get("cls"))
        self.eos = self.specials.get("eos", self.specials.get("sep"))
        self.pad = self.specials.get("pad")
        self.chat_template = published.chat_template
        self.template = of_family(family, roles, published.config, ids.get)
        self._added = frozenset(ids[token] for token in tokens)
        self._skipped = frozenset(ids[name] for name, token in tokens.items() if token.special)
        self._pattern = None if published.split_special else pattern(tokens.values())
        self._codes = SOURCE in published.files

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes each text, on all cores."""
        parts = [list(self._parts(text)) for text in texts]
        made = self.pieces.encode([part for each in parts for part in each if isinstance(part, tuple)])
        return [[id for part in each for id in (next(made) if isinstance(part, tuple) else [part])] for each in parts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special ids are skipped."""
        if self.target is not None:
            return self.target.decode(ids)
        text, run = "", list[str]()
        for id in (int(id) for id in ids):
            if id in self._skipped:
                continue
            if id in self._added:
                text, run = text + self.pieces.decode(run, not text) + self.names[id], []
            else:
                run.append(self.piece(id))
        return text + self.pieces.decode(run, not text)

    def piece(self, id: int) -> str:
        """How the vocabulary writes `id`."""
        if int(id) not in self.names:
            raise IndexError(f"id {id} is not in this vocabulary of {self.vocab_size}")
        return self.names[int(id)]

    def id(self, piece: str) -> int | None:
        """The id that the vocabulary writes exactly so; None where there is none."""
        return self.ids.get(piece)

    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids."""
        pattern = self._pattern and self._pattern.pattern
        told = (sorted(self.names.items()), sorted(self.specials.items()), pattern, self._codes, self.pieces.settings)
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes the files that were read."""
        self.published.write(folder)

    def _parts(self, text: str) -> Iterator[int | tuple[str, bool]]:
        """The ids of special tokens, and what stands between them."""
        at = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            yield from self._between(text[at : match.start()], at == 0)
            found = match.group()
            yield self.ids[found if found in self.ids else found.strip()]
            at = match.end()
        yield from self._between(text[at:], at == 0)

    def _between(self, text: str, first: bool) -> Iterator[int | tuple[str, bool]]:
        if self._codes and (code := CODE.match(text)):
            yield self.ids.get(code.group(), self.specials["unk"])
            text = text[code.end() :]
        if text:
            yield text, first


def load_pieces(published: Published, family: Mapping[str, Any], roles: Mapping[str, str]) -> PieceTokenizer:
    """The tokenizer of a folder with a SentencePiece model, or with one for the source and one for the target."""
    if SOURCE not in published.files:
        there = [name for name in MODELS if name in published.files] or [" or ".join((*MODELS, SOURCE))]
        published.require(there[0])
        return _tokenizer(published, family, roles, there[0])
    published.require(SOURCE, TARGET, VOCAB)
    separate = bool(published.config.get("separate_vocabs"))
    target = _tokenizer(published, family, roles, TARGET, TARGET_VOCAB if separate else VOCAB)
    return _tokenizer(published, family, roles, SOURCE, VOCAB, target)


def _tokenizer(
    published: Published,
    family: Mapping[str, Any],
    roles: Mapping[str, str],
    name: str,
    vocab: str = "",
    target: PieceTokenizer | None = None,
) -> PieceTokenizer:
    """`name` is the model's file, `vocab` that of its ids where they are not the model's own."""
    model = published.files[name]
    try:
        processor = read_model(model)
    except (RuntimeError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: not a SentencePiece model: {error}") from None
    written = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    config = published.config
    before, skip = tuple(family.get("before", ())), family.get("skip", 0)
    sentinels = config.get("extra_ids", family.get("sentinels", 0))
    after = (*family.get("after", ()), *(f"<extra_id_{i}>" for i in reversed(range(sentinels))))
    if vocab:
        ids = {str(token): int(id) for token, id in published.json(vocab).items()}
        names = {id: token for token, id in ids.items()}
    else:
        names = dict(enumerate((*before, *written[skip:], *after)))
        ids = {token: id for id, token in names.items()} | {token: id for id, token in enumerate(before)}
    if roles.get("unk") not in ids:
        raise ValueError(f"the vocabulary of {vocab or name} lacks the token for the unknown, {roles.get('unk')!r}")
    unk = ids[roles["unk"]]
    table = [[ids.get(piece, unk)] for piece in (written if vocab else written[:skip])]
    table += [[len(before) + i] for i in range(len(written) - len(table))]
    table[processor.unk_id()] = [unk]
    if family.get("split_commas"):
        _split_commas(processor, written, table)

    tokens = {token: AddedToken(token, special=True) for token in (*before, *after)}
    for id, token in published.recognised(roles, family.get("lstrip", ())):
        if id is None:
            id = ids[token.content] if token.content in ids else max(names) + 1
        if names.get(id, token.content) != token.content:
            del ids[names[id]]  # a piece that was kept free for it
        ids[token.content], names[id], tokens[token.content] = id, token.content, token
    told = {"lowercase": config.get("do_lower_case", True), "accents": not config.get("keep_accents", False)}
    told["spaces"] = config.get("remove_space", True)
    clean = [name for name in family.get("clean", ()) if told.get(name, True)]
    pieces = Pieces(model, table, clean, config.get("legacy") is False)
    return PieceTokenizer(pieces, names, ids, tokens, family, roles, published, target)


def _split_commas(processor: Any, names: Sequence[str], table: list[list[int]]) -> None:
    """Makes "9," of the table "9" and ",": the model learnt it as a piece, the family was trained without."""
    plain = [list(ids) for ids in table]
    for i, name in enumerate(names):
        if len(name) > 1 and name[-1] == "," and name[-2].isdigit():
            parts = processor.encode(name[:-1].replace(MARK, ""), out_type=str)
            if name[0] != MARK and parts[0][0] == MARK:
                parts[0] = parts[0][1:]
            table[i] = [id for part in (*parts, ",") if part for id in plain[processor.piece_to_id(part)]]


def pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str] | None:
    """What finds these tokens in a text, the longest first, with the spaces that they take in."""
    found = []
    for token in sorted((token for token in tokens if token.content), key=lambda token: -len(token.content)):
        written = re.escape(token.content)
        if token.single_word:
            written = rf"(?<!\w){written}(?!\w)"
        found.append((r"\s*" if token.lstrip else "") + written + (r"\s*" if token.rstrip else ""))
    return re.compile("|".join(found)) if found else None


def read_model(model: bytes) -> Any:
    """The SentencePiece processor of a model file."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def without_prefix(model: bytes) -> bytes:
    """The model, without a space before the text."""
    out = []
    for number, value, raw in fields(model):
        if number == 3:
            raw = field(3, b"".join(each for n, _, each in fields(value) if n != 3) + field(3, 0))
        out.append(raw)
    return b"".join(out)
