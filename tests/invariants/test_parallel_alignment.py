"""Alignment on eight devices is that on one: what a policy draws, what it is worth, and what is learned from it."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer import sharding
from jaxformer.align import GRPO, PPO, FunctionReward, Prefer
from jaxformer.align.learner import Learner
from jaxformer.align.rollout import Prompt, Roller
from jaxformer.nn.model import Model
from jaxformer.objective import BEGINNING
from jaxformer.sharding import MeshConfig, make_mesh
from jaxformer.testing import randomized, tiny_models, tiny_tokenizer
from jaxformer.text.corpus import open_documents
from jaxformer.text.index import EvaluationBatches
from jaxformer.text.prepare import prepare
from jaxformer.train.state import TrainState
from jaxformer.train.step import make_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_caches")]

ONE, EIGHT = MeshConfig(1), MeshConfig(data=1, fsdp=4, tensor=2)
STEPS, LENGTH, ANSWER = 2, 16, 6
RULE = optax.adam(1e-2)
REWARD = {"rewards": (FunctionReward("exact"),), "group": 2, "answer_length": ANSWER}
ON_POLICY = {
    "grpo": GRPO(**REWARD, beta=0.1),
    "ppo": PPO(**REWARD, epochs=2, minibatches=2),
}
RECORDS = [
    {"prompt": "the quick", "chosen": " fox", "rejected": " dog"},
    {"prompt": "def", "chosen": " double", "rejected": " x"},
    {"prompt": "over", "chosen": " the lazy", "rejected": " 2"},
    {"prompt": "brown", "chosen": " dog", "rejected": " jumps"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def begun(task, tokenizer, mesh):
    """(model, state on the mesh, what is frozen, where the state lives)."""
    config = dataclasses.replace(tiny_models()["rotary"], vocab=tokenizer.vocab_size)
    model = Model(dataclasses.replace(config, extra=getattr(task, "heads", ())), compute="float32")
    shapes = sharding.abstract_params(model)
    places = sharding.shardings(mesh, shapes)
    put = lambda seed: jax.device_put(randomized(shapes, jax.random.key(seed)), places)
    abstract = TrainState(step=np.int32(0), params=shapes, opt_state=jax.eval_shape(RULE.init, shapes))
    homes = sharding.like_parameters(mesh, abstract, shapes)
    params = put(0)
    opt_state = jax.jit(RULE.init, out_shardings=homes.opt_state)(params)
    state = TrainState(step=jax.device_put(np.int32(0), homes.step), params=params, opt_state=opt_state)
    return model, state, {BEGINNING: put(1)}, homes


def compiled(mesh, homes):
    return {
        "out_shardings": (homes, NamedSharding(mesh, PartitionSpec())),
        "compiler_options": {"xla_backend_optimization_level": 0},
    }


def meshed(config):
    return make_mesh(config, jax.devices()[:1] if config == ONE else None)


def on_policy(task, tokenizer, config):
    """(the answers of each step, the means of its metrics, the last parameters)."""
    mesh, said, found = meshed(config), [], []
    prompts = np.empty(4, object)
    for i, record in enumerate(RECORDS):
        prompts[i] = Prompt(np.asarray(tokenizer.encode(record["prompt"]), np.int32), record["prompt"], record)

    def judges(asked, texts, records):
        said.append(texts)
        return np.float32([len(set(text)) / (1 + len(text)) for text in texts]), {}

    with jax.set_mesh(mesh):
        model, state, frozen, homes = begun(task, tokenizer, mesh)
        roller = Roller(model, tokenizer, judges, LENGTH - ANSWER, ANSWER)
        place = lambda rows: sharding.place_batch(rows, mesh)
        learner = Learner(task, model, roller, RULE, place, seed=0, accumulate=1, **compiled(mesh, homes))
        for _ in range(STEPS):
            state, metrics = learner(state, frozen, {"prompt": prompts, "weights": np.ones(4, np.float32)})
            found.append({name: float(total) / float(weight) for name, (total, weight) in metrics.items()})
    return said, found, state.params


def preferring(task, tokenizer, config):
    """(no answers, the losses, the last parameters): pairs that stand there, beside a reference."""
    mesh, found = meshed(config), []
    documents = open_documents(RECORDS, task.columns)
    fields = task.fields(tokenizer.vocab_size)
    store = prepare(documents, lambda each: task.examples(each, tokenizer), fields, repr(task))
    batch = EvaluationBatches(task.rows(store, tokenizer, LENGTH, None), 4).batch(0)
    with jax.set_mesh(mesh):
        model, state, frozen, homes = begun(task, tokenizer, mesh)
        step = jax.jit(make_step(task.loss(model, train=True), RULE), donate_argnums=0, **compiled(mesh, homes))
        for _ in range(STEPS):
            state, metrics = step(state, frozen, sharding.place_batch(batch, mesh))
            found.append({name: float(total) / float(weight) for name, (total, weight) in metrics.items()})
    return [], found, state.params


@pytest.mark.parametrize(
    ("run", "task"),
    [*((on_policy, task) for task in ON_POLICY.values()), (preferring, Prefer(answer_length=ANSWER))],
    ids=[*ON_POLICY, "dpo"],
)
def test_eight_devices_align_as_one(run, task, tokenizer):
    """Answers are drawn token for token the same; metrics agree to float32 noise, relative 1e-4."""
    (said, one, _), (again, eight, params) = (run(task, tokenizer, config) for config in (ONE, EIGHT))
    assert said == again
    assert one[0]["loss"] != one[1]["loss"]
    for here, there in zip(one, eight, strict=True):
        assert here.keys() == there.keys()
        for name, value in here.items():
            assert there[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    kernel = params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
