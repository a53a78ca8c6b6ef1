"""A batch of an experiment by its shapes: what its task makes of a few documents."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxformer.align.online import Online
from jaxformer.config import ModelConfig
from jaxformer.experiment import Experiment
from jaxformer.text import prepare
from jaxformer.text.corpus import open_documents
from jaxformer.text.prepare import Store
from jaxformer.text.records import Document
from jaxformer.text.rows import Row
from jaxformer.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

WORDS = "one two three four five six seven eight nine ten. Eleven, twelve. "
DOCUMENTS = 8


@dataclass(frozen=True)
class Sizes:
    """How much of a batch the model reads, as `flops.step_flops` takes it."""

    rows: int
    length: int
    targets: int | None
    """Tokens that a decoder behind an encoder reads."""
    predicted: int | None
    """Places of a row that the head sees; None: all."""


def stand_in(experiment: Experiment) -> Tokenizer:
    """A small tokenizer with the task's special tokens: shapes hang on no vocabulary."""
    specials = tuple(dict.fromkeys((*experiment.tokenizer.specials, *experiment.task.specials)))
    config = TokenizerConfig(experiment.tokenizer.kind, 512 + len(specials), specials=specials)
    return train_tokenizer(config, [WORDS * 10])


def row(experiment: Experiment, model: ModelConfig, tokenizer: Tokenizer | None) -> Row:
    """A row as the task makes it. Documents are made up, but for records: of those the first are read.

    Raises FileNotFoundError where there are no such records, ValueError for a task that draws its own answers.
    """
    e = experiment
    if isinstance(e.task, Online):
        raise ValueError(f"task {type(e.task).__name__} draws its own answers: such a step cannot be planned")
    tokenizer = stand_in(e) if tokenizer is None else tokenizer
    fields, made = e.task.fields(model.vocab), []
    for document in _documents(e):
        examples = [prepare.checked(example, fields, document) for example in e.task.examples(document, tokenizer)]
        made.append((examples, document.size))
    shard, sizes = prepare.shard(made, fields)
    return e.task.rows(Store([shard], sizes, "planned"), tokenizer, e.length, e.seed).row(0)


def batch(row: Row, rows: int, home: jax.sharding.Sharding) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and places of a batch of such rows."""
    return {
        name: jax.ShapeDtypeStruct((rows, *np.shape(values)), values.dtype, sharding=home)
        for name, values in row.items()
    }


def sizes(batch: Mapping[str, Any], model: ModelConfig) -> Sizes:
    """What of it the model reads."""
    *rows, length = batch["tokens"].shape
    shapes = {name: leaf.shape[-1] for name, leaf in batch.items() if len(leaf.shape) > 1}
    # Rows that hold one token more than they have places read all but the last and predict all but the first.
    length -= shapes.get("weights") == length - 1
    targets = None
    if model.encoder is not None and model.decoder is not None:
        targets = shapes.get("targets", shapes.get("decoder_tokens", length))
    return Sizes(math.prod(rows), length, targets, shapes.get("places"))


def _documents(e: Experiment) -> Iterable[Document]:
    if not e.task.columns:
        # A few more words than a row has tokens, so that whatever is made of them fills one
        text = WORDS * (2 + e.length // 8)
        return [Document(f"made up {i}", text) for i in range(DOCUMENTS)]
    data = replace(e.data, mixture=(), files=e.data.mixture[0].files) if e.data.mixture else e.data
    return itertools.islice(open_documents(data, e.task.columns), DOCUMENTS)
