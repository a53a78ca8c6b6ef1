"""Make vectors of texts that are near where the texts belong together. B batch, T length, D width."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer import losses
from jaxformer.config import Card, ModelConfig, Sentences
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model, Output
from jaxformer.nn.pooling import pool
from jaxformer.objective import computed, means, reading, run, too_long, variables, with_aux
from jaxformer.tasks import labels as shared
from jaxformer.text.index import stack
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows
from jaxformer.text.template import Template
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn


@dataclass(frozen=True)
class Embed:
    """Each text is to find the other of its pair among those of the batch, by the cosine of their vectors (in-batch
    negatives: Henderson et al., 2017, section 4.4; both ways: Radford et al., 2021, section 2.3).

    The vectors are made as the model's card says (Reimers and Gurevych, 2019, section 3), else as means, and divided
    by their length. Rows of one microbatch alone meet: large ones are better, and accumulation does not make them.
    """

    text: str = "query"
    """Field of a record with a text."""
    other: str | None = "document"
    """Field with the text that belongs to it; None: the same once more, with other dropout (Gao et al., 2021)."""
    scale: float = 20.0
    """Factor on the cosines: one over the temperature."""

    head: ClassVar[str] = "embed"
    specials: ClassVar[tuple[str, ...]] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The text, or both."""
        return (self.text,) if self.other is None else (self.text, self.other)

    def card(self, card: Card) -> Card:
        """The card, which says how vectors are made."""
        return dataclasses.replace(card, sentences=_sentences(card))

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs one stack, with positions for a row."""
        both = model.encoder is not None and model.decoder is not None
        found = ["model: the task needs an encoder or a decoder, not both"] if both else []
        return found + too_long(model, encoder=length, decoder=length)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens of each text; none of the other where there is none."""
        return {"text": vocab, "other": vocab}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """Texts without special tokens."""
        assert tokenizer is not None
        yield self._texts(document, tokenizer)

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """A pair a row, special tokens around each text; what is too long loses its end."""
        assert tokenizer is not None
        template = shared.frame(tokenizer)

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            return self._row(template, length, examples[0]) | {"weights": np.ones((), np.float32)}

        return BinRows(store, seed, make)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key); dropout acts where `train`.

        batch: tokens, token_types int [B, 2, T], mask bool [B, 2, T], weights [B].
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            vectors, out = _vectors(model, variables(params, frozen), key, train, batch)
            loss, metrics = losses.contrastive(vectors[:, 0], vectors[:, 1], self.scale, batch["weights"])
            return with_aux(loss, out, train), metrics

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats, and how often the right one was found, among those of a batch."""
        return means(sums)

    def predict(
        self, model: Model, held: Any, tokenizer: Tokenizer, documents: Sequence[Document], rows: int, length: int
    ) -> list[np.ndarray]:
        """For each document the vectors of its texts, float32 [2, D]."""
        template = shared.frame(tokenizer)
        made = [self._row(template, length, self._texts(document, tokenizer)) for document in documents]

        def vectors(held: Any, batch: dict[str, Array]) -> Array:
            return _vectors(model, held, jax.random.key(0), False, batch)[0]

        return computed(vectors, held, made, rows)

    def score(self, predictions: list[np.ndarray], documents: Sequence[Document]) -> dict[str, float]:
        """How well each text finds its other among those of all these documents: recall@1, recall@10, mrr (the mean
        of one over its rank). Nothing where there is no other. Equal texts do not compete, equal cosines do.
        """
        if self.other is None:
            return {}
        texts = np.unique([shared.text_of(each, self.other) for each in documents], return_inverse=True)[1]
        ours, theirs = (np.stack([each[side] for each in predictions]) for side in (0, 1))
        cosines = ours @ theirs.T
        ahead = (cosines >= np.diag(cosines)[:, None]) & (texts[:, None] != texts)
        ranks = 1 + ahead.sum(1)
        recalls = {f"recall@{k}": float((ranks <= k).mean()) for k in (1, 10)}
        return recalls | {"mrr": float((1 / ranks).mean())}

    def _texts(self, document: Document, tokenizer: Tokenizer) -> Example:
        found = [np.array(tokenizer.encode(shared.text_of(document, name)), np.int32) for name in self.columns]
        return {"text": found[0], "other": np.empty(0, np.int32) if self.other is None else found[1]}

    def _row(self, template: Template, length: int, example: Example) -> Row:
        sides = example["text"], example["text" if self.other is None else "other"]
        return stack([shared.text_row(template, length, ids) for ids in sides])


def _sentences(card: Card) -> Sentences:
    return dataclasses.replace(card.sentences or Sentences(), normalize=True)


def _vectors(
    model: Model, held: Mapping[str, Any], key: Array, train: bool, batch: Mapping[str, Array]
) -> tuple[Array, Output]:
    """The vectors of both texts of each row, float32 [B, 2, D]."""
    names = ("tokens", "token_types", "mask")
    flat = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in names}
    out = run(model, held, key, train, **reading(model, flat))
    pooling = dataclasses.replace(_sentences(model.card), normalize=False)
    found = pool(out.hidden, flat["mask"], pooling)
    found /= jnp.sqrt(jnp.maximum(jnp.square(found).sum(1, keepdims=True), 1e-24))  # of an empty row too a gradient
    return found.reshape(*batch["tokens"].shape[:2], -1), out
