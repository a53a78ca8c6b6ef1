"""Every experiment in configs/ can be built, here and on eight devices, without building it."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxformer import codec, families, optimizer, sharding
from jaxformer.experiment import Experiment
from jaxformer.families import heads
from jaxformer.nn.model import Model
from jaxformer.sharding import MeshConfig, make_mesh
from jaxformer.source import from_pretrained

FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def opened(file):
    try:
        return runpy.run_path(str(file))["config"]()
    except ModuleNotFoundError as error:
        pytest.skip(f"not installed: {error}")


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.stem)
def experiment(request):
    return opened(request.param)


def architecture(experiment):
    """Its model's: from scratch, or that of the one that it begins from, with the head of its task."""
    if experiment.model is not None:
        return experiment.model
    first = FILES[0].with_name(f"{Path(experiment.start).name}.py")
    if not first.is_file():
        return from_pretrained(experiment.start, head=experiment.task.head)[0].config
    model_type, published = families.publish(architecture(opened(first)))
    family = families.family(model_type)
    if experiment.task.head is not None:
        published = heads.with_head(published, family.ARCHITECTURES, experiment.task.head)
    return family.config(published)


@pytest.fixture(scope="module")
def model(experiment):
    return Model(architecture(experiment))


def test_there_are_configs():
    assert "quickstart" in {file.stem for file in FILES}


def test_it_is_valid_and_named_after_its_file(experiment):
    assert isinstance(experiment, Experiment)
    assert experiment.validate() is experiment
    assert experiment.name in {file.stem for file in FILES}


def test_it_is_told_apart_by_its_json(experiment):
    assert codec.from_json(json.loads(json.dumps(codec.to_json(experiment))), Experiment) == experiment


@pytest.mark.parametrize(
    "mesh", [MeshConfig(), MeshConfig(data=1, fsdp=8), MeshConfig(data=1, fsdp=4, tensor=2)], ids=str
)
def test_its_model_and_optimizer_have_a_place_on_eight_devices(experiment, model, mesh):
    params = sharding.abstract_params(model)
    state = jax.eval_shape(optimizer.make_optimizer(experiment.optimizer, experiment.steps).init, params)
    homes = sharding.like_parameters(make_mesh(mesh), {"params": params, "opt_state": state}, params)
    for home, leaf in zip(jax.tree.leaves(homes), jax.tree.leaves((state, params)), strict=True):
        home.shard_shape(leaf.shape)


def test_its_model_runs_on_a_batch_of_its_shape_and_its_task_agrees(experiment, model):
    experiment.check_model(model.config)
    tokens = jax.ShapeDtypeStruct((experiment.rows, experiment.length), jnp.int32)
    given = [tokens] * sum(stack is not None for stack in (model.config.encoder, model.config.decoder))
    run = lambda params, *given: model.apply({"params": params}, *given)
    out = jax.eval_shape(run, sharding.abstract_params(model), *given)
    assert out.hidden.shape == (*tokens.shape, model.config.width)
    assert model.config.head is None or out.logits.shape == (*tokens.shape, model.config.vocab)
