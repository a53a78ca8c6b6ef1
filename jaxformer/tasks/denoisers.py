"""A mixture of ways to corrupt spans, each announced by a token."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.nn.model import Model
from jaxformer.objective import means, needs, too_long
from jaxformer.tasks.prefix_lm import prefix_loss, prefix_row
from jaxformer.tasks.seq2seq import Seq2Seq, pairs_row
from jaxformer.tasks.span import bare, end, few_sentinels, named_ids, sentinel_names
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import Row, Rows, StreamRows
from jaxformer.text.spans import UL2, mixture_of_denoisers, span_counts
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn

MODES = "RSX"
MARKS = 3
"""Tokens beside text and sentinels: the mode's, and what ends inputs and targets."""


@dataclass(frozen=True)
class MixtureOfDenoisers:
    """Each text is corrupted by one of seven denoisers, drawn anew in each epoch (UL2: Tay et al., 2022, section
    3.1): regular ones, a sequential one, and extreme ones, for which much or long spans are to be written.

    An encoder reads and a decoder writes, or a decoder alone writes behind what it sees at once. Texts are documents
    on end, as many tokens as fit whatever the denoiser; what it leaves free of a row is padding.
    """

    encoder: bool = True
    """An encoder reads what is left of the text."""
    sentinels: int = 100
    """How many there are: <extra_id_0> and on."""
    modes: tuple[str, str, str] = ("[R]", "[S]", "[X]")
    """Special tokens that a row begins with: of regular, sequential and extreme denoisers."""

    columns: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[None] = None

    @property
    def specials(self) -> tuple[str, ...]:
        """The modes and the sentinels."""
        return (*self.modes, *sentinel_names(self.sentinels))

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a decoder, and the encoder that it was told of, with positions for a row, and many sentinels."""
        found = needs(model, encoder=self.encoder, decoder=True)
        text = self.text_length(length)
        if text < 2:
            return [*found, f"length is {length}: it leaves {text} tokens of text; make it longer"]
        found += few_sentinels(_spans(text), self.sentinels, length)
        return found + too_long(model, encoder=length, decoder=_written(text) if self.encoder else length)

    def text_length(self, length: int) -> int:
        """Tokens of a text, so that it fits however it is corrupted."""
        if self.encoder:
            return length - 2  # the mode, a sentinel for a single token, and the end
        text = length + 1 - MARKS
        while text > 1 and text + 2 * _spans(text) + MARKS > length + 1:
            text -= 1
        return text

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens."""
        return {"tokens": vocab}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A document's tokens, without special ones."""
        yield {"tokens": bare(document, tokenizer)}

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """A text a row; the last one of an epoch may be shorter."""
        sentinels, eos = named_ids(tokenizer, sentinel_names(self.sentinels)), end(tokenizer)
        modes = dict(zip(MODES, named_ids(tokenizer, self.modes), strict=True))
        text = self.text_length(length)

        def transform(row: Row, random: np.random.Generator) -> Row:
            tokens = row["tokens"][row["segments"] > 0]
            source, target = mixture_of_denoisers(tokens, random, sentinels=sentinels, eos=eos, modes=modes)
            if self.encoder:
                return pairs_row([source], [target], length, _written(text))
            return prefix_row(source, target, length)

        return StreamRows(store, text, seed, overlap=0, transform=transform)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """That of Seq2Seq, or of `prefix_loss`."""
        return Seq2Seq().loss(model, train=train) if self.encoder else prefix_loss(model, train)

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats a token of the targets, and accuracy."""
        return means(sums)


def _spans(text: int) -> int:
    """Spans of a text of so many tokens at most."""
    return max(span_counts(text, each.density, each.mean)[1] for each in UL2 if each.mean is not None)


def _written(text: int) -> int:
    """Tokens of the targets at most, the end included."""
    counted = [span_counts(text, each.density, each.mean) for each in UL2 if each.mean is not None]
    sequential = [max(1, round(2 * each.density * text) - 1) for each in UL2 if each.mean is None]
    return 1 + max(*(noise + spans for noise, spans in counted), *(size + 1 for size in sequential))
