"""Answer as the assistant of a conversation does: loss on the answers alone."""

import logging
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.nn.model import Model
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.tasks.common import means
from jaxformer.text.chat import render
from jaxformer.text.offsets import offsets
from jaxformer.text.pack import bins
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows, side_by_side
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn

logger = logging.getLogger(__name__)

PAIR = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message.content }}{{ '\\n' if message.role == 'user' else eos_token }}{% endfor %}"
)
"""How a pair is written where nothing else says it: the prompt, a line's end, the answer, the tokenizer's eos."""
NAME = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")  # what may be the name of a special token
MARKED = re.compile("\ufdd0([0-9]+)\ufdd1")  # the id of one; Unicode gives these characters to no text

Messages = Sequence[Mapping[str, Any]]
Write = Callable[[Messages, bool], str]
"""(messages, whether the beginning of an answer is to follow) -> their text."""


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
    """Chat template in place of the tokenizer's own; a pair needs none, see PAIR."""

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


def writer(tokenizer: Tokenizer, template: str) -> Write:
    """How a chat template writes messages, so that `encode` gives the template's special tokens for themselves."""
    template = marked(tokenizer, template)
    names = {f"{role}_token": marked(tokenizer, tokenizer.piece(id)) for role, id in tokenizer.specials.items()}
    return lambda messages, ask: render(template, messages, ask, **names)


Span = tuple[int, int]
Conversation = tuple[list[int], list[Span]]
"""Ids, and where among them each answer stands that is to be learned."""


def conversations(tokenizer: Tokenizer, write: Write, messages: Messages) -> Iterator[Conversation]:
    """The messages as one conversation with all its answers.

    An answer is what `write` puts behind the messages before it and the beginning of an answer, down to the token
    that ends the turn. Where a turn reads otherwise once more follow, as where a template drops what was thought in
    earlier turns, each answer is a conversation of its own, with the turns before it as they then read.

    Raises ValueError where an answer does not begin as `write` lets answers begin.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    after = [write(messages[: i + 1], False) for i in turns]
    before = [opening(write(messages[:i], True), text, i) for i, text in zip(turns, after, strict=True)]
    whole, encoded = after[-1], [encode(tokenizer, text) for text in after]
    ids = encoded[-1]
    if all(map(whole.startswith, (*before, *after))) and all(ids[: len(each)] == each for each in encoded):
        starts = [begin(tokenizer, ids, whole, text) for text in before]
        yield ids, [(a, end(tokenizer, ids, a, len(each))) for a, each in zip(starts, encoded, strict=True)]
        return
    for opened, closed, ids in zip(before, after, encoded, strict=True):
        start = begin(tokenizer, ids, closed, opened)
        yield ids, [(start, end(tokenizer, ids, start, len(ids)))]


def opening(asked: str, text: str, turn: int) -> str:
    """What comes before an answer: `asked` as far as `text` begins with it, which may lack of the spaces at its end:
    templates often leave one more. Raises ValueError where it lacks anything else.
    """
    sizes = range(len(asked), len(asked.rstrip()) - 1, -1)
    opened = next((asked[:size] for size in sizes if text.startswith(asked[:size])), None)
    if opened is None:
        raise ValueError(
            f"the chat template writes message {turn} so that it does not begin as answers begin: expected"
            f" {asked[-40:]!r} before it, found {text[max(0, len(asked) - 40) : len(asked) + 40]!r}"
        )
    return opened


def begin(tokenizer: Tokenizer, ids: Sequence[int], text: str, opened: str) -> int:
    """How many of a text's ids come before what follows its beginning `opened`.

    Those of `opened` itself, which a model is given to go on from; where a token lies across its end, the tokens
    that end within it.
    """
    before = encode(tokenizer, opened)
    if ids[: len(before)] == before:
        return len(before)
    stops = list[int]()
    for at, part, special in parts(text):
        spans = [(0, len(part))] if special is not None else offsets(tokenizer, part)[1]
        stops += [at + stop for _, stop in spans]
    return bisect_right(stops, len(opened))


def end(tokenizer: Tokenizer, ids: Sequence[int], start: int, stop: int) -> int:
    """Where an answer ends: behind its last special token if only spaces follow, else at `stop`."""
    last = next((i for i in range(stop - 1, start - 1, -1) if not tokenizer.decode([ids[i]])), None)
    return stop if last is None or tokenizer.decode(ids[last + 1 : stop]).strip() else last + 1


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which the special tokens that `marked` marked stand for themselves."""
    found = list[int]()
    for _, part, special in parts(text):
        found += tokenizer.encode(part) if special is None else [special]
    return found


def parts(text: str) -> Iterator[tuple[int, str, int | None]]:
    """(where it starts, the part, None) of a text, and (..., the id) of each special token that is marked in it."""
    at = 0
    for match in MARKED.finditer(text):
        if match.start() > at:
            yield at, text[at : match.start()], None
        yield match.start(), match[0], int(match[1])
        at = match.end()
    if at < len(text):
        yield at, text[at:], None


def marked(tokenizer: Tokenizer, text: str) -> str:
    """A template, or a token's name, in which the names of special tokens are marked that `tokenizer.encode` would
    take for text. In a conversation's own words they stay text.
    """

    def mark(match: re.Match[str]) -> str:
        name, id = match[0], tokenizer.id(match[0])
        is_text = id is None or tokenizer.decode([id]) or tokenizer.encode(name) == [id]
        return name if is_text else f"\ufdd0{id}\ufdd1"

    return NAME.sub(mark, text)
