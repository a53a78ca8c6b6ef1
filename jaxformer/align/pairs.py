"""Pairs of answers to one prompt, the better one first: records and examples. P prompt, A answer."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxformer.align.exchange import Asked, exchange
from jaxformer.text.prepare import Example
from jaxformer.text.records import Document
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.text.turns import is_conversation

logger = logging.getLogger(__name__)

SIDES = ("chosen", "rejected")
NUMBERS = 1 << 32
"""Bound of a field of an example that holds the bits of a float32."""


@dataclass(frozen=True)
class Pairs:
    """What tasks share that learn from two answers, of which people liked one more."""

    prompt: str = "prompt"
    """Field of a record with the prompt: a text, or messages with "role" and "content". Empty: `chosen` and
    `rejected` are whole conversations, alike but for the assistant's last message."""
    chosen: str = "chosen"
    """Field with the better answer: a text, or a message of the assistant in a list."""
    rejected: str = "rejected"
    """Field with the worse one."""
    end: bool = True
    """An answer to a text ends with the tokenizer's eos; False for answers that were cut off somewhere."""
    template: str = ""
    """Chat template in place of the tokenizer's own."""
    encoder: bool = False
    """The model has an encoder, which reads the prompt by itself; else prompt and answer are one text."""

    specials: ClassVar[tuple[str, ...]] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Prompt and answers."""
        return tuple(name for name in (self.prompt, self.chosen, self.rejected) if name)

    def fields(self, vocab: int) -> dict[str, int]:
        """The prompt and the answer of each side: where both are one text, a prompt may end otherwise."""
        return {f"{side}_{part}": vocab for side in SIDES for part in ("prompt", "answer")}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """Both exchanges, as ids. Raises ValueError for records that hold none, and for answers that are equal."""
        assert tokenizer is not None
        example: Example = {}
        try:
            texts = self.texts(document)
            for side, (asked, answer) in zip(SIDES, texts, strict=True):
                style = {"encoder": self.encoder, "end": self.end}
                found = exchange(tokenizer, asked, answer, template=self.template, **style)
                example |= {f"{side}_prompt": found.prompt, f"{side}_answer": found.answer}
        except ValueError as error:
            raise ValueError(f"{document.source}: {error}") from None
        yield example

    def texts(self, document: Document) -> list[tuple[Asked, str]]:
        """(the prompt, the answer) of each side. Raises ValueError where there are no such, or no two."""
        record = document.record
        sides = [record[name] for name in (self.chosen, self.rejected)]
        found = [
            (record[self.prompt], _answer(value, name)) if self.prompt else _parted(value, name)
            for value, name in zip(sides, (self.chosen, self.rejected), strict=True)
        ]
        if found[0][0] != found[1][0]:
            raise ValueError(f"{self.chosen} and {self.rejected} answer different conversations: expected one")
        if found[0][1] == found[1][1]:
            raise ValueError(f"{self.chosen} and {self.rejected} are equal: {found[0][1]!r:.60}")
        return found


def _answer(value: Any, name: str) -> str:
    """The text of an answer: itself, or the only message of a list."""
    if is_conversation(value) and len(value) == 1 and value[0]["role"] == "assistant":
        value = value[0]["content"]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}: expected a text, or a list of one message of the assistant, found {value!r:.80}")
    return value


def _parted(value: Any, name: str) -> tuple[Asked, str]:
    """A conversation's messages but the last one, and the last one's text."""
    if not is_conversation(value) or len(value) < 2 or value[-1]["role"] != "assistant":
        raise ValueError(f"{name}: expected messages of which the last is the assistant's, found {value!r:.80}")
    return [*value[:-1]], _answer([value[-1]], name)


def fitting(sizes: np.ndarray, room: int, what: str, of: str) -> list[np.ndarray]:
    """The numbers of what fits by its size, one a row; how many are left out is logged, as `what` of so many `of`.

    Raises ValueError where none is left.
    """
    kept = np.flatnonzero(sizes <= room)
    if len(kept) < len(sizes):
        said = f"{len(sizes) - len(kept)} of {len(sizes)} {what} have more than {room} {of}"
        if not len(kept):
            raise ValueError(f"{said}: give a longer --length")
        logger.warning("%s: left out", said)
    return [kept[i : i + 1] for i in range(len(kept))]


def bits(number: float) -> np.ndarray:
    """A float32 as an array [1] of whole numbers, for an example."""
    return np.asarray([number], np.float32).view(np.uint32)


def real(values: np.ndarray) -> np.ndarray:
    """The float32 () that `bits` hid."""
    return values.astype(np.uint32).view(np.float32)[0]
