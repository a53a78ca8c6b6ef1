"""What a run begins with: a model, its tokenizer, the parameters that move, how, and those that stay."""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxformer import distributed, lora, objective, optimizer, quantize, sharding, source, tree
from jaxformer.align import learner
from jaxformer.align.online import Online
from jaxformer.config import Card, LearnedConfig, ModelConfig
from jaxformer.experiment import Experiment
from jaxformer.nn.model import Model
from jaxformer.text import chat
from jaxformer.text.corpus import Corpus
from jaxformer.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from jaxformer.train.progress import TrainingProgress
from jaxformer.train.state import INIT, stream_key

Params = Mapping[str, Any]
TOKENIZER_BYTES = 50_000_000
"""Text that a tokenizer is trained on: more of it changes little and takes long."""


@dataclass(frozen=True)
class Start:
    """A model with its first parameters, parted into those that are trained and those that are not."""

    model: Model
    tokenizer: Tokenizer | None
    trained: Params
    """Shapes and dtypes of what the optimizer moves."""
    first: Params | None
    """Their first values; None: they are drawn when they are asked for."""
    frozen: Params
    """What the loss reads and nobody moves: leaves of "params", an adapter's scales; {} where everything moves."""
    seed: int
    mesh: Mesh
    helpers: tuple[str, ...] = ()
    """Heads of the model that are there for its training alone."""

    def draw(self) -> Params:
        """The first values of what is trained, each made where it is kept."""
        if self.first is not None:
            return self.first
        return sharding.init(self.model, stream_key(self.seed, INIT, 0), mesh=self.mesh)

    def variables(self, trained: Params) -> dict[str, Any]:
        """What `model.apply` takes."""
        return objective.variables(trained, self.frozen)

    def whole(self, trained: Params) -> Params:
        """All parameters of the model, an adapter merged into them."""
        held = self.variables(trained)
        if objective.ADAPTER not in held:
            return held["params"]
        return lora.merge(quantize.dequantize(held["params"], "float32"), held[objective.ADAPTER])

    def published(self, trained: Params) -> tuple[Model, Params]:
        """(the model, all its parameters) without what helped in training alone."""
        paths = [f"heads/{name}/**" for name in self.helpers]
        extra = tuple(head for head in self.model.config.extra if head.name not in self.helpers)
        config = dataclasses.replace(self.model.config, extra=extra)
        whole = self.whole(trained)
        return self.model.clone(config=config), tree.split(whole, paths)[1] if paths else whole


def loaded(experiment: Experiment, mesh: Mesh) -> source.Loaded | None:
    """The model that the experiment begins from, on the mesh; None where it begins from scratch.

    Raises ValueError where its task cannot train that model.
    """
    e = experiment
    if e.start is None:
        return None
    stored = "float32" if e.adapter is None else None
    model, params, tokenizer = source.from_pretrained(e.start, head=e.task.head, dtype=stored, mesh=mesh)
    e.check_model(model.config)
    return model, params, None if tokenizer is None else taught(tokenizer, e)


def tokenizer_of(
    experiment: Experiment, found: source.Loaded | None, corpora: list[Corpus], folder: Path, say: TrainingProgress
) -> Tokenizer | None:
    """The tokenizer of the model that was found, or the run's own, trained once; None for ready-made tokens."""
    place = folder / "tokenizer"

    def write() -> bool:
        if not place.exists():
            tokenizer = found[2] if found else _trained_tokenizer(experiment, corpora, say)
            if tokenizer is None:
                return False
            part = folder / ".tokenizer.part"
            shutil.rmtree(part, ignore_errors=True)
            tokenizer.save(part)
            part.rename(place)
        return True

    is_there = distributed.from_first(write)
    return found[2] if found else load_tokenizer(place) if is_there else None


def taught(tokenizer: Tokenizer, experiment: Experiment) -> Tokenizer:
    """The tokenizer to publish with the model: with the chat template of the experiment's task, if it has one."""
    task = experiment.task
    return chat.taught(tokenizer, task.template) if isinstance(task, objective.Talking) else tokenizer


def begin(experiment: Experiment, found: source.Loaded | None, tokenizer: Tokenizer | None, mesh: Mesh) -> Start:
    """What the run begins with: of the model that was `loaded`, or from scratch with the run's own tokenizer."""
    e = experiment
    if found is None:
        assert e.model is not None
        model, params = _model(e, e.model, _card(e, e.model, tokenizer)), None
        shapes = sharding.abstract_params(model)
    else:
        model, params = _helped(e, _model(e, found[0].config, found[0].card), found[1], mesh)
        shapes = params
    helpers = tuple(head.name for head in e.task.heads) if isinstance(e.task, objective.Headed) else ()
    beside = dict(e.task.frozen(model, tokenizer, mesh)) if isinstance(e.task, objective.Besides) else {}
    anchored = isinstance(e.task, objective.Anchored) and e.task.anchored and e.adapter is None
    if not e.freeze and e.adapter is None and not anchored:
        return Start(model, tokenizer, _abstract(shapes), params, beside, e.seed, mesh, helpers)
    if params is None:
        params = sharding.init(model, stream_key(e.seed, INIT, 0), mesh=mesh)
    first, frozen = _adapted(e, model, params) if e.adapter is not None else _unfrozen(e, params)
    if e.bits is not None:
        kept = frozen["params"]
        frozen = {**frozen, "params": jax.device_put(kept, sharding.shardings(mesh, kept))}
    if anchored:  # real copies: the trained ones are given away with the first step
        beside[objective.BEGINNING] = jax.tree.map(jnp.copy, first)
    return Start(model, tokenizer, _abstract(first), first, {**frozen, **beside}, e.seed, mesh, helpers)


