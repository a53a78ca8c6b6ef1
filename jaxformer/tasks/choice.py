"""Choose the right continuation of a text. B batch, N choices, T length."""

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
from jaxformer.nn.model import Model, Output
from jaxformer.objective import computed, decoder_start, means, needs, run, too_long, unembedded, variables, with_aux
from jaxformer.tasks import labels as shared
from jaxformer.text.index import stack
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows, padded
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn


@dataclass(frozen=True)
class Choice:
    """Multiple choice by a language model: it ranks the choices by their log-probability behind the question.

    A decoder reads the question and writes the choice behind it; with an encoder, that reads the question. It is
    trained by the softmax over the choices' log-probabilities, each summed over its tokens. A row holds a question
    with each of its choices, [N, T].
    """

    question: str = "question"
    """Field of a record with the question."""
    choices: str = "choices"
    """Field with the list of choices."""
    answer: str = "answer"
    """Field with the right one: its number, from 0, or its text."""
    options: int = 4
    """Choices of a question at most: a row has room for so many."""
    between: str = " "
    """What stands between the question and a choice."""
    encoder: bool = False
    """The question is read by an encoder, a choice written by its decoder (Sanh et al., 2022, section 5)."""

    head: ClassVar[None] = None
    specials: ClassVar[tuple[str, ...]] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Question, choices and answer."""
        return self.question, self.choices, self.answer

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a head over the vocabulary, and the stacks that `encoder` says, with positions for a row."""
        found = [] if self.options > 1 else [f"task.options is {self.options}: a choice is between at least two"]
        found += needs(model, encoder=self.encoder, decoder=True)
        return found + too_long(model, encoder=length, decoder=length)

    def fields(self, vocab: int) -> dict[str, int]:
        """What the decoder writes for each choice, on end, each of so many tokens, of which so many are the
        question's; what the encoder reads, if there is one; and the number of the answer.
        """
        sizes = {"sizes": shared.NUMBERS, "given": shared.NUMBERS}
        return {"question": vocab, "choices": vocab, **sizes, "answer": self.options}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A question, each of its choices, and the number of the right one."""
        assert tokenizer is not None
        yield self._texts(document, tokenizer) | {"answer": np.array([self._answer(document)], np.int32)}

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """A question a row. What is too long loses its beginning; a choice behind an encoder, its end."""

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            beside = {"labels": examples[0]["answer"][0].astype(np.int32), "weights": np.ones((), np.float32)}
            return self._row(examples[0], length) | {name: np.asarray(value) for name, value in beside.items()}

        return BinRows(store, seed, make)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key); dropout acts where `train`.

        batch: tokens, targets int [B, N, T], mask bool [B, N, T], scored float [B, N, T] (1 where the target is of
        the choice), labels int [B], weights [B].
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            held = variables(params, frozen)
            sums, _, out = _log_probs(model, held, key, train, batch)
            loss, metrics = losses.classification(sums, batch["labels"], batch["weights"])
            return with_aux(loss, out, train), metrics

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats a question, and accuracy by summed log-probabilities."""
        return means(sums)

    def predict(
        self, model: Model, held: Any, tokenizer: Tokenizer, documents: Sequence[Document], rows: int, length: int
    ) -> list[int]:
        """For each document the choice with the highest log-probability a token (Brown et al., 2020, section 2.4)."""
        made = [self._row(self._texts(document, tokenizer), length) for document in documents]

        def averaged(held: Any, batch: dict[str, Array]) -> Array:
            sums, sizes, _ = _log_probs(model, held, jax.random.key(0), False, batch)
            return jnp.argmax(sums / jnp.maximum(sizes, 1), axis=-1)

        return [int(best) for best in computed(averaged, held, made, rows)]

    def score(self, predictions: list[int], documents: Sequence[Document]) -> dict[str, float]:
        """accuracy_normalized: of log-probabilities a token."""
        return {"accuracy_normalized": scores.accuracy(predictions, [self._answer(each) for each in documents])}

    def _listed(self, document: Document) -> tuple[str, ...]:
        assert document.record is not None
        value, where = document.record[self.choices], f"{document.source}: {self.choices}"
        choices = tuple(str(each) for each in value) if isinstance(value, list) else ()
        if not 1 < len(choices) <= self.options or not all(choices):
            raise ValueError(f"{where}: expected a list of 2 to {self.options} texts (task.options), found {value!r}")
        return choices

    def _answer(self, document: Document) -> int:
        assert document.record is not None
        where = f"{document.source}: {self.answer}"
        return shared.number(document.record[self.answer], self._listed(document), where)

    def _texts(self, document: Document, tokenizer: Tokenizer) -> Example:
        question, choices = shared.text_of(document, self.question), self._listed(document)
        if self.encoder:
            read = tokenizer.template(tokenizer.encode(question))[0]
            ends = [] if tokenizer.eos is None else [tokenizer.eos]
            written, given = [[*tokenizer.encode(choice), *ends] for choice in choices], [0] * len(choices)
        else:
            begins = tokenizer.template([-1])[0]
            begins = begins[: begins.index(-1)]
            alone = begins + tokenizer.encode(question)
            written = [begins + tokenizer.encode(question + self.between + choice) for choice in choices]
            read, given = [], [max(1, _common(alone, ids)) for ids in written]
        arrays = {"question": read, "choices": [id for ids in written for id in ids]}
        sizes = {"sizes": [len(ids) for ids in written], "given": given}
        return {name: np.array(values, np.int64) for name, values in (arrays | sizes).items()}

    def _row(self, example: Example, length: int) -> Row:
        """The choices as rows [N, T] of one row; those that a question lacks are empty."""
        ends = np.cumsum(example["sizes"], dtype=np.int64)
        parts = [example["choices"][end - size : end] for end, size in zip(ends, example["sizes"], strict=True)]
        made = [self._part(example["question"], *part, length) for part in zip(parts, example["given"], strict=True)]
        blank = {name: np.zeros_like(values) for name, values in made[0].items()}
        return stack(made + [blank] * (self.options - len(made)))

    def _part(self, question: np.ndarray, written: np.ndarray, given: int, length: int) -> Row:
        """int32 tokens (what is read first) and targets, bool mask, float32 scored [T]."""
        if self.encoder:
            read, targets = question[-length:], written[:length]
        else:
            lost = max(0, len(written) - 1 - length)
            read, targets = written[lost:-1], written[lost + 1 :]
            given = max(0, int(given) - 1 - lost)
        at = np.arange(length)
        scored = ((at >= given) & (at < len(targets))).astype(np.float32)
        return {
            "tokens": padded(read, length),
            "mask": at < len(read),
            "targets": padded(targets, length),
            "scored": scored,
        }


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    size = min(len(one), len(other))
    return next((i for i in range(size) if one[i] != other[i]), size)


def _log_probs(
    model: Model, held: Mapping[str, Any], key: Array, train: bool, batch: Mapping[str, Array]
) -> tuple[Array, Array, Output]:
    """(the log-probability of each choice [B, N], as good as none where there is no such choice; its tokens)."""
    flat = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "mask", "targets", "scored")}
    given = {name: flat[name] for name in ("tokens", "mask")}
    if model.config.encoder is not None:
        start = decoder_start(model)
        given["decoder_tokens"] = jnp.pad(flat["targets"][:, :-1], ((0, 0), (1, 0)), constant_values=start)
    out = run(model, held, key, train, **given)
    found = losses.token_log_probs(*unembedded(model, held, out), flat["targets"])
    shape = batch["tokens"].shape[:2]
    sums, sizes = ((x * flat["scored"]).sum(-1).reshape(shape) for x in (found, jnp.ones_like(found)))
    return jnp.where(sizes > 0, sums, MASKED), sizes, out
