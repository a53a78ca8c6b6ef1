"""What a run learns from and is judged by: documents made into examples, these into rows and batches."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxformer import codec, distributed, sharding
from jaxformer.align.online import Online
from jaxformer.experiment import Experiment
from jaxformer.starting import Start
from jaxformer.text import mixture, prepare
from jaxformer.text.compressors import bits_per_byte
from jaxformer.text.corpus import Corpus, Documents
from jaxformer.text.files import read_json, write_json
from jaxformer.text.index import Batches
from jaxformer.text.prepare import Store
from jaxformer.text.records import Document
from jaxformer.text.rows import MixedRows
from jaxformer.train.loop import Values
from jaxformer.train.progress import TrainingProgress


def check_rows(experiment: Experiment, mesh: Mesh) -> None:
    """Raises ValueError where devices cannot share rows, or the tokens of a row, evenly."""
    sharing, task = math.prod(mesh.shape[axis] for axis in sharding.BATCH), experiment.task
    rows = experiment.rows * task.group // task.minibatches if isinstance(task, Online) else experiment.rows
    wrong = []
    if rows // experiment.accumulate % sharing:
        wrong.append(
            f"rows {rows} in {experiment.accumulate} microbatches cannot be shared evenly by the {sharing}"
            f" devices of mesh {' x '.join(sharding.BATCH)}: change rows, accumulate or the mesh"
        )
    if experiment.length % (parts := mesh.shape["sequence"]):
        wrong.append(
            f"length {experiment.length} cannot be shared evenly by the {parts} devices of mesh sequence: make it a"
            " multiple of them, or change the mesh"
        )
    if wrong:
        raise ValueError("\n".join(wrong))


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents and their examples, of one part of a mixture or of all there is."""

    name: str
    """"" where there are no parts."""
    documents: Documents
    store: Store

    @property
    def size(self) -> int:
        """Bytes of their text, in UTF-8."""
        return int(self.store.sizes.sum())


@dataclass(frozen=True)
class Feed:
    """Batches to train on, and sets of examples to evaluate on."""

    batches: Batches
    held_out: list[HeldOut]


def make_feed(experiment: Experiment, corpora: Sequence[Corpus], start: Start, say: TrainingProgress) -> Feed:
    """The corpora as the task's examples, each prepared once for all runs of the same text, tokenizer and task."""
    e = experiment
    folder = e.path.parent / ".prepared"
    stores = [_store(e, corpus.training, start, say, folder) for corpus in corpora]
    parts = [e.task.rows(store, start.tokenizer, e.length, e.seed) for store in stores]
    rows = parts[0]
    if len(parts) > 1:
        weights = [part.weight for part in e.data.mixture]
        given = None if None in weights else weights
        shares = mixture.shares([len(store) for store in stores], given, e.data.temperature, e.data.limit)
        rows = MixedRows(parts, shares, e.seed)
    rounds = e.task.rounds if isinstance(e.task, Online) else 1
    return Feed(Batches(rows, e.rows * rounds), make_held_out(e, corpora, start, say, folder))


def make_held_out(
    experiment: Experiment, corpora: Sequence[Corpus], start: Start, say: TrainingProgress, folder: Path | None
) -> list[HeldOut]:
    """What is held out of each corpus, as the task's examples, prepared in `folder`; None: in memory."""
    return [
        HeldOut(corpus.name, corpus.held_out, _store(experiment, corpus.held_out, start, say, folder))
        for corpus in corpora
        if len(corpus.held_out)
    ]


def compressors(corpora: list[Corpus], folder: Path, say: TrainingProgress) -> Values:
    """Bits per byte of what is held out, by compressors of texts; computed once in a run's folder."""
    file = folder / "compressors.json"
    if not file.exists():
        with say.busy("compressing the held-out documents with zlib and lzma"):
            parts = ([each.held_out for each in corpora], [each.training for each in corpora])
            texts = ([text for part in side for document in part for text in document.texts()] for side in parts)
            write_json(file, bits_per_byte(*texts))
    return read_json(file)


def _store(e: Experiment, documents: Documents, start: Start, say: TrainingProgress, folder: Path | None) -> Store:
    task, tokenizer = e.task, start.tokenizer

    def examples(document: Document) -> Iterable[dict[str, Any]]:
        return task.examples(document, tokenizer)

    # Messages are written by the chat template, of which the tokenizer's fingerprint says nothing.
    template = "" if tokenizer is None else tokenizer.chat_template or ""
    fingerprint = f"{codec.to_json(task)} {tokenizer and tokenizer.fingerprint()}{template}"
    with say.preparing(len(documents)) as progress:
        fields = task.fields(start.model.config.vocab)
        made = lambda: prepare.prepare(documents, examples, fields, fingerprint, folder, progress=progress)
        return distributed.in_turn(made)
