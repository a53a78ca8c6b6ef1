"""`fit`: the one place that wires data, tokenizer, task, model, mesh and loop."""

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer import codec, optimizer, sharding, source
from jaxformer.config import Card, LearnedConfig
from jaxformer.experiment import CHANGEABLE, Experiment
from jaxformer.generation import Sample, generate
from jaxformer.nn.model import Model
from jaxformer.text import corpus, prepare
from jaxformer.text.compressors import bits_per_byte
from jaxformer.text.corpus import Document, Documents
from jaxformer.text.files import read_json, write_json
from jaxformer.text.index import Batches, EvaluationBatches, prefetch
from jaxformer.text.prepare import Store
from jaxformer.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from jaxformer.train import evaluate
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.loop import Rhythm, Values, run
from jaxformer.train.metrics import MetricsLog
from jaxformer.train.progress import TrainingProgress
from jaxformer.train.run_folder import RunFolder
from jaxformer.train.state import INIT, ROLLOUT, TrainState, stream_key
from jaxformer.train.step import make_step

OnMetrics = Callable[[int, Values], None]
LOSS = "held_out/loss"
SAMPLING = Sample(temperature=0.6, top_p=0.95)
TOKENIZER_BYTES = 50_000_000
"""Text that a tokenizer is trained on: more of it changes little and takes long."""


@dataclass(frozen=True)
class Run:
    """What `fit` leaves in memory; the rest is in `folder`."""

    folder: Path
    model: Model
    state: TrainState
    tokenizer: Tokenizer | None
    evaluation: Values
    """Of the last evaluation on all held-out documents: "loss" in nats a token, "bits_per_byte", ..."""
    finished: bool
    """False where a signal stopped it before its last step."""

    @property
    def params(self) -> Any:
        """The parameters to use: their moving average where the optimizer kept one."""
        return _averaged(self.state)


def fit(
    experiment: Experiment,
    data: Iterable[str | np.ndarray] | None = None,
    *,
    fresh: bool = False,
    on_metrics: OnMetrics | None = None,
    progress: bool = True,
) -> Run:
    """Run the experiment, or go on with it where its folder holds checkpoints.

    `data`: documents in memory, strings or token arrays, in place of the experiment's files. `fresh` deletes what
    the folder holds. `on_metrics(step, values)` is called with the values of each step and evaluation.

    Ctrl-C and SIGTERM stop it after the step under way, with a checkpoint; the same call goes on from there. Raises
    ValueError and FileNotFoundError for an experiment or data that cannot be used, before anything is built;
    RuntimeError where another process holds the folder; SaveError where a checkpoint cannot be written;
    NotFiniteError where the loss was not finite.
    """
    experiment.validate()
    mesh = sharding.make_mesh(experiment.mesh)
    _check_rows(experiment, mesh)
    documents = corpus.open_documents(experiment.data if data is None else data)
    training, held_out = corpus.split(documents, experiment.data.held_out)
    with RunFolder(experiment.path, fresh=fresh) as folder, contextlib.ExitStack() as stack:
        changes = folder.claim(experiment.identity(None if data is None else documents.fingerprint), CHANGEABLE)
        say = TrainingProgress(experiment.steps, quiet=not progress)
        say.changes(folder.path, changes)
        tokenizer = _tokenizer(experiment, training, folder.path, say)
        seen, unseen = (_store(experiment, part, tokenizer, folder.path, say) for part in (training, held_out))
        stack.enter_context(jax.set_mesh(mesh))
        fitter = Fitter(experiment, folder.path, tokenizer, seen, unseen, mesh, say, on_metrics)
        if experiment.compressors and len(held_out):
            fitter.marks = _compressors(training, held_out, folder.path, say)
        return fitter.run()


