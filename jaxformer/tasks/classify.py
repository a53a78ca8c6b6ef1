"""Name the class of a text, or of a pair of texts. B batch, T length, N classes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from jax import Array

from jaxformer import losses, scores
from jaxformer.config import Card, ModelConfig
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import computed, head_problems, means, named, read_off, variables, with_aux
from jaxformer.tasks import labels as shared
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows
from jaxformer.text.template import Template
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn

PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
"""How config.json calls each kind."""


@dataclass(frozen=True)
class Classify:
    """Classes of a text, or of two, read off the first token (Devlin et al., 2019, section 4.1) or, by a decoder, off
    the last one (Radford et al., 2018, section 3.2): whatever the model's head called "classify" reads.
    """

    text: str = "text"
    """Field of a record with the text."""
    pair: str | None = None
    """Field with a second text; None where there is one alone."""
    label: str = "label"
    """Field with the class, by name or by number; of "multi" a list of them, of "regression" a number."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers; none for regression."""
    kind: Literal["single", "multi", "regression"] = "single"
    """One class each; any number of them, each of which holds or not; or a number."""
    label_smoothing: float = 0.0
    """Share of the class's probability that is spread over all; "single" alone."""

    specials: ClassVar[tuple[str, ...]] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The text or texts, and the label."""
        return tuple(name for name in (self.text, self.pair, self.label) if name is not None)

    @property
    def outputs(self) -> int:
        """Numbers that the head gives."""
        return 1 if self.kind == "regression" else len(self.labels)

    @property
    def head(self) -> str:
        """A classifier."""
        return f"classify:{self.outputs}"

    def card(self, card: Card) -> Card:
        """The card with the names of the classes, and what kind they are of."""
        names = ("LABEL_0",) if self.kind == "regression" else self.labels
        return named(card, names, problem_type=PROBLEMS[self.kind])

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a head with an output for each class, and positions for a row."""
        found = [] if self.kind == "regression" else shared.label_problems(self.labels)
        if self.kind == "regression" and self.labels:
            found = ['task.labels: kind "regression" has no classes: leave them out']
        if self.label_smoothing and self.kind != "single":
            found.append(f'task.label_smoothing is {self.label_smoothing}: it is for kind "single"')
        return found + head_problems(model, length, "classify", self.outputs, of_tokens=False)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens of both texts, none of a second where there is none; label: as `_label` makes it."""
        bound = {"single": self.outputs, "multi": 2, "regression": 1 << 32}[self.kind]
        return {"first": vocab, "second": vocab, "label": bound}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """Texts without special tokens, and the label."""
        assert tokenizer is not None
        label = np.atleast_1d(self._label(document))
        yield self._texts(document, tokenizer) | {"label": label.view(np.uint32)}

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """An example a row, special tokens around its texts; of what is too long the end is cut, the longer first."""
        assert tokenizer is not None
        template = shared.frame(tokenizer)

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            label = examples[0]["label"]
            if self.kind == "multi":
                labels = label.astype(np.float32)
            else:
                labels = label[0].view(np.float32) if self.kind == "regression" else label[0].astype(np.int32)
            beside = {"labels": np.asarray(labels), "weights": np.ones((), np.float32)}
            return self._row(template, length, examples[0]) | beside

        shared.room(template, self.pair is not None, length)
        return BinRows(store, seed, make)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key); dropout and smoothing act where `train`.

        batch: tokens, token_types int [B, T], mask bool [B, T], weights [B], labels int [B], or float [B, N] where
        several may hold, or float [B] for a number.
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            logits, out = read_off(model, variables(params, frozen), key, train, batch, "classify")
            labels, weights = batch["labels"], batch["weights"]
            if self.kind == "multi":
                loss, metrics = losses.multi_label(logits, labels, weights)
            elif self.kind == "regression":
                loss, metrics = losses.regression(logits, labels, weights)
            else:
                smoothing = self.label_smoothing if train else 0.0
                loss, metrics = losses.classification(logits, labels, weights, label_smoothing=smoothing)
            return with_aux(loss, out, train), metrics

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss, in nats or squared error, and accuracy."""
        return means(sums)

    def predict(
        self, model: Model, held: Any, tokenizer: Tokenizer, documents: Sequence[Document], rows: int, length: int
    ) -> list[Any]:
        """The number of a class for each document; of "multi" a list of them; of "regression" what the head gives."""
        template = shared.frame(tokenizer)
        texts = [self._row(template, length, self._texts(document, tokenizer)) for document in documents]

        def logits(held: Any, batch: dict[str, Array]) -> Array:
            return read_off(model, held, jax.random.key(0), False, batch, "classify")[0]

        found = computed(logits, held, texts, rows)
        if self.kind == "regression":
            return [float(each[0]) for each in found]
        if self.kind == "multi":
            return [np.flatnonzero(each > 0).tolist() for each in found]
        return [int(each.argmax()) for each in found]

    def score(self, predictions: list[Any], documents: Sequence[Document]) -> dict[str, float]:
        """accuracy, macro_f1 and matthews; of "multi" accuracy (all labels right), micro_f1 and macro_f1; of
        "regression" pearson and spearman.
        """
        wanted: Any = [self._label(document) for document in documents]
        if self.kind == "regression":
            return {
                "pearson": scores.pearson(predictions, wanted),
                "spearman": scores.spearman(predictions, wanted),
            }
        if self.kind == "multi":
            bits = [np.isin(np.arange(self.outputs), each) for each in predictions]
            wanted = [each > 0 for each in wanted]
            f1 = {"micro_f1": scores.f1(bits, wanted, "micro"), "macro_f1": scores.f1(bits, wanted)}
            return {"accuracy": scores.accuracy(bits, wanted)} | f1
        return {
            "accuracy": scores.accuracy(predictions, wanted),
            "macro_f1": scores.f1(predictions, wanted),
            "matthews": scores.matthews(predictions, wanted),
        }

    def _texts(self, document: Document, tokenizer: Tokenizer) -> Example:
        names = [name for name in (self.text, self.pair) if name is not None]
        ids = [np.array(tokenizer.encode(shared.text_of(document, name)), np.int32) for name in names]
        return {"first": ids[0], "second": ids[1] if self.pair is not None else np.empty(0, np.int32)}

    def _row(self, template: Template, length: int, texts: Example) -> Row:
        return shared.text_row(template, length, texts["first"], None if self.pair is None else texts["second"])

    def _label(self, document: Document) -> np.ndarray:
        """The class int32 (), whether each class holds int32 [N], or the number float32 ()."""
        assert document.record is not None
        value, where = document.record[self.label], f"{document.source}: {self.label}"
        if self.kind == "regression":
            return np.asarray(shared.real(value, where), np.float32)
        if self.kind == "single":
            return np.asarray(shared.number(value, self.labels, where), np.int32)
        values = value if isinstance(value, list) else [value]
        held = {shared.number(each, self.labels, where) for each in values}
        return np.isin(np.arange(self.outputs), [*held]).astype(np.int32)
