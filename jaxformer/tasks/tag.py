"""Name the class of each word of a sentence. B batch, T length, N classes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array

from jaxformer import losses, scores
from jaxformer.config import Card, ModelConfig
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import computed, head_problems, means, named, read_off, variables, with_aux
from jaxformer.tasks import labels as shared
from jaxformer.text.offsets import offsets
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows, padded
from jaxformer.text.template import Template
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn


@dataclass(frozen=True)
class Tag:
    """A class for each word, predicted at the first of its pieces (Devlin et al., 2019, section 5.3): parts of
    speech, or entities by the tags B-type, I-type and O. The words are read as one text, a space between them.
    """

    words: str = "words"
    """Field of a record with the words: a list, or a text that is split at its spaces."""
    tags: str = "tags"
    """Field with as many classes, by name or by number: a list, or a text that is split at its spaces."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers."""

    specials: ClassVar[tuple[str, ...]] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Words and tags."""
        return self.words, self.tags

    @property
    def head(self) -> str:
        """A classifier of tokens."""
        return f"tag:{len(self.labels)}"

    def card(self, card: Card) -> Card:
        """The card with the names of the classes."""
        return named(card, self.labels)

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs one stack, a head with an output for each class, and positions for a row."""
        found = shared.label_problems(self.labels)
        if model.encoder is not None and model.decoder is not None:
            found.append("model: the task needs an encoder or a decoder, not both")
        return found + head_problems(model, length, "tag", len(self.labels), of_tokens=True)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens, and for each its class counted from 1, 0 where it begins no word."""
        return {"tokens": vocab, "tags": len(self.labels) + 1}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A sentence without special tokens. A word that has no piece of its own is left out."""
        assert tokenizer is not None
        ids, places, own = first_pieces(tokenizer, self._words(document))
        tags = np.zeros(len(ids), np.int32)
        tags[places[own]] = np.array(self._tags(document), np.int32)[own] + 1
        yield {"tokens": np.array(ids, np.int32), "tags": tags}

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """A sentence a row, with special tokens around it; one that is too long stands in several."""
        assert tokenizer is not None
        template = shared.frame(tokenizer)
        size, begin = shared.room(template, False, length), shared.begin(template)

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            tags = padded([0] * begin + examples[0]["tags"].tolist(), length)
            row = shared.text_row(template, length, examples[0]["tokens"])
            return row | {"labels": np.maximum(tags - 1, 0), "weights": (tags > 0).astype(np.float32)}

        def cut(example: Example, number: int) -> Example:
            return {name: values[number * size : (number + 1) * size] for name, values in example.items()}

        windows = shared.Windows(store, np.maximum(1, -(-store.lengths["tokens"] // size)), cut)
        return BinRows(windows, seed, make)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key); dropout acts where `train`.

        batch: tokens, token_types, labels int [B, T], mask bool [B, T], weights [B, T].
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            logits, out = read_off(model, variables(params, frozen), key, train, batch, "tag")
            loss, metrics = losses.classification(logits, batch["labels"], batch["weights"])
            return with_aux(loss, out, train), metrics

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats a word, and accuracy."""
        return means(sums)

    def predict(
        self, model: Model, held: Any, tokenizer: Tokenizer, documents: Sequence[Document], rows: int, length: int
    ) -> list[list[str]]:
        """A class for each word of each document; a word without a piece of its own has that of the word before."""
        template = shared.frame(tokenizer)
        size, begin = shared.room(template, False, length), shared.begin(template)
        aligned = [first_pieces(tokenizer, self._words(document)) for document in documents]
        parts = [(i, at) for i, (ids, *_) in enumerate(aligned) for at in range(0, len(ids), size)]
        made = [_row(template, length, aligned[i][0][at : at + size]) for i, at in parts]

        def best(held: Any, batch: dict[str, Array]) -> Array:
            return read_off(model, held, jax.random.key(0), False, batch, "tag")[0].argmax(-1)

        found: list[list[int]] = [[] for _ in documents]
        for (i, _), classes in zip(parts, computed(best, held, made, rows), strict=True):
            found[i] += classes[begin : begin + size].tolist()
        return [
            [self.labels[classes[place] if ids else 0] for place in places]
            for (ids, places, _), classes in zip(aligned, found, strict=True)
        ]

    def score(self, predictions: list[list[str]], documents: Sequence[Document]) -> dict[str, float]:
        """Of words accuracy; of entities precision, recall and f1 where the classes are B-type, I-type and O, else
        macro_f1.
        """
        wanted = [[self.labels[tag] for tag in self._tags(document)] for document in documents]
        ours, theirs = ([tag for tags in side for tag in tags] for side in (predictions, wanted))
        found = {"accuracy": scores.accuracy(ours, theirs)}
        if all(label == "O" or label[:2] in ("B-", "I-") for label in self.labels):
            return found | scores.entity_f1(predictions, wanted)
        return found | {"macro_f1": scores.f1(ours, theirs)}

    def _words(self, document: Document) -> list[str]:
        return [str(word) for word in _listed(document, self.words)]

    def _tags(self, document: Document) -> list[int]:
        where = f"{document.source}: {self.tags}"
        tags = [shared.number(tag, self.labels, where) for tag in _listed(document, self.tags)]
        if len(tags) != len(words := self._words(document)):
            raise ValueError(f"{where}: expected a tag for each of {len(words)} words, found {len(tags)}")
        return tags


def first_pieces(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """(ids of the words, where in them each word begins int [words], which words begin there alone bool [words]).

    A word that vanishes in the tokenizer, or begins within a piece of the word before, begins where that one does.
    """
    ids, spans = offsets(tokenizer, " ".join(words))
    starts = np.array([0, *(len(word) + 1 for word in words)])[:-1].cumsum()
    ends = starts + [len(word) for word in words]
    begun, left = (np.array([span[side] for span in spans] or [0]) for side in (0, 1))
    places = np.searchsorted(left, starts, side="right")  # the first piece that goes on behind the word's beginning
    inside = np.minimum(places, len(begun) - 1)
    own = (places < len(ids)) & (begun[inside] < ends)
    taken = np.maximum.accumulate(np.where(own, places, -1))
    own[1:] &= places[1:] > taken[:-1]
    return ids, np.maximum.accumulate(np.where(own, places, 0)), own


def _row(template: Template, length: int, ids: Sequence[int]) -> Row:
    return shared.text_row(template, length, np.array(ids, np.int32))


def _listed(document: Document, column: str) -> list[Any]:
    assert document.record is not None
    value = document.record[column]
    return value if isinstance(value, list) else str(value).split()
