"""Write the end of a text whose beginning is seen at once. B batch, T length."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jax import Array

from jaxformer.config import ModelConfig
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import means, needs, run, too_long, variables, vocabulary_loss
from jaxformer.tasks.causal_lm import marked
from jaxformer.tasks.seq2seq import Seq2Seq, pairs_row
from jaxformer.tasks.span import bare, end, windows
from jaxformer.text.pack import bins
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows, StreamRows, side_by_side
from jaxformer.text.spans import prefix_split
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn


@dataclass(frozen=True)
class PrefixLM:
    """A text is cut anywhere, anew in each epoch; its end is predicted token by token, and the tokens of its
    beginning all see each other (Raffel et al., 2020, section 3.2.1; Liu et al., 2018).

    By a decoder on packed documents, or by an encoder that reads the beginning and a decoder that writes the end.
    """

    encoder: bool = False
    """An encoder reads the beginning."""
    share: float = 0.5
    """Share of a text that is its end, on average; one half at most."""

    columns: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[None] = None
    specials: ClassVar[tuple[str, ...]] = ()

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a decoder, and the encoder that it was told of, with positions for a row."""
        found = [] if 0 < self.share <= 0.5 else [f"task.share is {self.share}: make it above 0 and at most 0.5"]
        found += needs(model, encoder=self.encoder, decoder=True)
        return found + too_long(model, encoder=length, decoder=length)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens."""
        return {"tokens": vocab}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A document's tokens, for a decoder alone between the tokenizer's beginning and end marks."""
        yield {"tokens": bare(document, tokenizer) if self.encoder else marked(document, tokenizer)}

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """Documents on end, the part of each that a row holds cut by itself; or whole texts side by side."""
        if self.encoder:
            return self._pairs(store, end(tokenizer), length, seed)

        def transform(row: Row, random: np.random.Generator) -> Row:
            prefix = np.zeros(length + 1, bool)
            for segment in range(1, int(row["segments"].max()) + 1):
                places = np.flatnonzero(row["segments"] == segment)
                prefix[places[: len(prefix_split(places, random, self.share)[0])]] = True
            return row | {"prefix": prefix, "weights": row["weights"] * ~prefix[1:]}

        return StreamRows(store, length, seed, transform=transform)

    def _pairs(self, store: Store, eos: int, length: int, seed: int | None) -> Rows:
        """Both parts of a text end with eos; a long document is several texts."""
        texts, lengths = windows(store, length - 1)
        ended = np.array([eos], np.int32)

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            sources, targets = list[np.ndarray](), list[np.ndarray]()
            for example in examples:
                prefix, rest = prefix_split(example["tokens"], random, self.share)
                sources.append(np.concatenate([prefix, ended]))
                targets.append(np.concatenate([rest, ended]))
            return pairs_row(sources, targets, length, length)

        return BinRows(texts, seed, make, bins([lengths + 1], [length], 0))

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """That of Seq2Seq, or of `prefix_loss`."""
        return Seq2Seq().loss(model, train=train) if self.encoder else prefix_loss(model, train)

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats a token of the ends, and accuracy."""
        return means(sums)


def prefix_loss(model: Model, train: bool) -> LossFn:
    """loss_fn(params, frozen, batch, key) of a decoder; dropout acts where `train`.

    batch: tokens, segments, positions int [B, T + 1], prefix bool [B, T + 1], weights [B, T] of the targets
    tokens[:, 1:].
    """

    def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
        held = variables(params, frozen)
        given = {name: batch[name][:, :-1] for name in ("tokens", "segments", "positions", "prefix")}
        out = run(model, held, key, train, **given)
        return vocabulary_loss(model, held, out, batch["tokens"][:, 1:], batch["weights"], train)

    return loss_fn


def prefix_row(source: np.ndarray, target: np.ndarray, length: int) -> Row:
    """A text that is seen at once, and the one that a decoder writes behind it: what `prefix_loss` reads."""
    row = side_by_side([np.concatenate([source, target])], length + 1)
    prefix = np.arange(length + 1) < len(source)
    there = row["segments"][1:] > 0
    return row | {"prefix": prefix, "weights": (there & ~prefix[1:]).astype(np.float32)}
