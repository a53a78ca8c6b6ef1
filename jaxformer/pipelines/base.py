"""What pipelines share: their options, what they are given, and rows of text for a model that reads. T length."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxformer.config import LearnedConfig, ModelConfig
from jaxformer.nn.model import Model
from jaxformer.tasks import labels as shared
from jaxformer.text.template import Template
from jaxformer.text.tokenizer import Tokenizer

UNLIMITED = 1 << 20
"""From so many tokens on a tokenizer's model_max_length means that there is no limit."""
Row = tuple[list[int], list[int]]
"""Ids and token types of a text, or of a pair of texts, with its special tokens."""


@dataclass(frozen=True)
class Options:
    """What every pipeline may be told, when it is made or with each call."""

    batch_size: int = 8
    """Texts that are computed side by side at most; results do not depend on it but for rounding."""

    def problems(self) -> list[str]:
        """What is wrong with them."""
        return least("batch_size", self.batch_size, 1)


class Pipeline:
    """A model, its parameters and its tokenizer, and options that hold where a call gives no others.

    `template`: the special tokens around what the model reads; None is the tokenizer's own.
    Raises ValueError where the model cannot do the task, TypeError and ValueError for options.
    """

    task: str
    takes: ClassVar[type[Options]] = Options
    options: Any

    def __init__(
        self, model: Model, params: Any, tokenizer: Tokenizer, template: Template | None = None, **options: Any
    ) -> None:
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.template = tokenizer.template if template is None else template
        if wrong := self.lacks(model.config):
            raise ValueError(f"this model cannot do {self.task}:\n" + "\n".join(f"  - {line}" for line in wrong))
        self.options = self.takes()
        self.options = self.asked(options)

    def lacks(self, config: ModelConfig) -> list[str]:
        """What a model of this architecture would need to do the task."""
        return []

    def asked(self, options: Mapping[str, Any]) -> Any:
        """The pipeline's options with these in their place, checked."""
        known = [field.name for field in dataclasses.fields(self.takes)]
        if unknown := sorted(set(options) - set(known)):
            raise TypeError(f"{self.task} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        found = dataclasses.replace(self.options, **options)
        if wrong := found.problems():
            raise ValueError(f"{self.task}: " + "; ".join(wrong))
        return found

    def texts(self, inputs: Any) -> tuple[list[str], bool]:
        """(the texts, whether one alone was given, outside a list). Raises TypeError for anything else."""
        given, alone = listed(inputs, str)
        for i, text in enumerate(given):
            if not isinstance(text, str):
                where = "" if alone else f" as input {i}"
                raise TypeError(f"{self.task}: expected a text or a list of texts, found {_named(text)}{where}")
        return given, alone

    @property
    def longest(self) -> int | None:
        """The tokens of a row that the model, or its tokenizer's file, speaks of at most; None: no limit is known."""
        published = getattr(self.tokenizer, "published", None)
        said = published.config.get("model_max_length") if published is not None else None
        limits = [positions(self.model.config), said if isinstance(said, int) and 0 < said < UNLIMITED else None]
        return min((limit for limit in limits if limit is not None), default=None)

    def rows(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None, cut: bool = False) -> list[Row]:
        """A row of each text, or of each pair of texts; `cut` to `longest`, of two texts the longer first.

        Raises ValueError where a row is longer than the model's positions, or has no token.
        """
        first = self.tokenizer.encode_batch(texts)
        second = [None if other is None else self.tokenizer.encode(other) for other in pairs or [None] * len(texts)]
        return [self.row(i, *both, cut=cut) for i, both in enumerate(zip(first, second, strict=True))]

    def row(self, i: int, first: list[int], second: list[int] | None = None, *, cut: bool = False) -> Row:
        """As `rows`, of ids without special tokens; `i` is the text's number, for messages."""
        ids, types = self.template(first, second)
        if cut and self.longest is not None and len(ids) > self.longest:
            both = np.array(first, np.int32), None if second is None else np.array(second, np.int32)
            made = shared.text_row(self.template, self.longest, *both)
            ids, types = made["tokens"].tolist(), made["token_types"].tolist()
        if not ids:
            raise ValueError(f"{self.task}: text {i} is empty, and this tokenizer puts no special token around it")
        most = positions(self.model.config)
        if most is not None and len(ids) > most:
            raise ValueError(
                f"{self.task}: text {i} has {len(ids)} tokens, the model positions for {most}: {self.shorter}"
            )
        return ids, types

    shorter: ClassVar[str] = "give truncation=True to read its beginning alone, or a shorter text"
    """What to do about a text that is too long."""

    def __repr__(self) -> str:
        return f"<pipeline {self.task}: {self.options}>"


def listed(inputs: Any, one: type | tuple[type, ...]) -> tuple[list[Any], bool]:
    """(inputs as a list, whether it was one alone): what is neither a list nor a tuple counts as one."""
    if isinstance(inputs, one) or not isinstance(inputs, list | tuple):
        return [inputs], True
    return list(inputs), False


def least(name: str, value: Any, bound: int) -> list[str]:
    """What is wrong with a number that must be whole and not below a bound."""
    right = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= bound
    return [] if right else [f"{name} is {value!r}: give a whole number from {bound} on"]


def one_of(name: str, value: Any, known: Sequence[Any]) -> list[str]:
    """What is wrong with a value that must be among the known ones."""
    return [] if value in known else [f"{name} is {value!r}: give one of {', '.join(map(repr, known))}"]


def positions(config: ModelConfig) -> int | None:
    """The tokens that all stacks have learned positions for; None where none of them learned any."""
    stacks = [stack for stack in (config.encoder, config.decoder) if stack is not None]
    found = [stack.input.positions for stack in stacks]
    return min((each.length for each in found if isinstance(each, LearnedConfig)), default=None)


def lacks_head(config: ModelConfig, name: str, head: str, task: str) -> list[str]:
    """What to do about a model without the extra head `name`; nothing where it has it."""
    if any(extra.name == name for extra in config.extra):
        return []
    has = [extra.name for extra in config.extra] + ["lm"] * (config.head is not None)
    return [
        f"it has no head {name!r} (its heads: {', '.join(has) or 'none'}): take a model that was trained with one, "
        f"or train this one: from_pretrained(source, head={head!r}) and the task {task}"
    ]


def label_names(model: Model, count: int) -> list[str]:
    """The names of a head's classes: the card's, LABEL_0 and so on where it has none."""
    names = model.card.config.get("id2label") or {}
    return [str(names.get(str(i), names.get(i, f"LABEL_{i}"))) for i in range(count)]


def outputs(model: Model, name: str) -> int:
    """How many numbers the extra head `name` gives."""
    return next(extra.outputs for extra in model.config.extra if extra.name == name)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Of float32 [..., N] over the last axis."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def ordered(scores: Sequence[float] | np.ndarray) -> Iterator[int]:
    """Places from the highest score down; of equal ones the first."""
    return iter(np.argsort(-np.asarray(scores), kind="stable").tolist())


def _named(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"
