"""What a run begins with: a model, its tokenizer, the parameters that move and those that stay."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jaxformer import lora, quantize, sharding, source, tree
from jaxformer.config import Card, LearnedConfig, ModelConfig
from jaxformer.experiment import Experiment
from jaxformer.nn.model import Model
from jaxformer.tasks import common
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.state import INIT, stream_key

Params = Mapping[str, Any]


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

    def draw(self) -> Params:
        """The first values of what is trained, each made where it is kept."""
        if self.first is not None:
            return self.first
        return sharding.init(self.model, stream_key(self.seed, INIT, 0), mesh=self.mesh)

    def variables(self, trained: Params) -> dict[str, Any]:
        """What `model.apply` takes."""
        return common.variables(trained, self.frozen)

    def whole(self, trained: Params) -> Params:
        """All parameters of the model, an adapter merged into them."""
        held = self.variables(trained)
        if common.ADAPTER not in held:
            return held["params"]
        return lora.merge(quantize.dequantize(held["params"], "float32"), held[common.ADAPTER])


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
    return model, params, tokenizer


def begin(experiment: Experiment, found: source.Loaded | None, tokenizer: Tokenizer | None, mesh: Mesh) -> Start:
    """What the run begins with: of the model that was `loaded`, or from scratch with the run's own tokenizer."""
    e = experiment
    if found is None:
        assert e.model is not None
        model, params = _model(e, e.model, _card(e, e.model, tokenizer)), None
        shapes = sharding.abstract_params(model)
    else:
        model, params = _model(e, found[0].config, found[0].card), found[1]
        shapes = params
    beside = e.task.frozen(model, tokenizer, mesh) if isinstance(e.task, common.Besides) else {}
    if not e.freeze and e.adapter is None:
        return Start(model, tokenizer, _abstract(shapes), params, beside, e.seed, mesh)
    if params is None:
        params = sharding.init(model, stream_key(e.seed, INIT, 0), mesh=mesh)
    first, frozen = _adapted(e, model, params) if e.adapter is not None else _unfrozen(e, params)
    return Start(model, tokenizer, _abstract(first), first, {**frozen, **beside}, e.seed, mesh)


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
    return {**trained, common.ADAPTER: moved}, {"params": frozen, common.ADAPTER: fixed}


def _model(e: Experiment, config: ModelConfig, card: Card) -> Model:
    named = e.task.card(card) if isinstance(e.task, common.Naming) else card
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
