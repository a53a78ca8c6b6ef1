"""What tasks share that read a few numbers off a text: classes, a head, rows of one or two texts, predictions.

B batch, T length.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer.config import Card, ModelConfig
from jaxformer.nn.model import Model, Output
from jaxformer.tasks.common import decoder_start, run, too_long
from jaxformer.text.index import stack
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import Row, padded
from jaxformer.text.template import Template
from jaxformer.text.tokenizer import Tokenizer

NUMBERS = 1 << 32
"""Bound of a field of an example that holds sizes or places."""


# Classes


def number(value: Any, labels: tuple[str, ...], where: str) -> int:
    """The number of a class that a record names, or numbers. Raises ValueError where there is none such."""
    known = _numbers(labels)
    if isinstance(value, str) and (value in known or value.isdecimal()):
        value = known[value] if value in known else int(value)
    if not isinstance(value, int) or not 0 <= value < len(labels):
        raise ValueError(f"{where}: expected one of {', '.join(labels)}, or its number from 0, found {value!r}")
    return int(value)


@cache
def _numbers(labels: tuple[str, ...]) -> dict[str, int]:
    return {label: i for i, label in enumerate(labels)}


def named(card: Card, labels: Sequence[str], **more: Any) -> Card:
    """The card of a model whose head gives these classes, with `more` of its config.json."""
    names = {"id2label": {str(i): label for i, label in enumerate(labels)}}
    numbers = {"label2id": {label: i for i, label in enumerate(labels)}}
    return dataclasses.replace(card, config=card.config | names | numbers | more)


def real(value: Any, where: str) -> float:
    """The number that a record holds, or writes. Raises ValueError where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: expected a number, found {value!r}") from None


def label_problems(labels: tuple[str, ...]) -> list[str]:
    """What is wrong with the names of classes."""
    if not labels:
        return ["task.labels is empty: name the classes, in their order"]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    return [f"task.labels names {', '.join(twice)} more than once"] if twice else []


def head_problems(model: ModelConfig, length: int, name: str, outputs: int, of_tokens: bool) -> list[str]:
    """What is wrong with a model that must have the extra head `name`, and positions for rows of this length."""
    found = next((head for head in model.extra if head.name == name), None)
    wanted = f"ExtraHeadConfig({name!r}, {outputs}{'' if of_tokens else ', reads=...'})"
    if found is None:
        wrong = [f"model.extra has no head called {name!r}: give it {wanted}"]
    elif found.outputs != outputs or (found.reads == "tokens") != of_tokens:
        wrong = [f"model.extra: the head {name!r} has {found.outputs} outputs of {found.reads}: expected {wanted}"]
    else:
        wrong = []
    return wrong + too_long(model, encoder=length, decoder=length)


# Rows


def text_of(document: Document, column: str) -> str:
    """The text in a field of a record. Raises ValueError where there is another thing."""
    assert document.record is not None
    text = document.record[column]
    if not isinstance(text, str):
        raise ValueError(f"{document.source}: {column}: expected a text, found {text!r}")
    return text


def frame(tokenizer: Tokenizer) -> Template:
    """The special tokens around a text or a pair: those of the tokenizer's template.

    Where that has none: start, text, end, and of a pair start, text, end, text, end (Radford et al., 2018, section
    3.3), by the tokenizer's cls, or bos, and its sep, or eos.
    """
    if tokenizer.template != Template():
        return tokenizer.template
    roles = tokenizer.specials
    first, last = (
        tuple(roles[role] for role in both if role in roles)[:1] for both in (("cls", "bos"), ("sep", "eos"))
    )
    return Template(
        ((first, 0), ("A", 0), (last, 0)),
        ((first, 0), ("A", 0), (last, 0), ("B", 1), (last, 1)),
    )


