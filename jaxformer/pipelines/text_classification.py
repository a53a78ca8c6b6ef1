"""Text, or a pair of texts, to its class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.pipelines import forward
from jaxformer.pipelines.base import (
    Options,
    Pipeline,
    label_names,
    lacks_head,
    least,
    listed,
    one_of,
    ordered,
    outputs,
    softmax,
)
from jaxformer.tasks.classify import PROBLEMS

FUNCTIONS = ("softmax", "sigmoid", "none", None)


@dataclass(frozen=True)
class ClassificationOptions(Options):
    """Options of text-classification."""

    top_k: int | Literal["best"] | None = "best"
    """The likeliest so many classes of each text, in a list; None: all. "best": the likeliest alone, in none."""
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """What makes scores of the model's numbers; None: as the kind of the problem asks, see `score`."""
    truncation: bool = False
    """Texts that are too long lose their end, of a pair the longer one first; else they are an error."""

    def problems(self) -> list[str]:
        """What is wrong with them."""
        found = [] if self.top_k in (None, "best") else least("top_k", self.top_k, 1)
        return super().problems() + found + one_of("function_to_apply", self.function_to_apply, FUNCTIONS)


class TextClassification(Pipeline):
    """pipeline("text-classification", source)("A text") gives [{"label": "POSITIVE", "score": 0.99}].

    Reads a text, a mapping {"text": ..., "text_pair": ...}, or a list of them. A list gives a dictionary for each,
    and a list of them with `top_k`.
    """

    task = "text-classification"
    takes = ClassificationOptions
    options: ClassificationOptions

    def lacks(self, config: ModelConfig) -> list[str]:
        """See Pipeline."""
        return lacks_head(config, "classify", "classify:N", "jaxformer.tasks.Classify")

    def __call__(self, inputs: Any, **options: Any) -> list[Any] | dict[str, Any]:
        """See the class."""
        asked, (given, alone) = self.asked(options), listed(inputs, (str, Mapping))
        pairs = [self._pair(item, i) for i, item in enumerate(given)]
        rows = self.rows([text for text, _ in pairs], [other for _, other in pairs], cut=asked.truncation)
        run = lambda batch, _: forward.extra(self.model, self.params, batch, "classify")
        numbers = forward.in_batches(self.model, rows, asked.batch_size, run)
        results = [self._result(each, asked) for each in numbers]
        if not alone:
            return results
        # As users know it: a text alone comes in a list, and in one more where top_k was not given with the call.
        return [results[0]] if isinstance(inputs, str) and "top_k" not in options else results[0]

    def score(self, numbers: np.ndarray, function: str | None = None) -> np.ndarray:
        """Scores float32 [N] of the model's numbers [N].

        Of one class of several their softmax; where each may hold for itself, or there is one alone, its sigmoid; of
        a regression the numbers as they are.
        """
        problem = self.model.card.config.get("problem_type")
        if function is None:
            apart = problem == PROBLEMS["multi"] or len(numbers) == 1
            function = "none" if problem == PROBLEMS["regression"] else "sigmoid" if apart else "softmax"
        if function == "none":
            return numbers
        return softmax(numbers) if function == "softmax" else 1 / (1 + np.exp(-numbers))

    def _result(self, numbers: np.ndarray, asked: ClassificationOptions) -> Any:
        scores, names = self.score(numbers, asked.function_to_apply), label_names(self.model, len(numbers))
        found = [{"label": names[i], "score": float(scores[i])} for i in ordered(scores)]
        return found[0] if asked.top_k == "best" else found[: asked.top_k]

    def _pair(self, item: Any, i: int) -> tuple[str, str | None]:
        if isinstance(item, str):
            return item, None
        if isinstance(item, Mapping) and item.keys() <= {"text", "text_pair"} and isinstance(item.get("text"), str):
            other = item.get("text_pair")
            if isinstance(other, str | None):
                return item["text"], other
        raise TypeError(
            f"{self.task}: expected a text or {{'text': ..., 'text_pair': ...}}, found as input {i}: {item!r:.60}"
        )


