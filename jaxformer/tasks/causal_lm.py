"""Predict each token from those before it, within its document. B batch, T length."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jax import Array

from jaxformer.config import ModelConfig
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import means, needs, run, too_long, variables, vocabulary_loss
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import Rows, StreamRows
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn


@dataclass(frozen=True)
class CausalLM:
    """Language modelling from left to right (Radford et al., 2018, section 3.1) on packed documents."""

    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over the vocabulary."""
    z_loss: float = 0.0
    """Factor on the squared log-partition of the logits."""

    columns: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[None] = None
    specials: ClassVar[tuple[str, ...]] = ()

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a decoder alone, with positions for a row."""
        return needs(model, encoder=False, decoder=True) + too_long(model, decoder=length)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens."""
        return {"tokens": vocab}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A document's tokens between the tokenizer's beginning and end marks, where there are such."""
        yield {"tokens": marked(document, tokenizer)}

    def rows(
        self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None, stride: int | None = None
    ) -> Rows:
        """Documents on end. With a stride, for evaluation, a row scores so many new tokens: the rest is context."""
        return StreamRows(store, length, seed, stride)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key); dropout acts where `train`.

        batch: tokens, segments, positions int [B, T + 1], weights [B, T] of the targets tokens[:, 1:].
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            held = variables(params, frozen)
            given = {name: batch[name][:, :-1] for name in ("tokens", "segments", "positions")}
            out = run(model, held, key, train, **given)
            targets, smooth = batch["tokens"][:, 1:], {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
            return vocabulary_loss(model, held, out, targets, batch["weights"], train, **smooth)

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[float, float]], size: int) -> dict[str, float]:
        """The mean loss in nats a token, its perplexity, accuracy, and bits per byte of the text."""
        values = means(sums)
        values["perplexity"] = math.exp(min(values["loss"], 700.0))
        return values | ({"bits_per_byte": sums["loss"][0] / math.log(2) / size} if size else {})


def marked(document: Document, tokenizer: Tokenizer | None) -> np.ndarray:
    """A document's tokens int32 [length]: its text between the tokenizer's bos and eos, or its ready-made tokens."""
    if document.text is None or tokenizer is None:
        return np.asarray(document.tokens, np.int32)
    ids = [tokenizer.bos, *tokenizer.encode(document.text), tokenizer.eos]
    return np.array([id for id in ids if id is not None], np.int32)
