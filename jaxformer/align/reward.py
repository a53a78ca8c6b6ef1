"""A reward model: a number for each answer, learned from which of two was preferred. B pairs, T length."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer.align import preference
from jaxformer.align.exchange import Asked, exchange
from jaxformer.align.pairs import NUMBERS, SIDES, Pairs, bits, fitting, real
from jaxformer.config import Card, ModelConfig
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import head_problems, means, named, read_off, variables, with_aux
from jaxformer.text.index import stack
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows, padded
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn

HEAD, BINS = "classify", 10


@dataclass(frozen=True)
class Reward(Pairs):
    """A reward for prompt and answer, such that the better of two answers wins as often as people preferred it
    (Bradley and Terry, 1952; Ouyang et al., 2022, section 3.5).

    It is read off the last token, and published as a sequence classifier of one label.
    """

    margin: str = ""
    """Field with how much better the chosen answer is; its reward is to be so much higher. Empty: any difference."""
    label_smoothing: float = 0.0
    """Share of pairs whose labels are taken to be wrong."""
    center: float = 0.0
    """Weight of the squared sum of both rewards, which holds their mean at 0 (Eisenstein et al., 2023, section 2)."""

    joined: bool = False
    """An encoder reads prompt and answer as one text, of policies that go on from a text; else as a pair."""

    head: ClassVar[str] = f"{HEAD}:1"

    @property
    def columns(self) -> tuple[str, ...]:
        """Prompt and answers, and the margin."""
        return super().columns + ((self.margin,) if self.margin else ())

    def card(self, card: Card) -> Card:
        """The card of a classifier of one label."""
        return named(card, ("LABEL_0",))

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a head of one number, and positions for a row."""
        found = head_problems(model, length, HEAD, 1, of_tokens=False)
        if (model.encoder is not None) != self.encoder:
            is_now, wanted = ("has an", True) if model.encoder is not None else ("has no", False)
            found.append(f"task.encoder is {self.encoder}: the model {is_now} encoder; make it {wanted}")
        if self.joined and not self.encoder:
            found.append("task.joined is for encoders: a decoder always reads prompt and answer as one text")
        if not 0 <= self.label_smoothing < 0.5:
            found.append(f"task.label_smoothing is {self.label_smoothing}: make it at least 0 and below 0.5")
        if self.center < 0:
            found.append(f"task.center is {self.center}: make it at least 0")
        return found

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens and token types of each side, and the margin's bits."""
        tokens = {f"{side}_tokens": vocab for side in SIDES}
        return tokens | {f"{side}_types": 256 for side in SIDES} | {"margin": NUMBERS}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """Both texts as they are read. Raises ValueError as those of pairs, and for a margin that is no number."""
        assert tokenizer is not None
        example: Example = {}
        try:
            for side, (asked, answer) in zip(SIDES, self.texts(document), strict=True):
                example[f"{side}_tokens"], example[f"{side}_types"] = self.reading(tokenizer, asked, answer)
        except ValueError as error:
            raise ValueError(f"{document.source}: {error}") from None
        margin = document.record[self.margin] if self.margin else 0.0
        if not isinstance(margin, int | float):
            raise ValueError(f"{document.source}: {self.margin}: expected a number, found {margin!r:.80}")
        yield example | {"margin": bits(margin)}

    def reading(self, tokenizer: Tokenizer, asked: Asked, answer: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids, token types) int32 [T]: a prompt and its answer as the model reads them."""
        if self.joined and isinstance(asked, str):
            both = tokenizer.template(tokenizer.encode(asked + answer))
            return np.array(both[0], np.int32), np.array(both[1], np.int32)
        style = {"encoder": self.encoder, "end": self.end}
        if asked == "" and not self.encoder:  # a text by itself is read without the start token that would begin it
            asked, answer = answer, ""
        prompt, said = exchange(tokenizer, asked, answer, template=self.template, **style)
        if not self.encoder:
            ids = np.concatenate([prompt, said])
            return ids, np.zeros_like(ids)
        special = {*tokenizer.specials.values()}
        plain = ([int(id) for id in part if id not in special] for part in (prompt, said))
        both = tokenizer.template(*plain)
        return np.array(both[0], np.int32), np.array(both[1], np.int32)

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """A pair a row: tokens, token_types int and mask bool [2, T], margin and weights ().

        Pairs that are too long are left out, and it is logged how many. Raises ValueError where none is left.
        """
        sizes = np.max([store.lengths[f"{side}_tokens"] for side in SIDES], axis=0)
        kept = fitting(sizes, length, "pairs", "tokens")

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            (example,) = examples
            sides = [read_row(example[f"{side}_tokens"], example[f"{side}_types"], length) for side in SIDES]
            return stack(sides) | {"margin": real(example["margin"]), "weights": np.ones((), np.float32)}

        return BinRows(store, seed, make, kept)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key), batch as `rows` makes it; dropout and smoothing act where `train`.

        The metrics are of pairs: "loss", of the plain likelihood; "accuracy"; "difference", "reward", of both
        rewards; "calibration" [BINS, 3], see `calibration`.
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            weights = batch["weights"].astype(jnp.float32)
            flat = {
                name: batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "token_types", "mask")
            }
            found, out = read_off(model, variables(params, frozen), key, train, flat, HEAD)
            chosen, rejected = found.reshape(-1, 2).T
            smoothing = self.label_smoothing if train else 0.0
            learned = preference.bradley_terry(chosen, rejected, batch["margin"], smoothing)
            learned += self.center * jnp.square(chosen + rejected)
            values = {
                "loss": preference.bradley_terry(chosen, rejected),
                "accuracy": chosen > rejected,
                "difference": chosen - rejected,
                "reward": (chosen + rejected) / 2,
            }
            weight = weights.sum()
            metrics: Metrics = {name: ((value * weights).sum(), weight) for name, value in values.items()}
            metrics["calibration"] = calibration(chosen - rejected, weights), weight
            return with_aux((learned * weights).sum() / jnp.maximum(weight, 1e-9), out, train), metrics

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """Means over pairs; "calibration_error": how far the confidence of a verdict is from how often it is right
        (Guo et al., 2017, section 2).
        """
        table, weight = sums["calibration"]
        table = np.asarray(table)
        return means(sums) | {"calibration_error": float(np.abs(table[:, 1] - table[:, 2]).sum() / max(weight, 1e-9))}


def calibration(difference: Array, weights: Array) -> Array:
    """[BINS, 3] of differences of rewards [B]: in even steps of confidence from 0.5 to 1 the weight, the sum of
    confidences, and the weight of verdicts that are right.
    """
    confidence = jax.nn.sigmoid(jnp.abs(difference))
    step = jnp.minimum((2 * (confidence - 0.5) * BINS).astype(jnp.int32), BINS - 1)
    columns = jnp.stack([jnp.ones_like(weights), confidence, difference > 0], axis=1) * weights[:, None]
    return jax.nn.one_hot(step, BINS).T @ columns


def read_row(ids: np.ndarray, types: np.ndarray, length: int) -> Row:
    """int32 "tokens" and "token_types", bool "mask" [T]; what is too long loses its beginning."""
    ids, types = ids[-length:], types[-length:]
    return {
        "tokens": padded(ids, length),
        "token_types": padded(types, length),
        "mask": np.arange(length) < len(ids),
    }