@dataclass(frozen=True)
class ZeroShotOptions(Options):
    """Options of zero-shot-classification."""

    candidate_labels: str | tuple[str, ...] | list[str] = ()
    """The classes: a list, or a text in which commas stand between them."""
    hypothesis_template: str = "This example is {}."
    """What is said of a text; {} is the class."""
    multi_label: bool = False
    """Each class holds or not for itself; else the scores of a text add up to 1."""

    @property
    def labels(self) -> list[str]:
        """The classes."""
        given = self.candidate_labels
        return [each.strip() for each in given.split(",") if each.strip()] if isinstance(given, str) else list(given)

    def problems(self) -> list[str]:
        """What is wrong with them."""
        found = super().problems()
        if not all(isinstance(label, str) for label in self.labels):
            found.append(f"candidate_labels are {self.candidate_labels!r}: give texts")
        try:
            stands = "{}" in self.hypothesis_template and self.hypothesis_template.format("") is not None
        except (IndexError, KeyError, ValueError):
            stands = False
        if not stands:
            found.append(
                f"hypothesis_template is {self.hypothesis_template!r}: write {{}} where the class is to stand"
            )
        return found


class ZeroShotClassification(Pipeline):
    """pipeline("zero-shot-classification", source)("A text", ["sport", "politics"]) gives {"sequence": "A text",
    "labels": ["politics", "sport"], "scores": [0.9, 0.1]}, the likeliest first.

    A model that was trained to say whether a text entails another (Yin et al., 2019, section 4.2) reads the text and
    the hypothesis. A text that is too long loses its end.
    """

    task = "zero-shot-classification"
    takes = ZeroShotOptions
    options: ZeroShotOptions
    shorter: ClassVar[str] = "the hypothesis alone leaves no room; give shorter labels"

    def lacks(self, config: ModelConfig) -> list[str]:
        """See Pipeline."""
        wrong = lacks_head(config, "classify", "classify:3", "jaxformer.tasks.Classify on pairs of texts")
        if wrong or self.entailment is not None:
            return wrong
        names = ", ".join(label_names(self.model, outputs(self.model, "classify")))
        return [f"none of its classes is called entailment ({names}): take one that was trained on such pairs"]

    @property
    def entailment(self) -> int | None:
        """The number of the class that says so."""
        names = label_names(self.model, outputs(self.model, "classify"))
        return next((i for i, name in enumerate(names) if name.lower().startswith("entail")), None)

    def __call__(self, inputs: Any, candidate_labels: Any = None, **options: Any) -> list[Any] | dict[str, Any]:
        """See the class. Raises ValueError for an empty text, or where there is no class."""
        asked = self.asked(options | ({} if candidate_labels is None else {"candidate_labels": candidate_labels}))
        texts, alone = self.texts(inputs)
        labels = asked.labels
        if not labels:
            raise ValueError(f"{self.task}: there is no class: give candidate_labels")
        if "" in texts:
            raise ValueError(f"{self.task}: text {texts.index('')} is empty")
        said = self.tokenizer.encode_batch([asked.hypothesis_template.format(label) for label in labels])
        rows = [
            self.row(i, self._cut(text, other), other)
            for i, text in enumerate(self.tokenizer.encode_batch(texts))
            for other in said
        ]
        run = lambda batch, _: forward.extra(self.model, self.params, batch, "classify")
        numbers = forward.in_batches(self.model, rows, asked.batch_size, run)
        size = len(labels)
        each = [np.stack(numbers[i * size : (i + 1) * size]) for i in range(len(texts))]
        found = [self._result(text, labels, some, asked.multi_label) for text, some in zip(texts, each, strict=True)]
        return found[0] if alone else found

    def _cut(self, text: list[int], other: list[int]) -> list[int]:
        """What there is room for of a text beside its hypothesis."""
        if self.longest is None:
            return text
        return text[: max(self.longest - len(self.template([], other)[0]), 0)]

    def _result(self, text: str, labels: list[str], numbers: np.ndarray, multi_label: bool) -> dict[str, Any]:
        entailment = self.entailment
        assert entailment is not None  # see lacks
        if multi_label or len(labels) == 1:
            against = -1 if entailment == 0 else 0
            scores = softmax(numbers[:, [against, entailment]])[:, 1]
        else:
            scores = softmax(numbers[:, entailment])
        order = scores.argsort()[::-1].tolist()
        return {"sequence": text, "labels": [labels[i] for i in order], "scores": scores[order].tolist()}
