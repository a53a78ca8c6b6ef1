"""Experts beside a dense loop over them: what each token gets, its gradient, and what routers add to the loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import sharding, tree
from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    ExpertsConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    StackConfig,
)
from jaxformer.nn.experts import Experts
from jaxformer.nn.model import Model
from jaxformer.sharding import MeshConfig
from jaxformer.testing import randomized

B, T, D, F, E = 3, 7, 12, 10, 5
CONFIGS = {
    "two of five": ExpertsConfig(F, E, 2),
    "one of five": ExpertsConfig(F, E, 1),
    "all of five, not normalised": ExpertsConfig(F, E, E, normalize=False),
    "three of five, not normalised, gelu": ExpertsConfig(F, E, 3, "gelu", normalize=False),
}
ACTIVATIONS = {"silu": jax.nn.silu, "gelu": functools.partial(jax.nn.gelu, approximate=False)}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def drawn(config, seed=0):
    shapes = jax.eval_shape(lambda: Experts(config).init(jax.random.key(0), jnp.zeros((1, 1, D))))["params"]
    return randomized(shapes, jax.random.key(seed)), jax.random.normal(jax.random.key(seed + 1), (B, T, D))


def dense(config, params, x):
    """Every expert works on every token; what was not chosen weighs nothing."""
    probabilities = jax.nn.softmax(x @ params["router"]["kernel"])
    best, chosen = jax.lax.top_k(probabilities, config.top_k)
    if config.normalize:
        best = best / best.sum(-1, keepdims=True)
    bank, out = params["experts"], jnp.zeros_like(x)
    for e in range(config.experts):
        gate, up, down = (bank[name]["kernel"][e] for name in ("gate", "up", "down"))
        y = (ACTIVATIONS[config.activation](x @ gate) * (x @ up)) @ down
        out += y * jnp.sum(jnp.where(chosen == e, best, 0), -1, keepdims=True)
    return out


@every_config
def test_values_and_gradients_are_those_of_a_loop_over_all_experts(config):
    params, x = drawn(config)
    sparse = lambda params, x: Experts(config).apply({"params": params}, x)[0]
    results = []
    for layer in (sparse, functools.partial(dense, config)):
        loss = lambda params, x, layer=layer: (jnp.sin(layer(params, x)).sum(), layer(params, x))
        with jax.default_matmul_precision("highest"):
            results.append(jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *results)


def test_experts_that_nobody_takes_have_no_gradient():
    config = CONFIGS["one of five"]
    params, x = drawn(config)
    params["router"]["kernel"] = jnp.zeros((D, E)).at[0, 3].set(100.0)
    x = x.at[:, :, 0].set(1.0)  # which alone the router looks at
    loss = lambda params: Experts(config).apply({"params": params}, x)[0].sum()
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)["experts"]):
        assert np.abs(leaf).max(axis=(1, 2)).nonzero()[0].tolist() == [3]


@every_config
def test_a_token_gets_the_same_whatever_the_others_are(config):
    params, x = drawn(config)
    apply = jax.jit(lambda x: Experts(config).apply({"params": params}, x)[0])
    np.testing.assert_array_equal(
        apply(x)[1, 2], apply(jnp.where(jnp.arange(T)[None, :, None] == 2, x, -3 * x))[1, 2]
    )


def test_the_router_works_in_float32():
    """Its ranks among near equals are those of float32 whatever the activations are."""
    params, x = drawn(CONFIGS["two of five"])
    x = x.astype(jnp.bfloat16)
    aux = [Experts(CONFIGS["two of five"]).apply({"params": params}, each)[1] for each in (x, x.astype(jnp.float32))]
    assert {leaf.dtype for leaf in jax.tree.leaves(aux)} == {jnp.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, *aux)


# What routers add to the loss.


def test_even_routing_is_balanced():
    config = CONFIGS["all of five, not normalised"]
    params, x = drawn(config)
    params["router"]["kernel"] *= 0
    aux = Experts(config).apply({"params": params}, x)[1]
    np.testing.assert_allclose(aux.load_balance, 1.0, rtol=1e-6)
    np.testing.assert_allclose(aux.router_z, np.log(E) ** 2, rtol=1e-6)


@every_config
def test_padding_does_not_count_in_what_routers_add(config):
    params, x = drawn(config)
    real = jnp.arange(T)[None] < jnp.asarray([[T], [3], [1]])
    apply = jax.jit(lambda x, real: Experts(config).apply({"params": params}, x, real)[1])
    some, others = apply(x, real), apply(jnp.where(real[:, :, None], x, 7.0), real)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), some, others)
    alone = Experts(config).apply({"params": params}, x[real][None])[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), some, alone)
    assert not np.isclose(some.router_z, Experts(config).apply({"params": params}, x)[1].router_z)


@pytest.mark.parity
@pytest.mark.parametrize("padded", [False, True])
def test_the_balance_of_one_layer_is_that_of_the_reference(padded):
    """Which counts each of a token's K choices as a whole one: K times ours."""
    torch = pytest.importorskip("torch")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = CONFIGS["two of five"]
    params, x = drawn(config)
    real = jnp.arange(T)[None] < jnp.asarray([[T], [3 if padded else T], [1 if padded else T]])
    ours = Experts(config).apply({"params": params}, x, real if padded else None)[1].load_balance
    logits = torch.tensor(np.asarray(x @ params["router"]["kernel"]).reshape(-1, E))
    mask = torch.tensor(np.asarray(real)) if padded else None
    theirs = load_balancing_loss_func((logits,), E, config.top_k, mask)
    np.testing.assert_allclose(config.top_k * ours, float(theirs), rtol=1e-5)


