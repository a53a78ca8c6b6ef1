"""One device equals eight: twelve steps of training on every kind of mesh, with all that a real run has.

Sums over devices are taken in another order: losses agree to float32 noise, relative 2e-5 after twelve steps.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer import sharding, tree
from jaxformer.nn.model import Model
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.sharding import MeshConfig, make_mesh
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.testing import randomized, tiny_models
from jaxformer.train.state import TrainState
from jaxformer.train.step import make_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_caches")]

STEPS, ROWS, LENGTH = 12, 8, 15
ONE = MeshConfig(1, 1, 1)
MESHES = {
    "data 8": MeshConfig(8, 1, 1),
    "fsdp 8": MeshConfig(1, 8, 1),
    "tensor 2 x fsdp 4": MeshConfig(1, 4, 2),
}


def nine_heads():
    config = tiny_models()["rotary"]
    block = config.decoder.pattern[0]
    attention = dataclasses.replace(block.attention, heads=9, kv_heads=3)
    stack = dataclasses.replace(config.decoder, pattern=(dataclasses.replace(block, attention=attention),))
    return dataclasses.replace(config, decoder=stack)


CONFIGS = {
    "learned, vocabulary 50257": dataclasses.replace(tiny_models()["learned"], vocab=50257),
    "rotary": tiny_models()["rotary"],
    "rotary, heads 9/3": nine_heads(),
}
CASES = [(name, mesh) for name in CONFIGS for mesh in MESHES if "9/3" not in name or "tensor" in mesh]


def batch(number, vocab):
    draw = np.random.default_rng(number)
    segments = np.sort(draw.integers(1, 4, (ROWS, LENGTH + 1)), axis=1).astype(np.int32)
    first = np.argmax(segments[:, :, None] == segments[:, None, :], axis=2)
    return {
        "tokens": draw.integers(0, vocab, (ROWS, LENGTH + 1)).astype(np.int32),
        "segments": segments,
        "positions": (np.arange(LENGTH + 1)[None] - first).astype(np.int32),
        "weights": (segments[:, 1:] == segments[:, :-1]).astype(np.float32),
    }


@functools.cache
def trained(name, mesh_config):
    """(losses, last state, its homes, the state before the last step, the lowered program) of one training."""
    config = CONFIGS[name]
    model = Model(config, compute="float32")
    mesh = make_mesh(mesh_config, jax.devices()[:1] if mesh_config == ONE else None)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=2, ema=0.9), STEPS)
    shapes = sharding.abstract_params(model)
    abstract = TrainState(step=np.int32(0), params=shapes, opt_state=jax.eval_shape(optimizer.init, shapes))
    homes = sharding.like_parameters(mesh, abstract, shapes)
    place = lambda number: sharding.place_batch(batch(number % 3, config.vocab), mesh)
    with jax.set_mesh(mesh):
        params = jax.device_put(randomized(shapes, jax.random.key(0)), homes.params)
        state = TrainState(step=jax.device_put(np.int32(0), homes.step), params=params, opt_state=())
        state = state.replace(opt_state=jax.jit(optimizer.init, out_shardings=homes.opt_state)(params))
        step = jax.jit(
            make_step(CausalLM().loss(model, train=True), optimizer),
            donate_argnums=0,
            out_shardings=(homes, NamedSharding(mesh, PartitionSpec())),
            compiler_options={"xla_backend_optimization_level": 0},  # half the time to compile; sums are as they were
        )
        lowered, losses = step.lower(state, None, place(0)), []
        step = lowered.compile()
        for number in range(STEPS):
            before = state
            state, metrics = step(before, None, place(number))
            total, weight = metrics["loss"]
            losses.append(float(total) / float(weight))
    return np.asarray(losses), state, homes, before, lowered.as_text()


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_eight_devices_train_as_one(name, mesh):
    one, eight = trained(name, ONE)[0], trained(name, MESHES[mesh])[0]
    assert one[-1] < one[0] - 0.1
    np.testing.assert_allclose(eight, one, rtol=2e-5)


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_parameters_and_optimizer_state_stay_where_they_were_made(name, mesh):
    _, state, homes, _, _ = trained(name, MESHES[mesh])
    for leaf, home in zip(jax.tree.leaves(state), jax.tree.leaves(homes), strict=True):
        assert leaf.sharding.is_equivalent_to(home, leaf.ndim)
    for path, leaf in tree.flatten(state.params).items():
        if mesh == "fsdp 8" and path.endswith(("kernel", "embedding")):
            assert {shard.data.size * 8 for shard in leaf.addressable_shards} == {leaf.size}, path


@pytest.mark.parametrize("mesh", ["data 8", "tensor 2 x fsdp 4"])
def test_the_state_is_donated(mesh):
    before = trained("rotary", MESHES[mesh])[3]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))


def test_the_constraints_of_a_block_are_in_the_program():
    """Its query, key, value and what attention gives, the inside of its feed-forward, its two residual sums, and the
    stack's input: each once forward and once for its gradient.
    """
    assert trained("rotary", MESHES["tensor 2 x fsdp 4"])[4].count("sdy.sharding_constraint") == 2 * 8
