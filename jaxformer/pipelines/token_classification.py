"""Text to the classes of its tokens, or to the entities that these make up. T length, N classes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.pipelines import forward
from jaxformer.pipelines.base import (
    Options,
    Pipeline,
    Row,
    label_names,
    lacks_head,
    least,
    one_of,
    outputs,
    softmax,
)
from jaxformer.tasks import labels as shared
from jaxformer.text.offsets import Span, raw_offsets
from jaxformer.text.sentencepiece import MARK
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.text.tokenizer_json import JsonTokenizer

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class TokenOptions(Options):
    """Options of token-classification."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "none"
    """none: each token. simple: neighbours of one type make an entity, by their B- and I-. first, average, max: the
    same of whole words, each of which has the class of its first token, or the class of the largest mean over its
    tokens, or that of the token that is surest."""
    ignore_labels: Sequence[str] = ("O",)
    """Classes that are left out."""
    stride: int | None = None
    """Long texts are read in windows that share so many tokens; not with "none". Where entities of two windows
    overlap the longer one is kept."""
    truncation: bool = False
    """Long texts lose their end; without this and `stride` they are an error."""
    is_split_into_words: bool = False
    """A text is given as the list of its words, each read by itself; a list of such lists as several texts."""
    delimiter: str = " "
    """What stands between two words of such a text, whose characters `start` and `end` count."""

    def problems(self) -> list[str]:
        """What is wrong with them."""
        found = super().problems() + one_of("aggregation_strategy", self.aggregation_strategy, STRATEGIES)
        if isinstance(self.ignore_labels, str):
            found.append(f"ignore_labels is {self.ignore_labels!r}: give a list of classes")
        if self.stride is not None:
            found += least("stride", self.stride, 0)
            if self.aggregation_strategy == "none":
                found.append("stride is given: it needs another aggregation_strategy than 'none'")
        return found


@dataclass(frozen=True)
class Token:
    """A token, or a word, with the scores of its classes."""

    text: str
    start: int
    """Its first character."""
    end: int
    scores: np.ndarray
    """float32 [N]."""
    index: int
    """Its place in the row that was read."""
    goes_on: bool
    """It belongs to the word before it."""
    chosen: int
    """Its class."""
    score: float


class TokenClassification(Pipeline):
    """pipeline("token-classification", source)("Anna sees Rome") gives [{"entity": "B-PER", "score": 0.99, "index":
    1, "word": "anna", "start": 0, "end": 4}, ...]; with an `aggregation_strategy` [{"entity_group": "PER", "score":
    ..., "word": ..., "start": ..., "end": ...}, ...]. A list of texts gives a list of such lists.
    """

    task = "token-classification"
    takes = TokenOptions
    options: TokenOptions
    shorter: ClassVar[str] = (
        "give stride=64 and an aggregation_strategy to read it in windows, or truncation=True to lose its end"
    )

    def lacks(self, config: ModelConfig) -> list[str]:
        """See Pipeline."""
        return lacks_head(config, "tag", "tag:N", "jaxformer.tasks.Tag")

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """See the class."""
        asked = self.asked(options)
        if asked.is_split_into_words:
            split, alone = self._split(inputs), False
            texts = [asked.delimiter.join(some) for some in split]
            read = [self._read(some, len(asked.delimiter)) for some in split]
        else:
            texts, alone = self.texts(inputs)
            read = [self._read([text]) for text in texts]
        parts = [(i, part) for i, (ids, _) in enumerate(read) for part in self._windows(len(ids), asked)]
        rows: list[Row] = [self.row(i, read[i][0][part]) for i, part in parts]
        run = lambda batch, _: forward.extra(self.model, self.params, batch, "tag")
        numbers = forward.in_batches(self.model, rows, asked.batch_size, run)
        begin = shared.begin(self.template)
        found: list[list[list[dict[str, Any]]]] = [[] for _ in texts]
        for (i, part), each in zip(parts, numbers, strict=True):
            ids, spans = read[i][0][part], read[i][1][part]
            scores = softmax(each[begin : begin + len(ids)])
            tokens = list(self._tokens(texts[i], ids, spans, scores, begin))
            found[i].append(self._entities(tokens, asked))
        results = [apart(windows) if len(windows) > 1 else windows[0] for windows in found]
        return results[0] if alone else results

    def _split(self, inputs: Any) -> list[list[str]]:
        """The words of each text. One alone gives a list of one result, as the reference's pipeline does."""
        given: list[Any] = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if given and isinstance(inputs, list | tuple) and all(isinstance(each, str) for each in given):
            given = [given]
        for i, some in enumerate(given):
            if not isinstance(some, list | tuple) or not all(isinstance(each, str) for each in some):
                raise TypeError(f"{self.task}: expected lists of words as input {i}, found {some!r:.60}")
        return [list(some) for some in given]

    def _read(self, parts: Sequence[str], apart: int = 0) -> tuple[list[int], list[Span]]:
        """The ids of parts of a text that stand so many characters apart, and where in it each stands."""
        ids, spans, at = list[int](), list[Span](), 0
        for part in parts:
            new, places, _ = raw_offsets(self.tokenizer, part)
            ids += new
            spans += [(at + start, at + end) for start, end in places]
            at += len(part) + apart
        return ids, spans

    def _windows(self, count: int, asked: TokenOptions) -> list[slice]:
        """The parts of so many tokens that are read one by one."""
        if self.longest is None or not (asked.truncation or asked.stride is not None):
            return [slice(0, count)]
        size = shared.room(self.template, False, self.longest)
        if asked.stride is None:
            return [slice(0, min(count, size))]
        if asked.stride >= size:
            raise ValueError(f"{self.task}: stride is {asked.stride}: a window has {size} tokens of text, give fewer")
        return shared.slices(count, size, size - asked.stride)

    def _tokens(
        self, text: str, ids: Sequence[int], spans: Sequence[Span], scores: np.ndarray, begin: int
    ) -> Iterator[Token]:
        marks = isinstance(self.tokenizer, JsonTokenizer) and bool(
            getattr(self.tokenizer.inner.model, "continuing_subword_prefix", None)
        )
        unknown = self.tokenizer.specials.get("unk")
        for place, (id, (start, end), of_classes) in enumerate(zip(ids, spans, scores, strict=True)):
            piece = self.tokenizer.piece(id)
            # A tokenizer that marks what goes on in a word writes such a piece longer than the text has it.
            goes_on = len(piece) != end - start if marks else start > 0 and " " not in text[start - 1 : start + 1]
            if id == unknown:
                piece, goes_on = text[start:end], False
            chosen = int(of_classes.argmax())
            yield Token(piece, start, end, of_classes, begin + place, goes_on, chosen, of_classes[chosen])

    def _entities(self, tokens: Sequence[Token], asked: TokenOptions) -> list[dict[str, Any]]:
        names = label_names(self.model, outputs(self.model, "tag"))
        if asked.aggregation_strategy == "none":
            found = [
                {
                    "entity": names[token.chosen],
                    "score": float(token.score),
                    "index": token.index,
                    "word": token.text,
                    "start": token.start,
                    "end": token.end,
                }
                for token in tokens
            ]
            return [each for each in found if each["entity"] not in asked.ignore_labels]
        if asked.aggregation_strategy != "simple":
            tokens = [word(self.tokenizer, some, asked.aggregation_strategy) for some in words(tokens)]
        found = [entity(self.tokenizer, some, names) for some in groups(tokens, names)]
        return [each for each in found if each["entity_group"] not in asked.ignore_labels]