class Fitter:
    """A run with everything built: what the loop calls, and what comes before its first step and after its last."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        tokenizer: Tokenizer | None,
        training: Store | None,
        held_out: Store | None,
        mesh: Mesh,
        say: TrainingProgress,
        on_metrics: OnMetrics | None,
    ) -> None:
        e = self.experiment = experiment
        self.folder, self.tokenizer, self.held_out = folder, tokenizer, held_out
        self.mesh, self.say = mesh, say
        self.tell = on_metrics or (lambda step, values: None)
        self.marks: Values = {}
        self.model = Model(e.model, e.compute, e.remat, e.unroll, e.kernel, _card(e, tokenizer))
        self.half = self.model.dtype == np.float16
        self.optimizer = optimizer.make_optimizer(e.optimizer, e.steps, dynamic_scale=self.half)
        self.rates = np.asarray(optimizer.schedule(e.optimizer, e.steps)(jnp.arange(e.steps)))
        assert training is not None  # a split leaves something to train on
        self.batches = Batches(training, e.rows, e.length, e.seed)
        self.shapes, self.homes = self._places()
        options = {"xla_gpu_deterministic_ops": True} if e.deterministic and jax.default_backend() == "gpu" else None
        step = make_step(e.task.loss(self.model, train=True), self.optimizer, seed=e.seed, accumulate=e.accumulate)
        everywhere = NamedSharding(mesh, PartitionSpec())
        self.step = jax.jit(step, donate_argnums=0, out_shardings=(self.homes, everywhere), compiler_options=options)
        eval_step = evaluate.make_eval_step(e.task.loss(self.model, train=False), seed=e.seed)
        self.eval_step = jax.jit(eval_step, out_shardings=everywhere, compiler_options=options)

    def run(self) -> Run:
        """Restore or begin, take the steps that are left, and finish."""
        e = self.experiment
        self.checkpoints = Checkpoints(self.folder / "checkpoints", e.keep, e.keep_every, ("loss", "min"))
        with self.checkpoints, MetricsLog(self.folder) as self.log:
            state = self._restored() or self._fresh()
            self.log.truncate(int(state.step))
            history = [line["values"][LOSS] for line in self.log.lines() if LOSS in line["values"]]
            # In float16 steps are skipped while the loss scale finds its place.
            not_finite = "skip" if self.half else e.not_finite
            rhythm = Rhythm(e.steps, e.evaluate_every, e.save_every, not_finite, e.patience)
            interrupted = False
            if not rhythm.is_over(int(state.step), history):
                at = int(state.step)
                with self.say.training(at), _signals() as stop, self._feed(at) as batches:
                    parts = self.step, state, None, batches, rhythm, self
                    state = run(*parts, history=history, should_stop=stop.is_set)
                self.checkpoints.wait()
                interrupted = stop.is_set() and not rhythm.is_over(int(state.step), history)
            if interrupted:
                self.say.notice(f"stopped at step {int(state.step)} of {e.steps}; the same line goes on from there")
                return Run(self.folder, self.model, state, self.tokenizer, {}, False)
            if e.patience is not None and (best := self.checkpoints.best()) is not None:
                state = self.checkpoints.restore(self._abstract(), best)[0]
            return self._finish(state)

    def on_metrics(self, step: int, values: Values, seconds: float) -> None:
        """Log a step, show it, and stop here if an earlier checkpoint could not be written."""
        tokens = self.experiment.rows * self.experiment.length
        values = values | {"learning_rate": float(self.rates[step - 1])}
        self.log.write(step, values, {"seconds": seconds, "tokens_per_second": tokens / seconds})
        self.say.step(step, values["loss"], tokens, seconds)
        self.tell(step, values)
        self.checkpoints.check()

    def on_evaluation(self, step: int, state: TrainState) -> Values:
        """A look at some of the held-out rows, the same each time."""
        values = self._evaluate(state, self.experiment.evaluate_batches, None)
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
        best_by = {"loss": values["loss"]} if values else None
        self.checkpoints.save(state, self.batches.state(int(state.step)), meta, best_by)

    def _evaluate(self, state: TrainState, most: int | None, stride: int | None) -> Values:
        """Values on the held-out documents: on `most` batches, spread evenly, or on all of them."""
        if self.held_out is None:
            return {}
        e = self.experiment
        batches = EvaluationBatches(self.held_out, e.rows, e.length, stride)
        numbers = range(len(batches)) if most is None else np.linspace(0, len(batches) - 1, min(most, len(batches)))
        placed = (sharding.place_batch(batches.batch(int(n)), self.mesh) for n in numbers)
        sums = evaluate.evaluate(self.eval_step, _averaged(state), None, placed)
        return e.task.metrics(sums, int(self.held_out.sizes.sum()) if most is None else 0)

    def _finish(self, state: TrainState) -> Run:
        """Evaluate on everything, publish the model, complete the prompts. Done once: result.json is written last."""
        e, file = self.experiment, self.folder / "result.json"
        result = read_json(file)
        if result.get("step") == int(state.step):
            self.say.notice(
                f"{self.folder} is finished: {int(state.step)} steps. More --steps go on, --fresh starts over"
            )
        else:
            self.say.notice("evaluating on all held-out documents")
            result = {"step": int(state.step), "evaluation": self._evaluate(state, None, e.evaluation_stride)}
            result |= {"compressors": self.marks}
            self._publish(state)
            self.log.draw()
            self.say.result(result["evaluation"], self.marks)
            for text in self._completions(state):
                self.say.completion(*text)
            write_json(file, result)
        return Run(self.folder, self.model, state, self.tokenizer, result["evaluation"], True)

    def _publish(self, state: TrainState) -> None:
        """Write model/. An architecture that is no family's stays a run that only this library reads."""
        try:
            source.save_pretrained(self.folder / "model", self.model, _averaged(state), self.tokenizer)
        except ValueError as error:
            self.say.notice(f"model/ is not written, checkpoints/ holds the parameters: {error}")

    def _completions(self, state: TrainState) -> Iterator[tuple[str, str]]:
        e, tokenizer = self.experiment, self.tokenizer
        if tokenizer is None:
            return
        for number, prompt in enumerate(e.prompts):
            ids = tokenizer.encode(prompt)
            key = jax.random.fold_in(stream_key(e.seed, ROLLOUT, 0), number)
            eos = () if tokenizer.eos is None else tokenizer.eos
            out = generate(self.model, _averaged(state), [ids], e.prompt_tokens, strategy=SAMPLING, eos=eos, key=key)
            yield prompt, tokenizer.decode([*ids, *out.tokens[0, : out.lengths[0]].tolist()])[len(prompt) :]

    def _places(self) -> tuple[TrainState, TrainState]:
        """Shapes of the state's leaves, and their shardings."""
        params = sharding.abstract_params(self.model)
        opt_state = jax.eval_shape(self.optimizer.init, params)
        shapes = TrainState(step=jax.ShapeDtypeStruct((), np.int32), params=params, opt_state=opt_state)  # type: ignore[arg-type]
        return shapes, sharding.like_parameters(self.mesh, shapes, params)

    def _abstract(self) -> TrainState:
        placed = lambda leaf, home: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home)
        return jax.tree.map(placed, self.shapes, self.homes)

    def _fresh(self) -> TrainState:
        key = stream_key(self.experiment.seed, INIT, 0)
        params = sharding.init(self.model, key, mesh=self.mesh)
        opt_state = jax.jit(self.optimizer.init, out_shardings=self.homes.opt_state)(params)
        return TrainState(step=jax.device_put(np.int32(0), self.homes.step), params=params, opt_state=opt_state)

    def _restored(self) -> TrainState | None:
        if self.checkpoints.latest() is None:
            return None
        state, data, _ = self.checkpoints.restore(self._abstract())
        self.batches.check(data)
        self.say.notice(f"going on from step {int(state.step)}")
        return state

    @contextlib.contextmanager
    def _feed(self, start: int) -> Iterator[Iterator[Any]]:
        """Batches on their devices, made one or two ahead by a thread."""
        with contextlib.closing(prefetch(self.batches.batch, start)) as batches:
            yield (sharding.place_batch(batch, self.mesh) for batch in batches)


