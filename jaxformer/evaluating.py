"""What a task says of its model on held-out documents: losses on all rows, and scores of predictions."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer import codec, distributed, sharding
from jaxformer.align.online import Online
from jaxformer.align.rewards import Judges
from jaxformer.align.rollout import Roller
from jaxformer.experiment import Experiment
from jaxformer.feed import HeldOut
from jaxformer.objective import Predicting
from jaxformer.starting import Start
from jaxformer.stepping import compiler_options
from jaxformer.text.corpus import DataConfig
from jaxformer.text.files import read_json
from jaxformer.text.index import Batch, EvaluationBatches
from jaxformer.train import evaluate
from jaxformer.train.loop import Values
from jaxformer.train.progress import TrainingProgress
from jaxformer.train.state import EVALUATION, stream_key


class Evaluator:
    """The experiment's task and model on parts of held-out documents.

    `trained` is what the optimizer moves; of several parts the values are those of all of them together, and those
    of each under its name. Raises ValueError for documents that make no rows.
    """

    def __init__(self, experiment: Experiment, start: Start, parts: Sequence[HeldOut], say: TrainingProgress) -> None:
        self.experiment, self.start, self.parts, self.say = experiment, start, parts, say
        self.roller = _roller(experiment, start)
        loss = experiment.task.loss(start.model, train=False)
        eval_step = evaluate.make_eval_step(loss, seed=experiment.seed)
        everywhere = NamedSharding(start.mesh, PartitionSpec())
        compiled: dict[str, Any] = {"out_shardings": everywhere, "compiler_options": compiler_options(experiment)}
        self.eval_step = distributed.begun_together(jax.jit(eval_step, **compiled))
        self._batches = functools.cache(self._make_batches)
        for part in parts:
            self._batches(part, None)

    def values(self, trained: Any, most: int | None = None, stride: int | None = None) -> Values:
        """The task's metrics, on `most` batches, spread evenly, or on all; {} where there are no documents.

        `stride` is as the experiment's evaluation_stride.
        """
        task, sums = self.experiment.task, [self._sums(part, trained, most, stride) for part in self.parts]
        sizes = [part.size if most is None else 0 for part in self.parts]
        if not sums:
            return {}
        values = task.metrics(evaluate.added(sums), sum(sizes))
        for part, found, size in zip(self.parts, sums, sizes, strict=True):
            values |= {f"{part.name}/{name}": v for name, v in task.metrics(found, size).items() if part.name}
        return values

    def scores(self, trained: Any) -> Values:
        """What the task says of the model's predictions for the first `predictions` documents of each part."""
        e, task, tokenizer = self.experiment, self.experiment.task, self.start.tokenizer
        scores: Values = {}
        if tokenizer is None or not isinstance(task, Predicting) or not e.predictions:
            return {}
        for part in self.parts:
            documents = list(itertools.islice(part.documents, e.predictions))
            held, before = self.start.variables(trained), f"{part.name}/" if part.name else ""
            with self.say.busy(f"predicting for {len(documents)} held-out documents"):
                found = task.predict(self.start.model, held, tokenizer, documents, e.rows, e.length)
            said = distributed.from_first(functools.partial(task.score, found, documents))
            scores |= {f"{before}{name}": value for name, value in said.items()}
        return scores

    def _sums(self, part: HeldOut, trained: Any, most: int | None, stride: int | None) -> evaluate.Sums:
        batches = self._batches(part, stride)
        numbers = range(len(batches)) if most is None else np.linspace(0, len(batches) - 1, min(most, len(batches)))
        if self.roller is not None:
            return evaluate.added(self._drawn(batches.batch(int(n)), trained) for n in numbers)
        rows, mesh = self.experiment.rows, self.start.mesh
        mine = sharding.local_rows(mesh, rows)
        made = ([batches.batch(int(n), part) for part in mine] for n in numbers)
        placed = (sharding.place_rows(parts, rows, mesh) for parts in made)
        return evaluate.evaluate(self.eval_step, trained, self.start.frozen, placed)

    def _drawn(self, batch: Batch, trained: Any) -> evaluate.Sums:
        """What an answer to each prompt is worth; the loss is what they fall short of 0."""
        task = self.experiment.task
        assert self.roller is not None
        assert isinstance(task, Online)
        real = [prompt for prompt in batch["prompt"] if prompt]
        prompts = real + real[-1:] * (len(batch["prompt"]) - len(real))
        key = stream_key(self.experiment.seed, EVALUATION, 0)
        held = self.start.variables(trained)
        found = self.roller(held, prompts, batch["weights"], 1, task.held_out_temperature, key).values()
        total, weight = found["reward"]
        return {"loss": (-total, weight)} | found

    def _make_batches(self, part: HeldOut, stride: int | None) -> EvaluationBatches:
        e, context = self.experiment, {} if stride is None else {"stride": stride}
        return EvaluationBatches(e.task.rows(part.store, self.start.tokenizer, e.length, None, **context), e.rows)


def _roller(experiment: Experiment, start: Start) -> Roller | None:
    """What draws answers, for a task that learns from them; its reward models are loaded here."""
    task, length = experiment.task, experiment.length
    if not isinstance(task, Online):
        return None
    assert start.tokenizer is not None
    judges = Judges(task.rewards, start.mesh)
    return Roller(start.model, start.tokenizer, judges, task.room(length), task.answer_length)


def recorded(folder: Path) -> Experiment:
    """The experiment of a run's folder. Where it learned from documents in memory, its data has no files.

    Raises FileNotFoundError where it is no run's folder, ValueError where this version cannot read it.
    """
    file = folder / "experiment.json"
    values = read_json(file).get("experiment")
    if values is None:
        raise FileNotFoundError(f"{file}: no such file: {folder} is no run's folder")
    try:
        if isinstance(values, dict) and isinstance(data := values.get("data"), dict) and data.get("type") == "Memory":
            values |= {"data": codec.to_json(DataConfig(files=()))}
        return codec.from_json(values, Experiment)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
