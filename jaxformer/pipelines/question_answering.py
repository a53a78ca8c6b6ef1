"""A question and a text to the answer that stands in it. T length of a window."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.pipelines import forward
from jaxformer.pipelines.base import Options, Pipeline, Row, lacks_head, least, listed, ordered, softmax
from jaxformer.tasks import labels as shared
from jaxformer.text.offsets import Span, raw_offsets

USUAL = 384
"""Tokens of a window where neither options nor the model ask for fewer."""
OUTSIDE = -10000.0
"""The number of a token that may not answer."""


@dataclass(frozen=True)
class AnswerOptions(Options):
    """Options of question-answering."""

    top_k: int = 1
    """How many answers are given at most, the likeliest first; one alone comes without a list."""
    doc_stride: int | None = None
    """Tokens of the context that a window shares with the next; None: 128, at most half of a window."""
    max_answer_len: int = 15
    """Tokens of an answer at most."""
    max_seq_len: int | None = None
    """Tokens of a window, question and special tokens included; None: 384, at most what the model reads."""
    handle_impossible_answer: bool = False
    """The answer may be "": no part of the context."""
    align_to_words: bool = True
    """Answers begin and end with words, not within them."""

    def problems(self) -> list[str]:
        """What is wrong with them."""
        found = super().problems() + least("top_k", self.top_k, 1) + least("max_answer_len", self.max_answer_len, 1)
        found += [] if self.max_seq_len is None else least("max_seq_len", self.max_seq_len, 1)
        return found + ([] if self.doc_stride is None else least("doc_stride", self.doc_stride, 0))


@dataclass(frozen=True)
class Context:
    """A text that answers are sought in, and its tokens."""

    text: str
    ids: list[int]
    spans: list[Span]
    words: list[int | None]

    def span(self, first: int, last: int, window: slice, align: bool) -> Span:
        """The characters from a token of a window to another one; `align`: with the words that they belong to."""
        start, end = self.spans[first][0], self.spans[last][1]
        if not align:
            return start, end
        if self.words[first] is not None and self.words[last] is not None:
            inside = range(window.start, window.stop)
            start = self.spans[next(i for i in inside if self.words[i] == self.words[first])][0]
            return start, self.spans[next(i for i in reversed(inside) if self.words[i] == self.words[last])][1]
        while start > 0 and not self.text[start - 1].isspace():
            start -= 1
        while end < len(self.text) and not self.text[end].isspace():
            end += 1
        return start, end


class QuestionAnswering(Pipeline):
    """pipeline("question-answering", source)(question="Where is Anna?", context="Anna is in Rome.") gives {"score":
    0.9, "start": 11, "end": 15, "answer": "Rome"}.

    Also takes a mapping of both, or a list of such; a list of two or more gives a list. A context that is longer than
    a window is read in several; scores of an answer that several of them give add up.
    """

    task = "question-answering"
    takes = AnswerOptions
    options: AnswerOptions

    def lacks(self, config: ModelConfig) -> list[str]:
        """See Pipeline."""
        return lacks_head(config, "answer", "answer", "jaxformer.tasks.Answer")

    def __call__(self, inputs: Any = None, context: Any = None, *, question: Any = None, **options: Any) -> Any:
        """See the class; `question` and `context` may be lists, of one length, or of questions about one context.

        Raises TypeError for what is no question with its context, ValueError where either is empty.
        """
        asked = self.asked(options)
        pairs = self._pairs(question if inputs is None else inputs, context)
        contexts = [Context(text, *raw_offsets(self.tokenizer, text)) for _, text in pairs]
        questions = self.tokenizer.encode_batch([question for question, _ in pairs])
        parts = list[tuple[int, slice]]()
        for i, (ids, text) in enumerate(zip(questions, contexts, strict=True)):
            parts += [(i, window) for window in self._windows(i, ids, len(text.ids), asked)]
        rows = [self.row(i, questions[i], contexts[i].ids[window]) for i, window in parts]
        run = lambda batch, _: forward.extra(self.model, self.params, batch, "answer")
        numbers = forward.in_batches(self.model, rows, asked.batch_size, run)
        found: list[list[tuple[slice, Row, np.ndarray]]] = [[] for _ in pairs]
        for (i, window), row, each in zip(parts, rows, numbers, strict=True):
            found[i].append((window, row, each[: len(row[0])]))
        results = [self._answers(*some, asked) for some in zip(questions, contexts, found, strict=True)]
        return results[0] if len(results) == 1 else results

    def _pairs(self, question: Any, context: Any) -> list[tuple[str, str]]:
        if context is None:
            given: list[Any] = listed(question, Mapping)[0]
            wrong = [
                each for each in given if not isinstance(each, Mapping) or each.keys() != {"question", "context"}
            ]
            if wrong:
                raise TypeError(
                    f"{self.task}: expected question= and context=, or {{'question': ..., 'context': ...}}, "
                    f"found {wrong[0]!r:.60}"
                )
            pairs = [(each["question"], each["context"]) for each in given]
        else:
            questions, contexts = listed(question, str)[0], listed(context, str)[0]
            contexts = contexts * len(questions) if isinstance(context, str) else contexts
            if len(questions) != len(contexts):
                raise ValueError(f"{self.task}: there are {len(questions)} questions and {len(contexts)} contexts")
            pairs = list(zip(questions, contexts, strict=True))
        for i, pair in enumerate(pairs):
            for name, text in zip(("question", "context"), pair, strict=True):
                if not isinstance(text, str):
                    raise TypeError(f"{self.task}: {name} {i}: expected a text, found {type(text).__name__}")
                if not text:
                    raise ValueError(f"{self.task}: {name} {i} is empty")
        return pairs

    def _windows(self, i: int, question: list[int], count: int, asked: AnswerOptions) -> list[slice]:
        """The parts of a context of `count` tokens that are read one by one."""
        most = self.longest
        length = asked.max_seq_len or min(USUAL, most or USUAL)
        if most is not None and length > most:
            raise ValueError(f"{self.task}: max_seq_len is {length}, the model reads {most} tokens at most")
        size = length - len(self.template(question, [])[0])
        overlap = min(length // 2, 128) if asked.doc_stride is None else asked.doc_stride
        if overlap >= size:
            raise ValueError(
                f"{self.task}: question {i} leaves {size} of a window's {length} tokens for the context, and windows "
                f"share {overlap} of them: give a shorter question, a smaller doc_stride or a larger max_seq_len"
            )
        return shared.slices(count, size, size - overlap)

    def _answers(
        self,
        question: list[int],
        context: Context,
        windows: Sequence[tuple[slice, Row, np.ndarray]],
        asked: AnswerOptions,
    ) -> Any:
        nothing, found = np.inf, dict[str, dict[str, Any]]()
        begin = shared.begin(self.template, question)
        for window, (ids, _), numbers in windows:
            place = np.arange(len(ids))
            text = (place >= begin) & (place < begin + window.stop - window.start)
            may = text | (np.array(ids) == self.tokenizer.specials.get("cls"))
            first, last = (softmax(np.where(may, each, OUTSIDE)) for each in numbers.T)
            nothing = min(nothing, float(first[0] * last[0]))
            first[0] = last[0] = 0
            most = 2 * asked.top_k + 10 if asked.align_to_words else asked.top_k  # words make some of them one
            for i, j, score in best(first, last, asked.max_answer_len, most):
                if not (text[i] and text[j]):
                    continue
                at = window.start - begin
                start, end = context.span(i + at, j + at, window, asked.align_to_words)
                answer = context.text[start:end]
                new = {"score": 0.0, "start": start, "end": end, "answer": answer}
                found.setdefault(answer.lower(), new)["score"] += score
        answers = list(found.values())
        if asked.handle_impossible_answer:
            answers.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
        order = [answers[i] for i in ordered([each["score"] for each in answers])][: asked.top_k]
        return order[0] if len(order) == 1 else order


def best(first: np.ndarray, last: np.ndarray, longest: int, count: int) -> Iterator[tuple[int, int, float]]:
    """(first token, last token, score) of the `count` likeliest answers of at most so many tokens.

    first, last float32 [T]: how probable it is that an answer begins, or ends, with each token.
    """
    scores = np.tril(np.triu(np.outer(first, last)), longest - 1)
    for place in np.argsort(-scores, axis=None, kind="stable")[:count]:
        i, j = divmod(int(place), len(last))
        if scores[i, j] > 0:
            yield i, j, float(scores[i, j])
