"""Predict each token from those before it, in texts of which many end with their middle."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.generation import Greedy, Strategy
from jaxformer.nn.model import Model
from jaxformer.objective import means
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.tasks.seq2seq import write
from jaxformer.tasks.span import end, named_ids
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import Row, Rows, StreamRows
from jaxformer.text.spans import fill_in_the_middle
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn

SENTINELS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@dataclass(frozen=True)
class Infill:
    """Language modelling from left to right that also learns to fill in the middle (Bavarian et al., 2022).

    Of the packed documents' parts in a row each is, with a chance and anew in each epoch, turned: its middle comes
    last, behind what was before and after it. Every token counts in the loss.
    """

    rate: float = 0.5
    """Chance that a document's part is turned."""
    spm: float = 0.5
    """Chance that a turned one begins with what comes after the middle."""
    lines: int | None = None
    """The middle is whole lines, each behind its newline, and at most so many; None: from any token to any other."""

    columns: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[None] = None
    specials: ClassVar[tuple[str, ...]] = SENTINELS

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a decoder alone, with positions for a row."""
        chances = {"rate": self.rate, "spm": self.spm}
        found = [
            f"task.{name} is {value}: make it at least 0 and at most 1"
            for name, value in chances.items()
            if not 0 <= value <= 1
        ]
        if self.lines is not None and self.lines < 1:
            found.append(f"task.lines is {self.lines}: make it above zero, or None")
        return found + CausalLM().problems(model, length)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens."""
        return CausalLM().fields(vocab)

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A document's tokens between the tokenizer's beginning and end marks, where there are such."""
        return CausalLM().examples(document, tokenizer)

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """Documents on end. A turned part is as long as it was: its last tokens make room for the sentinels."""
        sentinels, eos = named_ids(tokenizer, SENTINELS), end(tokenizer)
        bos = None if tokenizer is None else tokenizer.bos
        ids = dict(zip(("prefix", "suffix", "middle"), sentinels, strict=True)) | {"eos": eos}
        newline = None if self.lines is None else newlines(tokenizer)

        def transform(row: Row, random: np.random.Generator) -> Row:
            tokens, segments = row["tokens"].copy(), row["segments"]
            for segment in range(1, int(segments.max()) + 1):
                places = np.flatnonzero(segments == segment)
                places = places[int(tokens[places[0]] == bos) :]
                shape = {"length": len(places), "lines": self.lines or 1} | ids
                breaks = None if newline is None else np.flatnonzero(newline[tokens[places]])
                tokens[places] = fill_in_the_middle(
                    tokens[places], random, rate=self.rate, spm=self.spm, breaks=breaks, **shape
                )
            return row | {"tokens": tokens}

        return StreamRows(store, length, seed, transform=transform)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """That of CausalLM."""
        return CausalLM().loss(model, train=train)

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats a token, turned or not, its perplexity, and accuracy."""
        values = means(sums)
        return values | {"perplexity": math.exp(min(values["loss"], 700.0))}


def newlines(tokenizer: Tokenizer | None) -> np.ndarray:
    """Which ids begin with a newline, bool [vocab]."""
    assert tokenizer is not None  # it has named the sentinels
    return np.array([tokenizer.decode([id]).startswith("\n") for id in range(tokenizer.vocab_size)])


def infill_prompt(
    tokenizer: Tokenizer,
    before: str,
    after: str,
    spm: bool = False,
    marks: Sequence[str] = SENTINELS,
) -> np.ndarray:
    """Ids int32 behind which a model writes what stands between two texts.

    `spm` puts the second text first, so that what is written follows what was before it, as in any text. `marks`
    stand before the first, the second and what is written; with those of this task the row begins with a bos, with
    others as the tokenizer's template says.
    """
    prefix, suffix, middle = named_ids(tokenizer, marks)
    first = [] if tokenizer.bos is None else [tokenizer.bos]
    if tuple(marks) != SENTINELS:
        around = tokenizer.template.single
        before_text = (part for part, _ in around[: around.index(("A", 0))])
        first = [id for part in before_text if not isinstance(part, str) for id in part]
    read, rest = tokenizer.encode(before), going_on(tokenizer, after)
    turned = [prefix, suffix, *rest, middle, *read] if spm else [prefix, *read, suffix, *rest, middle]
    return np.array([*first, *turned], np.int32)


def going_on(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that is no beginning: without the space that SentencePiece puts before one."""
    line, both = tokenizer.encode("\n"), tokenizer.encode("\n" + text)
    return both[len(line) :] if both[: len(line)] == line else tokenizer.encode(text)


def complete(
    model: Model,
    held: Any,
    tokenizer: Tokenizer,
    gaps: Sequence[tuple[str, str]],
    rows: int,
    most: int,
    strategy: Strategy = Greedy(),
    spm: bool = False,
) -> list[str]:
    """What the model writes between the texts of each pair (before, after), at most `most` tokens; `rows` at a time.

    A text is best cut where its tokens are: before a space or a line's end rather than behind it.
    """
    prompts = [infill_prompt(tokenizer, before, after, spm) for before, after in gaps]
    return write(model, held, tokenizer, prompts, rows, most, strategy)