def abstract(experiment: Experiment, found: source.Sketch | None, tokenizer: Tokenizer | None, mesh: Mesh) -> Start:
    """What `begin` gives, of shapes and dtypes alone: no parameter is made or read.

    `found`: the model that the experiment begins from. Raises ValueError for a task whose loss reads a second model.
    """
    e = experiment
    if any(getattr(e.task, name, "") for name in ("teacher", "reference")):
        raise ValueError(
            f"task {type(e.task).__name__}: its loss reads a second model, which only training can place"
        )
    helpers = e.task.heads if isinstance(e.task, objective.Headed) else ()
    if found is None:
        assert e.model is not None
        model, dtype = _model(e, e.model, _card(e, e.model, tokenizer)), None
    else:
        extra = (*found.model.config.extra, *helpers)
        model = _model(e, dataclasses.replace(found.model.config, extra=extra), found.model.card)
        dtype = found.dtype if e.adapter is not None else None
    trained: Params = sharding.abstract_params(model, dtype)
    frozen: Params = {}
    if e.adapter is not None:
        trained, frozen = jax.eval_shape(lambda params: _adapted(e, model, params), trained)
    elif e.freeze:
        trained, frozen = _unfrozen(e, trained)
    if isinstance(e.task, objective.Anchored) and e.task.anchored and e.adapter is None:
        frozen = {**frozen, objective.BEGINNING: trained}
    return Start(model, tokenizer, trained, None, frozen, e.seed, mesh, tuple(head.name for head in helpers))


def updates_of(experiment: Experiment) -> int:
    """How often the optimizer moves the parameters in a step."""
    return experiment.task.updates if isinstance(experiment.task, Online) else 1


def rule(experiment: Experiment, half: bool) -> optax.GradientTransformation:
    """The optimizer, with all that its state holds; `half`: the loss is scaled, for float16."""
    e = experiment
    made = optimizer.make_optimizer(e.optimizer, e.steps * updates_of(e), dynamic_scale=half)
    return learner.optimizer(e.task, made) if isinstance(e.task, Online) else made


def _trained_tokenizer(experiment: Experiment, corpora: list[Corpus], say: TrainingProgress) -> Tokenizer | None:
    samples = [corpus.training.sample(TOKENIZER_BYTES // len(corpora)) for corpus in corpora]
    texts = [text for sample in samples for document in sample for text in document.texts()]
    if not texts:
        return None
    specials = tuple(dict.fromkeys((*experiment.tokenizer.specials, *experiment.task.specials)))
    with say.busy(f"training a tokenizer on {sum(map(len, texts)) / 1e6:.1f} M characters"):
        tokenizer = train_tokenizer(dataclasses.replace(experiment.tokenizer, specials=specials), texts)
    return taught(tokenizer, experiment)


def _helped(e: Experiment, model: Model, params: dict[str, Any], mesh: Mesh) -> tuple[Model, dict[str, Any]]:
    """The model with the heads that its task wants beside its own, all zeros, on the mesh."""
    if not isinstance(e.task, objective.Headed) or not e.task.heads:
        return model, params
    model = model.clone(config=dataclasses.replace(model.config, extra=(*model.config.extra, *e.task.heads)))
    drawn = sharding.abstract_params(model)
    zeros = lambda x, home: jnp.zeros(x.shape, x.dtype, device=home)
    all_heads = jax.tree.map(zeros, drawn["heads"], sharding.shardings(mesh, drawn)["heads"])
    new = {head.name: all_heads[head.name] for head in e.task.heads}
    return model, tree.merge(params, {"heads": new})


def _unfrozen(e: Experiment, params: Params) -> tuple[Params, Params]:
    frozen, trained = tree.split(params, e.freeze)
    return trained, {"params": frozen}


def _adapted(e: Experiment, model: Model, params: Params) -> tuple[Params, Params]:
    """(an adapter and the heads of the task, what stays)."""
    assert e.adapter is not None
    heads = [f"heads/{extra.name}/**" for extra in model.config.extra]
    trained, frozen = tree.split(params, heads) if heads else ({}, params)
    moved, fixed = lora.split_scale(lora.init(e.adapter, params, stream_key(e.seed, INIT, 1)))
    if e.bits is not None:
        frozen = quantize.quantize(frozen, bits=e.bits)
    trained = jax.tree.map(lambda leaf: leaf.astype("float32"), trained)
    return {**trained, objective.ADAPTER: moved}, {"params": frozen, objective.ADAPTER: fixed}


def _model(e: Experiment, config: ModelConfig, card: Card) -> Model:
    named = e.task.card(card) if isinstance(e.task, objective.Naming) else card
    return Model(config, e.compute, e.remat, e.unroll, e.kernel, named)


def _abstract(params: Params) -> Params:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


def _card(experiment: Experiment, model: ModelConfig, tokenizer: Tokenizer | None) -> Card:
    """What the architecture does not tell a user of the model: special ids, and how long its rows were."""
    ids = {} if tokenizer is None else {name: getattr(tokenizer, name) for name in ("bos", "eos", "pad")}
    config = {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    if model.encoder is not None and model.decoder is not None and (first := ids.get("bos") or ids.get("pad")):
        config["decoder_start_token_id"] = first
    learned = any(
        stack is not None and isinstance(stack.input.positions, LearnedConfig)
        for stack in (model.encoder, model.decoder)
    )
    return Card(config=config if learned else config | {"max_position_embeddings": experiment.length})
