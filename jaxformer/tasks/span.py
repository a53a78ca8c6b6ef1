"""Read a text with holes and write what was in them; and rows of texts that are read beside texts that are written.

S source length, T target length.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.nn.model import Model
from jaxformer.objective import means, needs, too_long
from jaxformer.tasks.labels import Windows
from jaxformer.tasks.seq2seq import Seq2Seq, pairs_row
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import Row, Rows, StreamRows
from jaxformer.text.spans import span_corruption, span_counts, span_lengths
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn


@dataclass(frozen=True)
class SpanCorruption:
    """Spans of a text, each in place of a sentinel, are written one after the other (Raffel et al., 2020, section
    3.1.4).

    Documents on end are cut into texts that are so long that what the encoder reads of them fills its row. As in the
    released code nothing parts documents.
    """

    density: float = 0.15
    """Share of tokens that are corrupted."""
    span: float = 3.0
    """Mean length of a span."""
    sentinels: int = 100
    """How many there are: <extra_id_0> and on."""

    columns: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[None] = None

    @property
    def specials(self) -> tuple[str, ...]:
        """The sentinels."""
        return sentinel_names(self.sentinels)

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs an encoder and a decoder, with positions for a row of each, and a sentinel for each span."""
        found = needs(model, encoder=True, decoder=True)
        try:
            text, targets = span_lengths(length, self.density, self.span)
        except ValueError as error:
            return [*found, f"task.density and task.span: {error}"]
        spans = span_counts(text, self.density, self.span)[1]
        return found + few_sentinels(spans, self.sentinels, length) + too_long(model, encoder=length, decoder=targets)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens."""
        return {"tokens": vocab}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A document's tokens, without special ones."""
        yield {"tokens": bare(document, tokenizer)}

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """A text a row, corrupted anew in each epoch; the last one of an epoch may be shorter."""
        sentinels, eos = named_ids(tokenizer, self.specials), end(tokenizer)
        text, written = span_lengths(length, self.density, self.span)

        def transform(row: Row, random: np.random.Generator) -> Row:
            tokens = row["tokens"][row["segments"] > 0]
            shares = {"density": self.density, "mean": self.span}
            source, target = span_corruption(tokens, random, sentinels=sentinels, eos=eos, **shares)
            return pairs_row([source], [target], length, written)

        return StreamRows(store, text, seed, overlap=0, transform=transform)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """That of Seq2Seq."""
        return Seq2Seq().loss(model, train=train)

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats a token of the targets, and accuracy."""
        return means(sums)


def bare(document: Document, tokenizer: Tokenizer | None) -> np.ndarray:
    """A document's tokens int32 without special ones; its ready-made tokens as they are."""
    if document.text is None or tokenizer is None:
        return np.asarray(document.tokens, np.int32)
    return np.array(tokenizer.encode(document.text), np.int32)


def windows(store: Store, size: int) -> tuple[Windows, np.ndarray]:
    """(documents cut into texts of `size` tokens at most: they stand for a Store; how long each is)."""
    lengths = store.lengths["tokens"]
    counts = -(-lengths // size)
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)

    def cut(example: Example, number: int) -> Example:
        return {"tokens": example["tokens"][number * size : (number + 1) * size]}

    return Windows(store, counts, cut), np.minimum(size, np.repeat(lengths, counts) - size * numbers)


def sentinel_names(count: int) -> tuple[str, ...]:
    """<extra_id_0> and on."""
    return tuple(f"<extra_id_{i}>" for i in range(count))


def few_sentinels(spans: int, sentinels: int, length: int) -> list[str]:
    """What is wrong where a row's spans are more than there are sentinels."""
    found = (
        f"task.sentinels is {sentinels}, and rows of {length} tokens have {spans} spans: add some, or shorten rows"
    )
    return [found] if spans > sentinels else []


def named_ids(tokenizer: Tokenizer | None, names: Sequence[str]) -> list[int]:
    """The ids of special tokens. Raises ValueError where the tokenizer lacks any."""
    found = {name: None if tokenizer is None else tokenizer.id(name) for name in names}
    if missing := [name for name, id in found.items() if id is None]:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ValueError(
            f"the tokenizer has no {listed}: train one with tokenizer.specials that name them, or start from a model"
            " that has them"
        )
    return [id for id in found.values() if id is not None]


def end(tokenizer: Tokenizer | None) -> int:
    """The id that ends a text. Raises ValueError where there is none."""
    if tokenizer is None or tokenizer.eos is None:
        raise ValueError("the tokenizer has no eos, and the task needs it to end texts: take one that has it")
    return tokenizer.eos