def room(template: Template, pair: bool, length: int) -> int:
    """How many tokens of text a row of `length` has room for. Raises ValueError where it has none."""
    left = length - len(template([], [] if pair else None)[0])
    if left < (2 if pair else 1):
        raise ValueError(f"length is {length}: special tokens leave {left} of it for the text; make it longer")
    return left


def text_row(template: Template, length: int, first: np.ndarray, second: np.ndarray | None = None) -> Row:
    """One text, or two, in a row: int32 "tokens" and "token_types", bool "mask" [length].

    What is too long is cut at its end, of two texts the longer one first.
    """
    left = room(template, second is not None, length)
    if second is not None:
        if len(first) > len(second):
            second = second[: max(left // 2, left - len(first))]
        else:
            first = first[: max(left // 2, left - len(second))]
            second = second[: left - len(first)]
        left -= len(second)
    tokens, types = template(first[:left].tolist(), None if second is None else second.tolist())
    mask = np.arange(length) < len(tokens)
    return {"tokens": padded(tokens, length), "token_types": padded(types, length), "mask": mask}


def begin(template: Template, first: Sequence[int] | None = None) -> int:
    """Where the text stands in a row; behind `first`, where that is given, the second text of a pair."""
    mark = -1  # no token
    return (template([mark]) if first is None else template(first, [mark]))[0].index(mark)


def slices(count: int, size: int, step: int) -> list[slice]:
    """Windows of at most `size` that together hold all of `count`, each `step` behind the one before."""
    starts = range(0, max(1, count - size + step), step)
    return [slice(start, min(start + size, count)) for start in starts]


class Windows:
    """A store whose examples are cut into windows: it stands for a Store where rows are made one of each.

    counts [examples] says into how many windows, `cut(example, number)` gives one of them.
    """

    def __init__(self, store: Store, counts: np.ndarray, cut: Callable[[Example, int], Example]) -> None:
        self.store, self.cut, self.fingerprint = store, cut, store.fingerprint
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> Example:
        example = int(np.searchsorted(self.ends, i, side="right"))
        return self.cut(self.store[example], i - (int(self.ends[example - 1]) if example else 0))


# The model


def reading(model: Model, batch: Mapping[str, Array]) -> dict[str, Array]:
    """What the model is called with to read rows: tokens int [B, T], mask bool [B, T], token types if it has such.

    A decoder behind an encoder reads the same text, shifted right (Lewis et al., 2020, section 3).
    """
    given = {"tokens": batch["tokens"], "mask": batch["mask"]}
    encoder, decoder = model.config.encoder, model.config.decoder
    if encoder is not None and decoder is not None:
        shifted = jnp.pad(batch["tokens"][:, :-1], ((0, 0), (1, 0)), constant_values=decoder_start(model))
        return given | {"decoder_tokens": shifted, "decoder_mask": batch["mask"]}
    kinds = getattr(model.config, model.config.main).input.segments
    return given | ({"token_types": jnp.minimum(batch["token_types"], kinds - 1)} if kinds else {})


def read_off(
    model: Model, held: Mapping[str, Any], key: Array, train: bool, batch: Mapping[str, Array], name: str
) -> tuple[Array, Output]:
    """(what the extra head `name` says of rows: float32 [B, T, N] or [B, N], all that the model gives)."""
    out = run(model, held, key, train, **reading(model, batch))
    assert out.extra is not None  # see head_problems
    return out.extra[name], out


def computed(
    function: Callable[[Any, dict[str, Array]], Array], held: Any, rows: Sequence[Row], size: int
) -> list[np.ndarray]:
    """function(held, batch) [size, ...] of all rows, `size` of them in a batch, as one array for each."""
    compiled, found = jax.jit(function), list[np.ndarray]()
    for start in range(0, len(rows), size):
        some = [*rows[start : start + size]]
        blank = {name: np.zeros_like(values) for name, values in some[0].items()}
        out = compiled(held, stack(some + [blank] * (size - len(some))))
        found += [*np.asarray(out)[: len(some)]]
    return found
