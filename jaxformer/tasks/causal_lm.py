"""Predict each token from those before it, within its document. B batch, T length."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jax import Array

from jaxformer import tree
from jaxformer.losses import Metrics, cross_entropy
from jaxformer.nn.model import Model
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn


@dataclass(frozen=True)
class CausalLM:
    """Language modelling from left to right (Radford et al., 2018, section 3.1) on packed documents."""

    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over the vocabulary."""
    z_loss: float = 0.0
    """Factor on the squared log-partition of the logits."""

    head: ClassVar[None] = None
    """The kind of head that the model needs beside that of its vocabulary."""

    def examples(self, tokens: Sequence[int] | np.ndarray, tokenizer: Tokenizer | None) -> dict[str, np.ndarray]:
        """A document's tokens between the tokenizer's beginning and end marks, where there are such."""
        marks = (None, None) if tokenizer is None else (tokenizer.bos, tokenizer.eos)
        first, last = ([] if mark is None else [mark] for mark in marks)
        return {"tokens": np.concatenate([first, tokens, last]).astype(np.int32)}

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key); dropout acts where `train`.

        batch: tokens, segments, positions int [B, T + 1], weights [B, T] of the targets tokens[:, 1:]. `frozen`
        may hold "params" that are not trained, and other collections such as "lora".
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            fixed = dict(frozen or {})
            variables = fixed | {"params": tree.merge(params, fixed.get("params", {}))}
            out = model.apply(
                variables,
                batch["tokens"][:, :-1],
                segments=batch["segments"][:, :-1],
                positions=batch["positions"][:, :-1],
                logits=False,
                deterministic=not train,
                rngs={"dropout": key} if train else None,
            )
            unembed = model.apply(variables, method="unembedding")
            targets, weights = batch["tokens"][:, 1:], batch["weights"]
            smooth = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss} if train else {}
            return cross_entropy(out.hidden, unembed, targets, weights, **smooth)  # type: ignore[union-attr, arg-type]

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[float, float]], size: int) -> dict[str, float]:
        """What an evaluation reports: the mean loss in nats a token, accuracy, and bits per byte of the text.

        `sums` are those of the whole evaluation set, whose text has `size` bytes in UTF-8 (0: not known).
        """
        values = {name: total / weight for name, (total, weight) in sums.items()}
        return values | ({"bits_per_byte": sums["loss"][0] / math.log(2) / size} if size else {})