def words(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens of each word."""
    numbers = np.cumsum([i == 0 or not token.goes_on for i, token in enumerate(tokens)]).tolist()
    for _, some in groupby(zip(numbers, tokens, strict=True), lambda pair: pair[0]):
        yield [token for _, token in some]


def word(tokenizer: Tokenizer, tokens: Sequence[Token], strategy: str) -> Token:
    """A word, of the class that its tokens agree on."""
    if strategy == "average":
        scores = np.mean([token.scores for token in tokens], axis=0)
    elif strategy == "max":
        scores = max(tokens, key=lambda token: token.score).scores
    else:
        scores = tokens[0].scores
    chosen, text = int(scores.argmax()), joined(tokenizer, [token.text for token in tokens])
    return dataclasses.replace(
        tokens[0], text=text, end=tokens[-1].end, scores=scores, chosen=chosen, score=scores[chosen]
    )


def groups(tokens: Sequence[Token], names: Sequence[str]) -> Iterator[list[Token]]:
    """Neighbours of one type, of which but the first is marked as a beginning."""
    held: list[Token] = []
    for token in tokens:
        name = names[token.chosen]
        if held and (name.startswith("B-") or of_type(name) != of_type(names[held[-1].chosen])):
            yield held
            held = []
        held.append(token)
    if held:
        yield held


def of_type(name: str) -> str:
    """A class without its B- or I-."""
    return name[2:] if name.startswith(("B-", "I-")) else name


def entity(tokenizer: Tokenizer, tokens: Sequence[Token], names: Sequence[str]) -> dict[str, Any]:
    """What is told of a group."""
    return {
        "entity_group": names[tokens[0].chosen].split("-", 1)[-1],
        "score": float(np.mean([token.score for token in tokens])),
        "word": joined(tokenizer, [token.text for token in tokens]),
        "start": tokens[0].start,
        "end": tokens[-1].end,
    }


def apart(windows: Sequence[Sequence[Mapping[str, Any]]]) -> list[Any]:
    """The entities of all windows of a text; of those that overlap the longest, of equal ones the surest."""
    kept: list[Any] = []
    size = lambda each: each["end"] - each["start"]
    for each in sorted((each for window in windows for each in window), key=lambda each: each["start"]):
        if kept and kept[-1]["start"] <= each["start"] < kept[-1]["end"]:
            kept[-1] = max(kept[-1], each, key=lambda one: (size(one), one["score"]))
        else:
            kept.append(each)
    return kept


def joined(tokenizer: Tokenizer, pieces: list[str]) -> str:
    """Pieces as text."""
    if not isinstance(tokenizer, JsonTokenizer):
        return "".join(pieces).replace(MARK, " ").strip()
    decoder = tokenizer.inner.decoder
    return " ".join(pieces) if decoder is None else decoder.decode(pieces)