# In a model.


def model(layers=3, **run):
    block = BlockConfig(
        AttentionConfig(4, 2, 4, rope=RopeConfig()), ExpertsConfig(10, 4, 2), NormConfig("rms"), dropout=0.0
    )
    near = dataclasses.replace(block, attention=dataclasses.replace(block.attention, window=3))
    stack = StackConfig((block, near), layers, causal=True, final_norm=block.norm)
    return Model(ModelConfig(37, 16, decoder=stack), compute="float32", **run)


@functools.cache
def parameters(layers=3):
    return randomized(sharding.abstract_params(model(layers)), jax.random.key(3))


@pytest.mark.parametrize("run", [{}, {"unroll": 2, "remat": "full"}], ids=str)
def test_sums_over_layers_are_the_same_scanned_and_looped_over(run):
    params, tokens = parameters(), jax.random.randint(jax.random.key(0), (2, 9), 0, 37)
    mask = jnp.arange(9)[None] < jnp.asarray([[9], [5]])
    blocks = params["decoder"]["blocks"]
    cut = [jax.tree.map(lambda leaf: leaf[i], blocks) for i in range(3)]
    listed = params | {"decoder": params["decoder"] | {"blocks": cut}}

    @jax.jit
    def both(params):
        def loss(params):
            aux = model(**run).apply({"params": params}, tokens, mask=mask, logits=False).aux
            return aux.load_balance + 0.1 * aux.router_z, aux

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, scanned), gradients = both(params)
    (_, looped), of_listed = both(listed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), scanned, looped)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_listed["decoder"]["blocks"])
    routers = [found["mlp"]["router"]["kernel"] for found in (gradients["decoder"]["blocks"], stacked)]
    np.testing.assert_allclose(*routers, rtol=1e-3, atol=1e-5)
    assert np.abs(routers[0]).max() > 1e-3


@pytest.mark.parametrize("name", ["gate", "up", "down"])
def test_an_adapter_of_experts_is_refused(name):
    leaves = {"a": jnp.ones((3, 4, 16, 2)), "b": jnp.ones((3, 4, 2, 10)), "scale": jnp.ones((3,))}
    lora = {"decoder": {"blocks": {"mlp": {"experts": {name: leaves}}}}}
    with pytest.raises(ValueError, match=f"adapter holds {name} of the experts"):
        model().apply({"params": parameters(), "lora": lora}, jnp.zeros((1, 2), jnp.int32))


def test_an_adapter_of_the_router_is_applied():
    leaves = {"a": jnp.ones((3, 16, 2)), "b": jnp.arange(24.0).reshape(3, 2, 4), "scale": jnp.ones((3,))}
    lora = {"decoder": {"blocks": {"mlp": {"router": leaves}}}}
    tokens = jnp.arange(5)[None]
    hidden = [model().apply({"params": parameters(), **more}, tokens).hidden for more in ({}, {"lora": lora})]
    assert np.abs(hidden[0] - hidden[1]).max() > 1e-3


def losses(mesh_config):
    """Losses of four steps of plain descent on one batch, and where the experts lay."""
    made = model(layers=2)
    devices = None if mesh_config.data * mesh_config.expert > 1 else jax.devices()[:1]
    mesh = sharding.make_mesh(mesh_config, devices)
    homes = sharding.shardings(mesh, sharding.abstract_params(made))
    tokens = np.random.default_rng(0).integers(0, 37, (8, 9)).astype(np.int32)

    @functools.partial(jax.jit, out_shardings=(homes, None))
    def step(params, tokens):
        def loss(params):
            out = made.apply({"params": params}, tokens[:, :-1])
            picked = jnp.take_along_axis(jax.nn.log_softmax(out.logits), tokens[:, 1:, None], -1)
            return 0.01 * out.aux.load_balance + 1e-3 * out.aux.router_z - picked.mean()

        value, gradients = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda leaf, g: leaf - 0.3 * g, params, gradients), value

    with jax.set_mesh(mesh):
        params, found = jax.device_put(parameters(2), homes), []
        batch = sharding.place_batch({"tokens": tokens}, mesh)["tokens"]
        for _ in range(4):
            params, value = step(params, batch)
            found.append(float(value))
    return found, tree.flatten(params)["decoder/blocks/mlp/experts/up/kernel"]


def test_experts_over_eight_devices_train_as_on_one():
    one, _ = losses(MeshConfig(1, 1, 1))
    eight, kernel = losses(MeshConfig(data=2, expert=4))
    assert one[-1] < one[0] - 0.05
    np.testing.assert_allclose(eight, one, rtol=2e-5)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 1, 16, 10)}