def _averaged(state: TrainState) -> Any:
    average = optimizer.ema_params(state.opt_state)
    return state.params if average is None else average


def _card(experiment: Experiment, tokenizer: Tokenizer | None) -> Card:
    """What the architecture does not tell a user of the model: special ids, and how long its rows were."""
    ids = {} if tokenizer is None else {name: getattr(tokenizer, name) for name in ("bos", "eos", "pad")}
    config = {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    stack = experiment.model.decoder
    learned = stack is not None and isinstance(stack.input.positions, LearnedConfig)
    return Card(config=config if learned else config | {"max_position_embeddings": experiment.length})


def _check_rows(experiment: Experiment, mesh: Mesh) -> None:
    sharing = mesh.shape["data"] * mesh.shape["fsdp"]
    if experiment.rows // experiment.accumulate % sharing:
        raise ValueError(
            f"rows {experiment.rows} in {experiment.accumulate} microbatches cannot be shared evenly by the {sharing}"
            " devices of mesh data x fsdp: change rows, accumulate or the mesh"
        )


def _tokenizer(experiment: Experiment, training: Documents, folder: Path, say: TrainingProgress) -> Tokenizer | None:
    """The run's own tokenizer, trained once; None where the documents are ready-made tokens."""
    place = folder / "tokenizer"
    if not place.exists():
        texts = [d.text for d in training.sample(TOKENIZER_BYTES) if d.text is not None]
        if not texts:
            return None
        with say.busy(f"training a tokenizer on {sum(map(len, texts)) / 1e6:.1f} M characters"):
            trained = train_tokenizer(experiment.tokenizer, texts)
        part = folder / ".tokenizer.part"
        shutil.rmtree(part, ignore_errors=True)
        trained.save(part)
        part.rename(place)
    return load_tokenizer(place)


def _store(
    experiment: Experiment,
    documents: Documents,
    tokenizer: Tokenizer | None,
    folder: Path,
    say: TrainingProgress,
) -> Store | None:
    """The documents as the task's examples, prepared once for all runs of the same text, tokenizer and task."""
    if not len(documents):
        return None
    vocab = experiment.model.vocab

    def examples(document: Document) -> list[prepare.Example]:
        if tokenizer is None or document.text is None:
            assert document.tokens is not None
            return [experiment.task.examples(document.tokens, None)]
        return [experiment.task.examples(tokenizer.encode(document.text), tokenizer)]

    fingerprint = f"{codec.to_json(experiment.task)} {tokenizer and tokenizer.fingerprint()}"
    with say.preparing(len(documents)) as progress:
        return prepare.prepare(
            documents,
            examples,
            {"tokens": vocab},
            fingerprint,
            folder.parent / ".prepared",
            progress=progress,
        )


def _compressors(training: Documents, held_out: Documents, folder: Path, say: TrainingProgress) -> Values:
    file = folder / "compressors.json"
    if not file.exists():
        with say.busy("compressing the held-out documents with zlib and lzma"):
            texts = ([d.text or "" for d in part] for part in (held_out, training))
            write_json(file, bits_per_byte(*texts))
    return read_json(file)


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts at once. Elsewhere than in the main thread
    signals cannot be caught, and the event stays unset.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
