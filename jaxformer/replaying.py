"""One step of a run again, to look into it: what it computed, from which rows, with which gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer import codec, distributed, sharding, tree
from jaxformer.align.learner import Learner
from jaxformer.align.rollout import Rollout
from jaxformer.evaluating import recorded
from jaxformer.experiment import CHANGEABLE, Experiment
from jaxformer.feed import check_rows, make_feed
from jaxformer.fitting import Fitter, reopened
from jaxformer.text.corpus import open_corpora
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train import rollback
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.evaluate import means
from jaxformer.train.loop import Values
from jaxformer.train.metrics import read_metrics
from jaxformer.train.progress import TrainingProgress
from jaxformer.train.state import TrainState
from jaxformer.train.step import make_gradients

TEXTS = {
    "tokens": ("segments", "mask"),
    "targets": ("decoder_segments",),
    "decoder_tokens": ("decoder_segments", "decoder_mask"),
}
"""What of a batch may be read as text, and what says where it has tokens."""


@dataclass(frozen=True)
class Replay:
    """A step that was taken again."""

    step: int
    since: int
    """The checkpoint that it was reached from; 0: the beginning."""
    values: Values
    """What the step computes now."""
    logged: Values
    """What stands in metrics.jsonl; nothing where the run has not come so far."""
    norms: dict[str, float]
    """Norm of each parameter's gradient, before clipping, the largest first; none where a step learns from its own
    answers, by several updates."""
    rows: list[dict[str, str]]
    """What each row of the batch says, by field; of a step that learns from its own answers what it drew."""

    @property
    def differing(self) -> list[str]:
        """Names of the values that are not the logged ones to the last bit."""
        same = lambda a, b: a == b or (a != a and b != b)
        return [name for name in self.logged if not same(self.logged[name], self.values.get(name))]


def replay(experiment: Experiment, step: int, *, progress: bool = True) -> Replay:
    """Takes `step` of the experiment's run again, and the steps between it and the newest checkpoint before it.

    What may change when a run is continued is taken from the run's own record, but for the mesh. Nothing is
    written into the run's folder. In many processes it is to be called in all of them, with the same arguments.

    Raises FileNotFoundError where there is no such run, ValueError where it is another experiment's, has no such
    step, or its data changed.
    """
    first = distributed.from_first(lambda: [step, codec.to_json(experiment)])
    e = distributed.at_once(lambda: _recorded(experiment, step, first))
    mesh = sharding.make_mesh(e.mesh)
    say = TrainingProgress(step, quiet=not progress or not distributed.is_first())
    check_rows(e, mesh)
    start = reopened(e, e.path, mesh)
    corpora = distributed.at_once(lambda: open_corpora(None, e.data, e.task.columns))
    feed = make_feed(e, corpora, start, say)
    with jax.set_mesh(mesh), distributed.all_alive():
        fitter = Fitter(e, e.path, start, feed, say, None)
        fitter.passed_over = distributed.from_first(lambda: rollback.read(read_metrics(e.path)))
        state = _before(fitter, step)
        since = int(state.step)
        say.notice(f"replaying step {step} of {e.path}, from {f'checkpoint {since}' if since else 'the beginning'}")
        with say.training(since), fitter.batches(since) as batches:
            for _ in range(since + 1, step):
                state, _ = fitter.step(state, start.frozen, next(batches))
            batch = next(batches)
            # Before the step, which gives the state's buffers away
            if isinstance(fitter.step, Learner):
                norms, rows = {}, _answers(fitter.step.rolled(state.params, start.frozen, batch, step - 1))
            else:
                norms = _norms(e, fitter, state, batch)
                number = rollback.batch_of(step, fitter.passed_over)
                rows = _texts(feed.batches.batch(number), start.tokenizer)
            _, metrics = fitter.step(state, start.frozen, batch)
        values = means(metrics) | fitter.known(step)
    return Replay(step, since, values, _logged(e.path, step), norms, rows)


def _recorded(experiment: Experiment, step: int, first: list[Any]) -> Experiment:
    """The experiment as its run records it; `first`: what process 0 was given, the step and the experiment.

    Raises ValueError where the run is another one's, has no such step, or cannot run here.
    """
    if [step, codec.to_json(experiment)] != first:
        raise ValueError(f"this process was given another step or experiment than process 0: --replay {first[0]}")
    found = recorded(experiment.path)
    old, new = (tree.flatten(codec.to_json(e)) for e in (found, experiment))
    fixed = [path for path in old | new if not any(tree.matches(pattern, path) for pattern in CHANGEABLE)]
    wrong = [path for path in fixed if old.get(path) != new.get(path)]
    if wrong:
        lines = [f"  - {path.replace('/', '.')}: {old.get(path)} -> {new.get(path)}" for path in sorted(wrong)]
        raise ValueError(f"{experiment.path} belongs to another experiment:\n" + "\n".join(lines))
    if not 1 <= step <= found.steps:
        raise ValueError(f"--replay {step}: {experiment.path} has the steps 1 to {found.steps}")
    return replace(found, name=experiment.name, folder=experiment.folder, mesh=experiment.mesh).validate()


def _before(fitter: Fitter, step: int) -> TrainState:
    """The newest saved state that `step` was still to come in, or the first of all."""
    folder = fitter.folder / "checkpoints"
    if folder.is_dir():
        with Checkpoints(folder, read_only=True) as checkpoints:
            if saved := [found for found in distributed.from_first(checkpoints.steps) if found < step]:
                state, data, _ = checkpoints.restore(fitter.abstract(), saved[-1])
                fitter.feed.batches.check(data)
                return state
    return fitter.fresh()


def _norms(e: Experiment, fitter: Fitter, state: TrainState, batch: Any) -> dict[str, float]:
    differentiate = make_gradients(e.task.loss(fitter.model, train=True), seed=e.seed, accumulate=e.accumulate)

    def norms(state: TrainState, frozen: Any, batch: Any) -> dict[str, Array]:
        flat = tree.flatten(differentiate(state, frozen, batch)[0])
        return {path: jnp.sqrt(jnp.square(leaf.astype(jnp.float32)).sum()) for path, leaf in flat.items()}

    jitted = jax.jit(norms, out_shardings=NamedSharding(fitter.mesh, PartitionSpec()))
    computed = distributed.begun_together(jitted)(state, fitter.start.frozen, batch)
    found = {path: float(norm) for path, norm in computed.items()}
    # Those that are not numbers come first: they are what one looks for.
    return dict(sorted(found.items(), key=lambda item: -np.nan_to_num(item[1], nan=np.inf)))


def _answers(rollout: Rollout) -> list[dict[str, str]]:
    asked = [prompt.asked for prompt in rollout.prompts for _ in range(rollout.group)]
    rewards = rollout.rows["rewards"].tolist()
    return [
        {"prompt": str(prompt), "answer": text, "reward": f"{worth:.4f}"}
        for prompt, text, worth in zip(asked, rollout.texts, rewards, strict=True)
    ]


def _logged(folder: Path, step: int) -> Values:
    lines = (line["values"] for line in read_metrics(folder) if line["step"] == step)
    return next((values for values in lines if "loss" in values), {})


def _texts(batch: Mapping[str, np.ndarray], tokenizer: Tokenizer | None) -> list[dict[str, str]]:
    write = (lambda ids: " ".join(map(str, ids))) if tokenizer is None else tokenizer.decode
    found: list[dict[str, str]] = [{} for _ in next(iter(batch.values()))]
    for name in (name for name in TEXTS if name in batch):
        there = next((batch[mask] > 0 for mask in TEXTS[name] if mask in batch), np.ones(batch[name].shape, bool))
        for row, ids, kept in zip(found, batch[name], there, strict=True):
            row[name] = write(ids[kept].tolist())
    return found
