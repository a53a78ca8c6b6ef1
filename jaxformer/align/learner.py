"""The step of a run on policy: a rollout with the parameters as they are, and the updates that are made of it.

B answers, P prompt, A answer, U updates.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxformer import distributed
from jaxformer.align.advantage import adapted
from jaxformer.align.online import PPO, Online
from jaxformer.align.rollout import Roller, Rollout, joined
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import variables
from jaxformer.opt_state import held_number, hold_number, set_number
from jaxformer.text.pack import generator
from jaxformer.train.state import ROLLOUT, TrainState, stream_key
from jaxformer.train.step import make_step

Place = Callable[[Mapping[str, np.ndarray]], Mapping[str, Array]]
READ = ("tokens", "mask", "answers", "written", "rewards", "weights", "drawn")


def optimizer(task: Online, rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The rule, its state beside what the task moves from step to step: the weight of the divergence."""
    return optax.chain(rule, hold_number(task.beta)) if is_adaptive(task) else rule


def is_adaptive(task: Online) -> bool:
    """Whether the weight of the divergence is moved."""
    return isinstance(task, PPO) and task.target is not None


class Learner:
    """step(state, frozen, batch) -> (state, metrics), as the loop takes it; batch: `prompt`, `weights`, those of each
    round of the task behind those of the one before.

    The state counts one step for all updates. What an interrupted run had drawn since its last checkpoint is drawn
    anew, and equally: all that is random comes of the step's number. `seconds` tells by the number of a step how long
    its rollouts, its rewards and its updates took.
    """

    def __init__(
        self,
        task: Online,
        model: Model,
        roller: Roller,
        rule: optax.GradientTransformation,
        place: Place,
        *,
        seed: int,
        accumulate: int,
        **compiled: Any,
    ) -> None:
        self.task, self.model, self.roller, self.place, self.seed = task, model, roller, place, seed
        self.seconds: dict[int, dict[str, float]] = {}
        parts = task.minibatches * accumulate
        step = make_step(task.loss(model, train=True), rule, seed=seed, accumulate=accumulate)
        ready = lambda params, frozen, rows, weight: prepared(task, model, params, frozen, rows, weight, parts)
        self.prepared = distributed.begun_together(jax.jit(ready))
        learn = jax.jit(lambda *given: learned(task, step, *given), donate_argnums=0, **compiled)
        self.learned = distributed.begun_together(learn)

    def __call__(self, state: TrainState, frozen: Any, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, Metrics]:
        """See the class."""
        number = int(state.step)
        drawn = self.rolled(state.params, frozen, batch, number)
        rollout, values = self.kept(drawn, len(batch["prompt"]) // self.task.rounds), drawn.values()
        if self.task.rounds > 1:
            values["rounds"] = float(len(drawn.prompts)), float(len(rollout.prompts))
        begun = time.perf_counter()
        weight = held_number(state.opt_state) if is_adaptive(self.task) else jnp.float32(self.task.beta)
        rows = self.place({name: rollout.rows[name] for name in READ})
        rows, metrics = self.prepared(state.params, frozen, rows, weight)
        state, metrics = self.learned(state, frozen, rows, self._order(number, len(rollout.texts)), metrics)
        jax.block_until_ready(metrics)
        self.seconds[number + 1] = rollout.seconds | {"learning": time.perf_counter() - begun}
        return state, values | metrics

    def rolled(self, params: Any, frozen: Any, batch: Mapping[str, np.ndarray], number: int) -> Rollout:
        """All that a step draws: one round after the other, until enough prompts are telling or none is left."""
        held, key, task = variables(params, frozen), stream_key(self.seed, ROLLOUT, number), self.task
        found = list[Rollout]()
        rows = len(batch["prompt"]) // task.rounds
        for first in range(0, len(batch["prompt"]), rows):
            prompts, weights = (batch[name][first : first + rows] for name in ("prompt", "weights"))
            now = jax.random.fold_in(key, first) if first else key
            found.append(self.roller(held, [*prompts], weights, task.group, task.temperature, now))
            if sum(each.telling.sum() for each in found) >= rows:
                break
        return joined(found)

    def kept(self, drawn: Rollout, rows: int) -> Rollout:
        """What is learned from: of what was drawn, as it stands there, those that are telling come first."""
        return drawn.of(np.sort(np.argsort(~drawn.telling, kind="stable")[:rows]))

    def _order(self, number: int, count: int) -> np.ndarray:
        """Which answers each update is of: int [U, B / minibatches]. In each epoch all of them, dealt out one by
        one, whichever prompt they are to: what an answer is worth beside others is known by then.
        """
        task, random = self.task, generator(self.seed, number, 0)
        if task.updates == 1:
            return np.arange(count)[None]
        return np.concatenate([random.permutation(count).reshape(task.minibatches, -1) for _ in range(task.epochs)])


def prepared(
    task: Online, model: Model, params: Any, frozen: Any, rows: Mapping[str, Array], weight: Array, parts: int
) -> tuple[dict[str, Array], Metrics]:
    """A rollout's rows with all that the loss compares with, computed in so many parts; and metrics of the rollout:

    "sampler_apart", the mean difference between the sampler's log-probability of a token and the trainer's own;
    "divergence" from the beginning, in nats an answer; "surprise" -log p of a token.
    """
    cut = {name: rows[name] for name in ("tokens", "mask", "answers", "written")}
    cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), cut)
    found = jax.lax.map(lambda part: task.recollected(model, params, frozen, part), cut)
    found = jax.tree.map(lambda x: jax.lax.stop_gradient(x.reshape(-1, *x.shape[2:])), found)
    plain = found.pop("plain")
    whole = dict(rows) | found
    whole |= task.credited(whole, weight)
    there, answers = rows["written"] * rows["weights"][:, None], rows["weights"].sum()
    tokens = there.sum()
    metrics: Metrics = {
        "sampler_apart": ((jnp.abs(plain - rows["drawn"]) * there).sum(), tokens),
        "surprise": (-(plain * there).sum(), tokens),
    }
    if task.anchored:
        metrics["divergence"] = (task.divergence(whole).sum(1) * rows["weights"]).sum(), answers
    if is_adaptive(task):
        metrics["beta"] = weight, jnp.float32(1)
    return {name: x for name, x in whole.items() if name not in ("rewards", "drawn")}, metrics


def learned(
    task: Online,
    step: Callable[..., tuple[TrainState, Metrics]],
    state: TrainState,
    frozen: Any,
    rows: Mapping[str, Array],
    order: Array,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """(the state after an update for each row of `order` int [U, rows of it], the sums of their metrics beside those
    of the rollout).
    """

    def update(state: TrainState, places: Array) -> tuple[TrainState, Metrics]:
        return step(state, frozen, jax.tree.map(lambda x: x[places], dict(rows)))

    number = state.step
    inner = dataclasses.replace(state, step=number * task.updates)
    inner, found = jax.lax.scan(update, inner, order)
    opt_state = inner.opt_state
    if is_adaptive(task):
        assert isinstance(task, PPO)
        assert task.target is not None
        total, weight = metrics["divergence"]
        old = held_number(state.opt_state)
        new = adapted(old, total / jnp.maximum(weight, 1e-9), task.target, task.horizon, weight)
        opt_state = set_number(opt_state, new)
    after = dataclasses.replace(inner, step=number + 1, opt_state=opt_state)
    return after, metrics | jax.tree.map(lambda x: x.sum(0), found)
