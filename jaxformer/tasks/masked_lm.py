"""Predict masked tokens from those on both sides. B batch, T length, P places that are predicted."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jax import Array

from jaxformer import losses
from jaxformer.config import ModelConfig
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import (
    at_places,
    head_problems,
    means,
    needs,
    reading,
    run,
    too_long,
    variables,
    vocabulary_loss,
)
from jaxformer.tasks import labels as shared
from jaxformer.text.boundaries import Boundaries, boundaries
from jaxformer.text.corrupt import masked_lm, sentence_chunks, sentence_pair, sentences
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows, StreamRows, padded
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn

NEXT = "next"
"""The extra head that says whether a text follows another."""
Mask = Callable[[Row, np.ndarray, np.random.Generator], Row]


@dataclass(frozen=True)
class MaskedLM:
    """Masked language modelling (Devlin et al., 2019, section 3.1), masked anew in each epoch (Liu et al., 2019,
    section 4.1). Special tokens are never masked; masked tokens alone go through the head.

    Packed documents that do not see each other; with `next_sentence` pairs of texts, of which half follow another.
    """

    rate: float = 0.15
    """Share of tokens that are predicted."""
    replace: float = 0.8
    """Share of those that the mask stands for."""
    random_share: float = 0.1
    """Share of those that a random token stands for; the rest are left as they are."""
    whole_words: bool = False
    """All tokens of a word are predicted, or none."""
    next_sentence: bool = False
    """Say, too, whether the second text follows the first: the model's head called "next"."""

    columns: ClassVar[tuple[str, ...]] = ()
    specials: ClassVar[tuple[str, ...]] = ("[MASK]",)  # the mask of any kind of tokenizer; one kind has it already

    @property
    def head(self) -> str:
        """That over the vocabulary; for pairs also the one that says what follows."""
        return "pretraining" if self.next_sentence else "lm"

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs an encoder alone, with positions for a row."""
        found = [] if 0 < self.rate <= 1 else [f"task.rate is {self.rate}: make it above 0 and at most 1"]
        if min(self.replace, self.random_share, 1 - self.replace - self.random_share) < -1e-9:
            found.append(
                f"task.replace is {self.replace}, task.random_share {self.random_share}: give shares that together "
                "are at most 1"
            )
        found += needs(model, encoder=True, decoder=False)
        if self.next_sentence:
            return found + head_problems(model, length, NEXT, 2, of_tokens=False)
        return found + too_long(model, encoder=length)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens."""
        return {"tokens": vocab}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A document between the tokenizer's special tokens, for pairs without; ready-made tokens as they are."""
        if document.text is None or tokenizer is None:
            yield {"tokens": np.asarray(document.tokens, np.int32)}
        else:
            ids = tokenizer.encode(document.text)
            yield {"tokens": np.array(ids if self.next_sentence else shared.frame(tokenizer)(ids)[0], np.int32)}

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """Documents on end, or a pair a row."""
        if tokenizer is None:
            raise ValueError("task MaskedLM: ready-made tokens do not tell which one is the mask: give texts")
        mask = self._mask(tokenizer, length)
        if self.next_sentence:
            return self._pairs(store, tokenizer, length, seed, mask)
        make = lambda row, random: mask(row, row["segments"] > 0, random)
        return StreamRows(store, length, seed, overlap=0, transform=make)

    def _mask(self, tokenizer: Tokenizer, length: int) -> Mask:
        """mask(row, which places hold tokens, random) -> the row with masked tokens, places, targets and weights."""
        mask, vocab, most = mask_id(tokenizer), tokenizer.vocab_size, max(1, round(self.rate * length))
        special = np.zeros(vocab, bool)
        special[[*tokenizer.specials.values()]] = True
        words = boundaries(tokenizer) if self.whole_words else None
        shares = {"rate": self.rate, "replace": self.replace, "random_share": self.random_share}

        def make(row: Row, there: np.ndarray, random: np.random.Generator) -> Row:
            tokens = row["tokens"]
            out = special[tokens] | ~there
            starts = None if words is None else words.word_starts(tokens)
            tokens, targets, weights = masked_lm(
                tokens, random, mask=mask, vocab=vocab, special=out, word_starts=starts, **shares
            )
            places = np.flatnonzero(weights)
            return row | {
                "tokens": tokens,
                "places": padded(places, most),
                "targets": padded(targets[places], most),
                "weights": (np.arange(most) < len(places)).astype(np.float32),
            }

        return make

    def _pairs(self, store: Store, tokenizer: Tokenizer, length: int, seed: int | None, mask: Mask) -> Rows:
        template, bounds = shared.frame(tokenizer), boundaries(tokenizer)
        room = shared.room(template, True, length)
        chunks = Chunks(store, bounds, room)

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            tokens, document = examples[0]["tokens"], int(examples[0]["document"])
            text = sentences(tokens, bounds.sentence_ends(tokens))
            other = lambda random: chunks.other(document, random)
            first, second, follows = sentence_pair(text, other, random, length=room)
            ids, types = template(first.tolist(), second.tolist())
            there = np.arange(length) < len(ids)
            row = {"tokens": padded(ids, length), "token_types": padded(types, length), "mask": there}
            return mask(row, there, random) | {"labels": np.asarray(not follows, np.int32)}

        return BinRows(chunks, seed, make)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key); dropout acts where `train`.

        batch: tokens, segments, positions int [B, T]; places, targets int [B, P], weights [B, P]. Of pairs tokens,
        token_types int [B, T], mask bool [B, T], and labels int [B], 0 where the second text follows the first; a
        pair weighs as much as its masked tokens, so that microbatches add up.
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            held, names = variables(params, frozen), ("tokens", "segments", "positions")
            given = reading(model, batch) if self.next_sentence else {name: batch[name] for name in names}
            out, weights = run(model, held, key, train, **given), batch["weights"]
            masked = at_places(out, batch["places"])
            loss, metrics = vocabulary_loss(model, held, masked, batch["targets"], weights, train)
            if not self.next_sentence:
                return loss, metrics
            assert out.extra is not None  # see problems
            pairs, sizes = (out.extra[NEXT], batch["labels"]), weights.sum(1)
            told = losses.classification(*pairs, sizes > 0)[1]
            return loss + losses.classification(*pairs, sizes)[0], metrics | {
                f"next_{name}": value for name, value in told.items()
            }

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """Of masked tokens the mean loss in nats, its perplexity, and accuracy; of pairs next_loss, next_accuracy."""
        values = means(sums)
        return values | {"perplexity": math.exp(min(values["loss"], 700.0))}


