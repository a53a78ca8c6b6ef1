"""`fit`: the one place that wires data, tokenizer, task, model, mesh and loop."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxformer import codec, distributed, optimizer, sharding, source, starting, stepping, tree
from jaxformer.align.learner import Learner
from jaxformer.align.online import Online
from jaxformer.evaluating import Evaluator
from jaxformer.experiment import CHANGEABLE, Experiment
from jaxformer.feed import Feed, check_rows, compressors, make_feed
from jaxformer.generation import Sample, generate
from jaxformer.nn.model import Model
from jaxformer.objective import ADAPTER
from jaxformer.starting import Start
from jaxformer.text.corpus import open_corpora
from jaxformer.text.files import read_json, write_json
from jaxformer.text.index import prefetch
from jaxformer.text.tokenizer import Tokenizer, load_tokenizer
from jaxformer.text.turns import begun
from jaxformer.train import rollback, stopping
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.heartbeat import Heartbeat, goodput
from jaxformer.train.loop import NotFiniteError, Rhythm, Values, run
from jaxformer.train.metrics import MetricsLog, shares
from jaxformer.train.profiling import Profiler
from jaxformer.train.progress import TrainingProgress
from jaxformer.train.retention import LOWEST_LOSS
from jaxformer.train.run_folder import RunFolder
from jaxformer.train.state import ROLLOUT, TrainState, stream_key
from jaxformer.train.step import Step

OnMetrics = Callable[[int, Values], None]
LOSS = "held_out/loss"
SAMPLING = Sample(temperature=0.6, top_p=0.95)


@dataclass(frozen=True)
class Run:
    """What `fit` leaves in memory; the rest is in `folder`."""

    folder: Path
    start: Start
    """What it began with, and what does not move."""
    state: TrainState
    tokenizer: Tokenizer | None
    evaluation: Values
    """Of the last evaluation on all held-out documents: "loss" in nats a token, "bits_per_byte", ..."""
    finished: bool
    """False where a signal stopped it before its last step."""

    @property
    def model(self) -> Model:
        """As it is published: without heads that helped in training alone."""
        return self._published[0]

    @property
    def params(self) -> Any:
        """All parameters to use, an adapter merged into them; their moving average where the optimizer kept one."""
        return self._published[1]

    @functools.cached_property
    def _published(self) -> tuple[Model, Any]:
        return self.start.published(averaged(self.state))


def fit(
    experiment: Experiment,
    data: Iterable[str | np.ndarray] | None = None,
    *,
    fresh: bool = False,
    on_metrics: OnMetrics | None = None,
    progress: bool = True,
    devices: Sequence[Any] | None = None,
) -> Run:
    """Run the experiment, or go on with it where its folder holds checkpoints.

    `data`: documents in memory, strings or token arrays, in place of the experiment's files. `fresh` deletes what
    the folder holds. `on_metrics(step, values)` is called with the values of each step and evaluation. `devices`:
    those that the mesh is made of, in place of all. In many processes (jax.distributed) it is to be called in all of
    them, with the same arguments: docs/processes.md.

    Ctrl-C and SIGTERM stop it after the step under way, with a checkpoint; the same call goes on from there. Raises
    ValueError and FileNotFoundError for an experiment or data that cannot be used, before anything is built;
    RuntimeError where another process holds the folder; SaveError where a checkpoint cannot be written;
    NotFiniteError where the loss was not finite.
    """
    since = time.perf_counter()
    experiment.validate()
    mesh = sharding.make_mesh(experiment.mesh, devices)
    check_rows(experiment, mesh)
    corpora = distributed.at_once(lambda: open_corpora(data, experiment.data, experiment.task.columns))
    given = None if data is None else f"{corpora[0].training.fingerprint} {corpora[0].held_out.fingerprint}"
    with contextlib.ExitStack() as stack:

        def claimed() -> tuple[RunFolder, list[str]]:
            folder = stack.enter_context(RunFolder(experiment.path, fresh=fresh))
            return folder, folder.claim(experiment.identity(given), CHANGEABLE)

        folder, changes = distributed.in_turn(claimed)
        say = TrainingProgress(experiment.steps, quiet=not progress or not distributed.is_first())
        say.changes(folder.path, changes)
        found = distributed.at_once(lambda: starting.loaded(experiment, mesh))
        for part in corpora:
            say.skipped(part.training.skipped)
        if distributed.is_first() and not (of_data := folder.path / "data.json").exists():
            write_json(of_data, [corpus.described() for corpus in corpora])
        tokenizer = starting.tokenizer_of(experiment, found, corpora, folder.path, say)
        start = starting.begin(experiment, found, tokenizer, mesh)
        feed = make_feed(experiment, corpora, start, say)
        stack.enter_context(jax.set_mesh(mesh))
        fitter = Fitter(experiment, folder.path, start, feed, say, on_metrics)
        fitter.watch = Heartbeat(folder.path, since, silent=jax.process_index() > 0)
        if experiment.compressors and feed.held_out:
            fitter.marks = distributed.from_first(lambda: compressors(corpora, folder.path, say))
        return fitter.run()


class Fitter:
    """A run with everything built: what the loop calls, and what comes before its first step and after its last."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        start: Start,
        feed: Feed,
        say: TrainingProgress,
        on_metrics: OnMetrics | None,
    ) -> None:
        e = self.experiment = experiment
        self.folder, self.start, self.feed, self.say = folder, start, feed, say
        self.model, self.tokenizer, self.mesh = start.model, start.tokenizer, start.mesh
        self.tell = on_metrics or (lambda step, values: None)
        self.marks: Values = {}
        self.watch = Heartbeat(folder)
        self.passed_over: list[int] = []
        """Batches, by number, that are left out."""
        self.half = self.model.dtype == np.float16
        self.optimizer = starting.rule(e, self.half)
        updates = starting.updates_of(e)
        self.rates = np.asarray(optimizer.schedule(e.optimizer, e.steps * updates)(updates * jnp.arange(e.steps)))
        self.homes = jax.tree.map(lambda leaf: leaf.sharding, self.abstract())
        self.evaluator = Evaluator(e, start, feed.held_out, say)
        self.step = self._step()

    def _step(self) -> Step:
        e = self.experiment
        if isinstance(e.task, Online):
            assert self.evaluator.roller is not None
            place = functools.partial(sharding.place_batch, mesh=self.mesh)
            how = {"seed": e.seed, "accumulate": e.accumulate} | stepping.compiled_as(e, self.homes, self.mesh)
            return Learner(e.task, self.model, self.evaluator.roller, self.optimizer, place, **how)
        return stepping.train_step(e, self.model, self.optimizer, self.homes, self.mesh)

    def run(self) -> Run:
        """Restore or begin, take the steps that are left, and finish."""
        e = self.experiment
        self.checkpoints = Checkpoints(self.folder / "checkpoints", e.keep, e.keep_every, LOWEST_LOSS)
        self.profiler = Profiler(self.folder / "profile", e.profile, self.watch, self.say.notice)
        with self.checkpoints, MetricsLog(self.folder) as self.log, self.profiler, distributed.all_alive():
            state = self._begun()
            # In float16 steps are skipped while the loss scale finds its place.
            skips = self.half or e.not_finite == "skip"
            rhythm = Rhythm(e.steps, e.evaluate_every, e.save_every, "skip" if skips else "stop", e.patience)
            interrupted = False
            if not rhythm.is_over(int(state.step), self.history):
                with self.say.training(int(state.step)), stopping.signals() as stop:
                    state = self._steps(state, rhythm, stop)
                with self.watch.during("saves"):
                    self.checkpoints.wait()
                interrupted = stop.is_asked and not rhythm.is_over(int(state.step), self.history)
            if interrupted:
                self.watch.write("stopped")
                self.say.spent(self._goodput())
                self.say.notice(f"stopped at step {int(state.step)} of {e.steps}; the same line goes on from there")
                return Run(self.folder, self.start, state, self.tokenizer, {}, False)
            if e.patience is not None and (best := self.checkpoints.best()) is not None:
                state = self.checkpoints.restore(self.abstract(), best)[0]
            return self._finish(self._mean(state) if e.average > 1 else state)

    def _begun(self) -> TrainState:
        """The newest saved state, or the first of all; the log ends there."""
        self.passed_over = []
        state = self._restored() or self.fresh()
        self.watch.step = int(state.step)
        self.history = distributed.from_first(lambda: self._history(self.watch.step))
        return state

    def _steps(self, state: TrainState, rhythm: Rhythm, should_stop: Callable[[], bool]) -> TrainState:
        """The state that the loop reaches, from the newest checkpoint once more where it rolls back."""
        while True:
            done = int(state.step)
            try:
                with self.batches(done) as batches, self.profiler.traced(self.step, done) as step:
                    parts = step, state, self.start.frozen, batches, rhythm, self
                    return run(*parts, history=self.history, should_stop=should_stop, watch=self.watch)
            except NotFiniteError as error:
                if self.experiment.not_finite != "roll_back":
                    raise
                passed_over = [*self.passed_over, rollback.batch_of(error.step, self.passed_over)]
                state = self._begun()
                self.say.notice(rollback.told(error, passed_over, self.passed_over))
                self.passed_over = passed_over
            finally:
                self.watch.write()

    def on_metrics(self, step: int, values: Values, seconds: float) -> None:
        """Log a step, show it, and stop here if an earlier checkpoint could not be written."""
        e, spent = self.experiment, {}
        tokens = float(e.rows * e.length)
        if isinstance(self.step, Learner):
            answers = e.rows * self.step.task.group * values.get("rounds", 1.0)
            tokens, spent = values["answer_tokens"] * answers, self.step.seconds.pop(step)
            seconds = sum(spent.values())  # such a step waits for itself, and the loop looks at it one step later
        values = values | self.known(step)
        self.log.write(step, values, {"seconds": seconds, "tokens_per_second": tokens / seconds} | spent)
        self.say.step(step, values["loss"], tokens, seconds, values.get("reward"))
        self.watch.beat(step)
        self.tell(step, values)
        self.checkpoints.check()

    def known(self, step: int) -> Values:
        """What is told of a step that it does not compute."""
        return {"learning_rate": float(self.rates[step - 1])} | rollback.logged(step, self.passed_over)

    def on_evaluation(self, step: int, state: TrainState) -> Values:
        """A look at some of the held-out rows, the same each time."""
        values = self.evaluator.values(averaged(state), self.experiment.evaluate_batches)
        if values:
            named = {f"held_out/{name}": value for name, value in values.items()}
            self.log.write(step, named, {})
            self.log.draw()
            self.say.notice(f"step {step}: held-out loss {values['loss']:.3f}")
            self.tell(step, named)
        return values

    def on_checkpoint(self, state: TrainState, values: Values) -> None:
        """Begin to save, with all that a reader of the run needs to know."""
        meta = {"model": codec.to_json(self.model.config), "card": codec.to_json(self.model.card)}
        meta |= {"frozen": sorted(tree.flatten(self.start.frozen))}
        best_by = {"loss": values["loss"]} if values else None
        data = self.feed.batches.state(self._number(int(state.step))) | {"passed_over": self.passed_over}
        self.log.sync()
        self.checkpoints.save(state, data, meta, best_by)

    def _finish(self, state: TrainState) -> Run:
        """Evaluate on everything, publish the model, complete the prompts. Done once: result.json is written last."""
        e, file = self.experiment, self.folder / "result.json"
        result = distributed.from_first(lambda: read_json(file))
        if result.get("step") == int(state.step):
            self.say.notice(
                f"{self.folder} is finished: {int(state.step)} steps. More --steps go on, --fresh starts over"
            )
        else:
            self.say.notice("evaluating on all held-out documents")
            trained = averaged(state)
            with self.watch.during("evaluation"):
                values = self.evaluator.values(trained, stride=e.evaluation_stride)
                result = {"step": int(state.step), "evaluation": self.evaluator.scores(trained) | values}
            self._publish(state)
            self.log.draw()
            self.say.result(result["evaluation"], self.marks)
            result |= {"compressors": self.marks, "time": self._goodput()}
            self.say.spent(result["time"])
            if self.tokenizer is not None and e.prompts:
                self._complete(self.start.whole(averaged(state)))
            distributed.from_first(lambda: write_json(file, result))
            self.watch.write("finished")
        return Run(self.folder, self.start, state, self.tokenizer, result["evaluation"], True)

    def _goodput(self) -> Values:
        return goodput(self.watch.read(), shares(self.log.lines()))

    def _publish(self, state: TrainState) -> None:
        """Write model/, and adapter/ where one was trained: an adapter is merged into the model as it was held.

        An architecture that is no family's stays a run that only this library reads.
        """
        trained = averaged(state)
        model, whole = self.start.published(trained)
        whole, adapter = distributed.collected((whole, self.start.variables(trained).get(ADAPTER)))
        heads = {} if self.start.helpers or adapter is None else {k: v for k, v in trained.items() if k != ADAPTER}
        heads = distributed.collected(heads)

        def write() -> None:
            try:
                source.save_pretrained(self.folder / "model", model, whole, self.tokenizer)
                if adapter is not None:
                    source.save_adapter(self.folder / "adapter", model, adapter, heads, self.experiment.start)
            except ValueError as error:
                self.say.notice(f"model/ is not written, checkpoints/ holds the parameters: {error}")

        distributed.from_first(write)

    def _complete(self, params: Any) -> None:
        e, tokenizer = self.experiment, self.tokenizer
        assert tokenizer is not None
        for number, prompt in enumerate(e.prompts):
            ids = begun(tokenizer, tokenizer.encode(prompt))
            key = jax.random.fold_in(stream_key(e.seed, ROLLOUT, 0), number)
            eos = () if tokenizer.eos is None else tokenizer.eos
            out = generate(self.model, params, [ids], e.prompt_tokens, strategy=SAMPLING, eos=eos, key=key)
            text = tokenizer.decode([*ids, *out.tokens[0, : out.lengths[0]].tolist()])
            self.say.completion(prompt, text[len(prompt) :])

    def abstract(self) -> TrainState:
        """Shapes, dtypes and places of the state's leaves."""
        return stepping.abstract_state(self.start, self.optimizer)

    def fresh(self) -> TrainState:
        """The state before the first step."""
        params = self.start.draw()
        opt_state = jax.jit(self.optimizer.init, out_shardings=self.homes.opt_state)(params)
        return TrainState(step=jax.device_put(np.int32(0), self.homes.step), params=params, opt_state=opt_state)

    def _restored(self) -> TrainState | None:
        if distributed.from_first(self.checkpoints.latest) is None:
            return None
        state, data, _ = self.checkpoints.restore(self.abstract())
        self.feed.batches.check(data)
        self.passed_over = data.get("passed_over", [])
        self.say.notice(f"going on from step {int(state.step)}")
        return state

    def _history(self, step: int) -> list[float]:
        """The losses of the evaluations until `step`; the log is cut back to it."""
        self.watch.lose(self.log.truncate(step))
        return [line["values"][LOSS] for line in self.log.lines() if LOSS in line["values"]]

    def _mean(self, state: TrainState) -> TrainState:
        """The state with the mean of the newest checkpoints' parameters, summed in float32."""
        steps = self.checkpoints.steps()[-self.experiment.average :]
        found = [self.checkpoints.restore_params(self.abstract().params, step) for step in steps]
        mean = lambda *leaves: (sum(leaf.astype(jnp.float32) for leaf in leaves) / len(leaves)).astype(
            leaves[0].dtype
        )
        return dataclasses.replace(state, params=jax.tree.map(mean, *found))

    def _number(self, steps: int) -> int:
        """The number of the batch that comes after so many steps."""
        return rollback.batch_of(steps + 1, self.passed_over)

    @contextlib.contextmanager
    def batches(self, start: int) -> Iterator[Iterator[Any]]:
        """Batches on their devices, made one or two ahead by a thread."""
        rows, whole = self.feed.batches.batch_size, lambda n, *part: self.feed.batches.batch(self._number(n), *part)
        if isinstance(self.step, Learner):
            with contextlib.closing(prefetch(whole, start)) as batches:
                yield batches  # of prompts, which stay here
            return
        mine = sharding.local_rows(self.mesh, rows)
        with contextlib.closing(prefetch(lambda n: [whole(n, part) for part in mine], start)) as parted:
            yield (sharding.place_rows(parts, rows, self.mesh) for parts in parted)


def reopened(experiment: Experiment, folder: Path, mesh: Mesh) -> Start:
    """What the run in this folder began with; nothing is written."""
    found = distributed.at_once(lambda: starting.loaded(experiment, mesh))
    place = folder / "tokenizer"
    tokenizer = found[2] if found else load_tokenizer(place) if place.exists() else None
    return starting.begin(experiment, found, tokenizer, mesh)


def restored(experiment: Experiment, start: Start, folder: Path) -> TrainState:
    """The newest state that the run in this folder has saved; nothing is written.

    Raises FileNotFoundError where there is none.
    """
    half = start.model.dtype == np.float16
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(stepping.abstract_state(start, starting.rule(experiment, half)))[0]


def averaged(state: TrainState) -> Any:
    """The parameters to use: their moving average where the optimizer keeps one."""
    average = optimizer.ema_params(state.opt_state)
    return state.params if average is None else average
