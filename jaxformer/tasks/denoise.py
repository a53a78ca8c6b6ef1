"""Read a damaged text and write it as it was."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.nn.model import Model
from jaxformer.objective import means, needs, too_long
from jaxformer.tasks.masked_lm import mask_id
from jaxformer.tasks.seq2seq import Seq2Seq, cut, pairs_row, write
from jaxformer.tasks.span import bare, windows
from jaxformer.text.boundaries import boundaries
from jaxformer.text.corrupt import DenoiseConfig, denoise
from jaxformer.text.pack import bins
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn


@dataclass(frozen=True)
class Denoise(DenoiseConfig):
    """A denoising autoencoder (Lewis et al., 2020): the encoder reads a text that is damaged anew in each epoch, by
    default as BART was pretrained, the decoder writes it as it was.

    Whole documents side by side, that do not see each other, each between the tokenizer's special tokens; one that is
    too long is several texts.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[None] = None
    specials: ClassVar[tuple[str, ...]] = ("<mask>",)

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs an encoder and a decoder, with positions for a row of each."""
        shares = {name: getattr(self, name) for name in ("delete", "mask", "infill", "rotate")}
        found = [
            f"task.{name} is {value}: make it at least 0 and at most 1"
            for name, value in shares.items()
            if not 0 <= value <= 1
        ]
        found += [] if self.span > 0 else [f"task.span is {self.span}: make it above 0"]
        found += needs(model, encoder=True, decoder=True)
        return found + too_long(model, encoder=length, decoder=length)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens."""
        return {"tokens": vocab}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A document's tokens, without special ones."""
        yield {"tokens": bare(document, tokenizer)}

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """Texts side by side, on both sides in the same order. A damaged text that has grown loses its end."""
        if tokenizer is None:
            raise ValueError("task Denoise: ready-made tokens do not tell which one is the mask: give texts")
        mask, bounds = mask_id(tokenizer), boundaries(tokenizer)
        marks = len(framed(tokenizer, []))
        if length <= marks:
            raise ValueError(f"length is {length}: special tokens leave no room for a text; make it longer")
        texts, lengths = windows(store, length - marks)

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            sources, targets = [], []
            for tokens in (example["tokens"] for example in examples):
                damaged = denoise(tokens, bounds.sentence_ends(tokens), random, self, mask=mask)
                sources.append(cut(framed(tokenizer, damaged), len(tokens) + marks))
                targets.append(framed(tokenizer, tokens))
            return pairs_row(sources, targets, length, length)

        return BinRows(texts, seed, make, bins([lengths + marks], [length], 0))

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """That of Seq2Seq."""
        return Seq2Seq().loss(model, train=train)

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats a token of the text, and accuracy."""
        return means(sums)


def fill(model: Model, held: Any, tokenizer: Tokenizer, texts: Sequence[str], rows: int, most: int) -> list[str]:
    """Each text written anew, with what stands for its masks: "The <mask> jumps", by the tokenizer's own name.

    Texts are read `rows` at a time, at most `most` tokens are written of each.
    """
    mask = mask_id(tokenizer)
    sources = []
    for text in texts:
        *before, last = text.split(tokenizer.piece(mask))
        ids = [id for part in before for id in (*tokenizer.encode(part.rstrip(" ")), mask)]
        sources.append(framed(tokenizer, ids + tokenizer.encode(last)))
    return write(model, held, tokenizer, sources, rows, most)


def framed(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Ids int32 with the tokenizer's special tokens around them, and an eos at the end, as `seq2seq.ended`."""
    out = tokenizer.template([int(id) for id in ids])[0]
    if tokenizer.eos is not None and out[-1:] != [tokenizer.eos]:
        out = [*out, tokenizer.eos]
    return np.array(out, np.int32)
