"""Answer as the assistant of a conversation does: loss on the answers alone."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.nn.model import Model
from jaxformer.objective import means
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.text.pack import bins
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows, side_by_side
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.text.turns import Messages, conversations, writer
from jaxformer.train.step import LossFn

logger = logging.getLogger(__name__)

PAIR = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message.content }}{{ '\\n' if message.role == 'user' else eos_token }}{% endfor %}"
)
"""How a pair is written where nothing else says it: the prompt, a line's end, the answer, the tokenizer's eos."""


@dataclass(frozen=True)
class Instruct:
    """Instruction tuning (Ouyang et al., 2022, section 3): language modelling on conversations, of which only what
    the assistant says counts, and the token that ends its turn.

    Conversations are written by the tokenizer's chat template, and packed whole into rows in which none sees
    another. One that is longer than a row is cut at its end.
    """

    messages: str = "messages"
    """Field of a record with a conversation: objects with "role" and "content"; the assistant's are learned."""
    prompt: str = ""
    """Field with a prompt, for records of one question and one answer; then `messages` is not read."""
    answer: str = ""
    """Field with the answer to `prompt`."""
    template: str = ""
    """Chat template in place of the tokenizer's own, and in that of the model that is published; a pair needs none,
    see PAIR."""

    head: ClassVar[None] = None
    specials: ClassVar[tuple[str, ...]] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The conversation, or prompt and answer."""
        return (self.prompt, self.answer) if self.prompt else (self.messages,)

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a decoder alone, with positions for a row."""
        one_alone = bool(self.prompt) != bool(self.answer)
        found = ["task.prompt and task.answer: give both fields, or neither"] if one_alone else []
        return found + CausalLM().problems(model, length)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens, and which of them are to be predicted: 1."""
        return {"tokens": vocab, "answers": 2}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A conversation; or one for each of its answers, see `conversations`.

        Raises ValueError for what is no conversation, or none that the template can write, and where there is no
        template.
        """
        assert tokenizer is not None
        template = self.template or tokenizer.chat_template or (PAIR if self.prompt else "")
        if not template:
            raise ValueError("this tokenizer has no chat template: give task.template, Jinja that writes `messages`")
        write = writer(tokenizer, template)
        try:
            messages = self._messages(document)
            for ids, spans in conversations(tokenizer, write, messages):
                answers = np.zeros(len(ids), np.int32)
                for start, stop in spans:
                    answers[start:stop] = 1
                yield {"tokens": np.array(ids, np.int32), "answers": answers}
        except ValueError as error:
            raise ValueError(f"{document.source}: {error}") from None

    def _messages(self, document: Document) -> Messages:
        if self.prompt:
            texts = document.record[self.prompt], document.record[self.answer]
            return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
        messages = document.record[self.messages]
        if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
            raise ValueError(f'{self.messages}: expected objects with "role" and "content", found {messages!r:.100}')
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        if last < 0:
            raise ValueError(f'{self.messages}: no message has the role "assistant": there is nothing to learn')
        return messages[: last + 1]

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """Conversations side by side, as `CausalLM` reads them.

        Those whose answers lie behind the end of a row are left out, and it is logged how many: one long prompt is
        no reason to stop, but rows without a target would be computed for nothing. Raises ValueError where none is
        left.
        """
        seen = [i for i in range(len(store)) if store.read("answers", i, 1, length + 1).any()]
        if lost := len(store) - len(seen):
            said = f"{lost} of {len(store)} conversations have no answer within {length + 1} tokens"
            if not seen:
                raise ValueError(f"{said}: give a longer --length")
            logger.warning("%s: left out", said)
        sizes = np.minimum(store.lengths["tokens"][seen], length + 1)
        together = [np.asarray(seen)[numbers] for numbers in bins([sizes], [length + 1], 0)]

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            row, answers = (
                side_by_side([example[field][: length + 1] for example in examples], length + 1)
                for field in ("tokens", "answers")
            )
            follows = row["segments"][1:] == row["segments"][:-1]
            return row | {"weights": (answers["tokens"][1:] * follows).astype(np.float32)}

        return BinRows(store, seed, make, together)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """That of CausalLM."""
        return CausalLM().loss(model, train=train)

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats a token of the answers, its perplexity, and accuracy."""
        values = means(sums)
        return values | {"perplexity": math.exp(min(values["loss"], 700.0))}
