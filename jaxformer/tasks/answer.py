"""Find the answer to a question in a text. B batch, T length."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer import losses, scores
from jaxformer.config import ModelConfig
from jaxformer.losses import MASKED, Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import computed, head_problems, means, read_off, variables, with_aux
from jaxformer.tasks import labels as shared
from jaxformer.text.offsets import Span, offsets
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows
from jaxformer.text.template import Template
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn


@dataclass(frozen=True)
class Answer:
    """Extractive question answering: the first and the last token of the answer, each chosen among all tokens of a
    row (Devlin et al., 2019, section 4.2).

    A row holds the question and a window of its context. Where the window does not hold the answer, both are the
    row's first token (section 4.3).
    """

    question: str = "question"
    """Field of a record with the question."""
    context: str = "context"
    """Field with the text that holds the answer."""
    answer: str = "answer"
    """Field with the answer as the context has it, "" for none; or a list of answers that are all right: training
    takes the first."""
    start: str = "start"
    """Field with the character of the context at which the answer begins, or a list of them."""
    unanswerable: bool = False
    """There are questions without an answer in their context (Rajpurkar et al., 2018): "" is predicted where the
    first token scores higher than any answer."""
    stride: int = 128
    """Tokens from the beginning of a window to that of the next."""
    longest: int = 30
    """Tokens of a predicted answer at most."""

    head: ClassVar[str] = "answer"
    specials: ClassVar[tuple[str, ...]] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Question, context, answer and where it begins."""
        return self.question, self.context, self.answer, self.start

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a head with two outputs for each token, and positions for a row."""
        sizes = {"stride": self.stride, "longest": self.longest}
        found = [f"task.{name} is {size}: it must be above zero" for name, size in sizes.items() if size < 1]
        return found + head_problems(model, length, "answer", 2, of_tokens=True)

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens of both texts; answer: its first and its last place in the context, counted from 1, 0 for none."""
        return {"question": vocab, "context": vocab, "answer": shared.NUMBERS}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """Both texts without special tokens, and where the answer is."""
        assert tokenizer is not None
        question, context, spans = self._texts(document, tokenizer)
        place = self._place(document, spans)
        yield {"question": question, "context": context, "answer": np.array(place, np.uint32)}

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """A window of an example a row. A question takes half of the row at most."""
        assert tokenizer is not None
        template, stride = shared.frame(tokenizer), self.stride

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            labels, weights = examples[0]["answer"].astype(np.int32), np.ones((), np.float32)
            return _row(template, length, examples[0]) | {"labels": labels, "weights": weights}

        def cut(example: Example, number: int) -> Example:
            window = _windows(template, length, stride, len(example["question"]), len(example["context"]))[number]
            first, last = example["answer"].astype(int) - 1
            there = window.start <= first and last < window.stop
            question = _question(template, length, example["question"])
            begin = shared.begin(template, question.tolist()) - window.start
            answer = np.array([first + begin, last + begin] if there else [0, 0])
            return {"question": question, "context": example["context"][window], "answer": answer}

        sizes = zip(*(store.lengths[name].tolist() for name in ("question", "context")), strict=True)
        counts = [len(_windows(template, length, stride, *size)) for size in sizes]
        return BinRows(shared.Windows(store, np.array(counts), cut), seed, make)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key); dropout acts where `train`.

        batch: tokens, token_types int [B, T], mask bool [B, T], labels int [B, 2] (first, last), weights [B].
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            logits, out = read_off(model, variables(params, frozen), key, train, batch, "answer")
            weights = jnp.broadcast_to(batch["weights"][:, None], batch["labels"].shape)
            loss, metrics = losses.classification(_ends(logits, batch["mask"]), batch["labels"], weights)
            return with_aux(loss, out, train), metrics

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats, and accuracy, of first and last tokens alike."""
        return means(sums)

    def predict(
        self, model: Model, held: Any, tokenizer: Tokenizer, documents: Sequence[Document], rows: int, length: int
    ) -> list[str]:
        """For each document the likeliest part of its context, over all windows; "" where there is none."""
        template = shared.frame(tokenizer)
        read = [self._texts(document, tokenizer) for document in documents]
        parts, made = list[tuple[int, slice]](), list[Row]()
        for i, (question, context, _) in enumerate(read):
            for window in _windows(template, length, self.stride, len(question), len(context)):
                parts.append((i, window))
                short = _question(template, length, question)
                made.append(_row(template, length, {"question": short, "context": context[window]}))

        def scored(held: Any, batch: dict[str, Array]) -> Array:
            logits, _ = read_off(model, held, jax.random.key(0), False, batch, "answer")
            return _ends(logits, batch["mask"])

        best: list[tuple[float, Span]] = [(-np.inf, (0, 0))] * len(read)
        nothing = [np.inf] * len(read)
        for (i, window), ends in zip(parts, computed(scored, held, made, rows), strict=True):
            begin = shared.begin(template, _question(template, length, read[i][0]).tolist())
            score, (first, last) = _best(ends[:, begin : begin + window.stop - window.start], self.longest)
            best[i] = max(best[i], (score, (first + window.start, last + window.start)))
            nothing[i] = min(nothing[i], float(ends[:, 0].sum()))
        answers = []
        for document, (*_, spans), (score, (first, last)), none in zip(documents, read, best, nothing, strict=True):
            found = score > -np.inf and not (self.unanswerable and none >= score)
            text = shared.text_of(document, self.context)
            answers.append(text[spans[first][0] : spans[last][1]] if found else "")
        return answers

    def score(self, predictions: list[str], documents: Sequence[Document]) -> dict[str, float]:
        """exact_match and f1, in percent."""
        return scores.squad(predictions, [[text for text, _ in self._answers(each)] for each in documents])

    def _texts(self, document: Document, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, list[Span]]:
        """Tokens of the question and of the context, and where those stand in it."""
        question = tokenizer.encode(shared.text_of(document, self.question))
        context, spans = offsets(tokenizer, shared.text_of(document, self.context))
        return np.array(question, np.int32), np.array(context, np.int32), spans

    def _answers(self, document: Document) -> list[tuple[str, int]]:
        """The answers and where they begin; none where there is none."""
        assert document.record is not None
        texts, starts = (document.record[name] for name in (self.answer, self.start))
        listed = [value if isinstance(value, list) else [value] for value in (texts, starts)]
        where = f"{document.source}: {self.start}"
        return [(str(text), int(shared.real(at, where))) for text, at in zip(*listed, strict=False) if text]

    def _place(self, document: Document, spans: Sequence[Span]) -> tuple[int, int]:
        """The first and the last token of the context that the answer touches, counted from 1; (0, 0) for none.

        Raises ValueError where the context does not hold it there, or no token says it.
        """
        answers = self._answers(document)
        if not answers and not self.unanswerable:
            raise ValueError(f"{document.source}: {self.answer}: there is none: give task.unanswerable for such data")
        if not answers:
            return 0, 0
        (text, at), context = answers[0], shared.text_of(document, self.context)
        found = context[at : at + len(text)]
        if found != text or at < 0:
            raise ValueError(f"{document.source}: {self.answer}: expected {text!r} at {at}, found {found!r}")
        touched = [
            i for i, (start, stop) in enumerate(spans) if start < at + len(text) and stop > at and start < stop
        ]
        if not touched:
            raise ValueError(f"{document.source}: {self.answer}: {text!r} has no token")
        return touched[0] + 1, touched[-1] + 1


def _question(template: Template, length: int, question: np.ndarray) -> np.ndarray:
    return question[: shared.room(template, True, length) // 2]


def _windows(template: Template, length: int, stride: int, question: int, context: int) -> list[slice]:
    """The parts of a context that rows hold beside a question, of so many tokens each; none leaves a token out."""
    both = shared.room(template, True, length)
    room = both - min(question, both // 2)
    return shared.slices(context, room, min(stride, room))


def _row(template: Template, length: int, example: Example) -> Row:
    return shared.text_row(template, length, example["question"], example["context"])


def _ends(logits: Array, mask: Array) -> Array:
    """How much each token is the first, or the last, of the answer: [B, 2, T] of what the head says [B, T, 2]."""
    return jnp.where(mask[:, None], logits.swapaxes(1, 2), MASKED)


def _best(ends: np.ndarray, longest: int) -> tuple[float, Span]:
    """(score, (first, last)) of the best answer [2, T] of at most so many tokens; -inf where there is no token."""
    length = ends.shape[1]
    found = -np.inf, (0, 0)
    for more in range(min(longest, length)):
        sums = ends[0, : length - more] + ends[1, more:]
        at = int(sums.argmax())
        found = max(found, (float(sums[at]), (at, at + more)))
    return found