class Chunks:
    """Stretches of whole sentences: they stand for a Store where a row is made of each.

    Each has `length` tokens or more, but the last one of a document. Raises ValueError where there is one document
    alone.
    """

    def __init__(self, store: Store, bounds: Boundaries, length: int) -> None:
        self.store, self.bounds, self.fingerprint = store, bounds, store.fingerprint
        places = list[tuple[int, int, int]]()
        for document in range(len(store)):
            tokens = store.read("tokens", document)
            for chunk in sentence_chunks(tokens, bounds.sentence_ends(tokens), length):
                places.append((document, chunk.start, chunk.stop))
        self.places = np.array(places, np.int64).reshape(-1, 3)
        self.documents = np.unique(self.places[:, 0])
        if len(self.documents) < 2:
            raise ValueError(f"task.next_sentence: expected two documents or more, found {len(self.documents)}")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> Example:
        document, start, stop = self.places[i].tolist()
        return {"tokens": self.store.read("tokens", document, start, stop), "document": np.asarray(document)}

    def other(self, document: int, random: np.random.Generator) -> list[np.ndarray]:
        """The sentences of another document, each as likely."""
        others = self.documents[self.documents != document]
        tokens = self.store.read("tokens", int(others[random.integers(len(others))]))
        return sentences(tokens, self.bounds.sentence_ends(tokens))


def mask_id(tokenizer: Tokenizer) -> int:
    """The id that stands for what is hidden. Raises ValueError where the tokenizer has none."""
    if "mask" not in tokenizer.specials:
        raise ValueError(
            "the tokenizer has no mask: train one with tokenizer.specials <mask>, or start from a model that has it"
        )
    return tokenizer.specials["mask"]
