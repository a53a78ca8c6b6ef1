"""Products with parameters, and the adapter beside them: the same law for every path of every tiny model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import tree
from jaxformer.nn import linear
from jaxformer.nn.linear import Embed, Linear, Unembed, adapted, axes, product
from jaxformer.nn.model import Model
from jaxformer.sharding import abstract_params
from jaxformer.testing import randomized, tiny_models

RANK, SCALE = 2, 0.7
KERNELS = ["**/{query,key,value,out,up,gate,down}/kernel", "heads/lm/kernel"]
random = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(random.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("x", "kernel", "inputs", "einsum"),
    [
        ((2, 3, 4), (4, 5), 1, "btd,df->btf"),
        ((2, 3, 4), (4, 2, 5), 1, "btd,dhc->bthc"),
        ((2, 3, 2, 5), (2, 5, 4), 2, "bthc,hcd->btd"),
    ],
)
def test_a_product_runs_over_the_shared_axes(x, kernel, inputs, einsum):
    x, kernel = draw(*x), draw(*kernel)
    np.testing.assert_allclose(product(x, kernel, inputs), jnp.einsum(einsum, x, kernel), rtol=1e-6, atol=1e-6)
    assert product(x.astype(jnp.bfloat16), kernel, inputs).dtype == jnp.bfloat16


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_has_a_bias_where_wanted(bias):
    linear, x = Linear((4,), (2, 3), bias), draw(5, 4)
    params = randomized(linear.init(jax.random.key(0), x)["params"], jax.random.key(1))
    assert set(params) == {"kernel", "bias"} if bias else {"kernel"}
    expected = np.tensordot(x, params["kernel"], 1) + (np.asarray(params["bias"])[None] if bias else 0)
    np.testing.assert_allclose(linear.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-6)


def test_kernels_begin_with_unit_gain():
    params = Linear((20, 10), (300,)).init(jax.random.key(0), jnp.ones((1, 20, 10)))["params"]
    assert np.std(params["kernel"]) == pytest.approx(200**-0.5, rel=0.02)


def test_an_index_outside_the_table_gives_not_a_number_for_itself_alone():
    embed = Embed(3, 4)
    params = embed.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), "float32")
    rows = embed.apply(params, jnp.asarray([[0, 3, 2]]), "bfloat16")
    assert rows.dtype == "bfloat16"
    assert np.isnan(rows).all(-1).tolist() == [[False, True, False]]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, 3.0)])
def test_unembedding_is_a_product_a_scale_and_a_cap(tied, scale, softcap):
    hidden, kernel, adapter = (
        draw(2, 3, 4),
        draw(4, 9),
        {"a": draw(4, 2), "b": draw(2, 9), "scale": jnp.float32(0.3)},
    )
    merged = kernel + adapter["a"] @ adapter["b"] * 0.3
    logits = np.asarray(hidden) * scale @ np.asarray(merged)
    expected = logits if softcap is None else softcap * np.tanh(logits / softcap)
    got = Unembed(kernel.T if tied else kernel, tied, scale, softcap, adapter)(hidden)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_logits_are_float32_whatever_the_hidden_vectors_are():
    hidden, kernel = draw(2, 3, 64).astype(jnp.bfloat16), draw(64, 9)
    logits = Unembed(kernel, False)(hidden)
    assert logits.dtype == jnp.float32
    exact = np.asarray(hidden, np.float64) @ np.asarray(kernel.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", tiny_models())
def test_one_rule_says_how_each_kernel_is_shaped(kind):
    flat = tree.flatten(abstract_params(Model(tiny_models()[kind])))
    kernels = [path for path in flat if path.endswith("/kernel")]
    for path, (stacked, inputs) in tree.match(linear.KERNELS, kernels, "kernel").items():
        assert axes(path) == (stacked, inputs)
        assert 1 <= len(flat[path].shape) - stacked - inputs <= 2
        assert (stacked > 0) == ("/blocks/" in path)
    assert not any(axes(path) for path in flat if path not in kernels)


# Adapters ---------------------------------------------------------------------------------------------------


def adapter_of(shape, stacked, inputs):
    """Factors a [in, R], b [R, out] and a scale for a kernel of this shape, one of each for a layer if stacked."""
    layers, axes = shape[:stacked], shape[stacked:]
    return {
        "a": draw(*layers, int(np.prod(axes[:inputs])), RANK) * 0.3,
        "b": draw(*layers, RANK, int(np.prod(axes[inputs:]))) * 0.3,
        "scale": jnp.full(layers, SCALE),
    }


def adapters_of(params):
    flat = tree.flatten(
        tree.split(params, [k for k in KERNELS if k != "heads/lm/kernel" or "lm" in params["heads"]])[0]
    )
    return {
        path.removesuffix("/kernel"): adapter_of(leaf.shape, int("/blocks/" in path), 2 if "/out/" in path else 1)
        for path, leaf in flat.items()
    }


def nested(adapters):
    return tree.unflatten({f"{path}/{name}": leaf for path, one in adapters.items() for name, leaf in one.items()})


def merged(params, adapters):
    flat = tree.flatten(params)
    for path, one in adapters.items():
        kernel = flat[f"{path}/kernel"]
        change = jnp.einsum("...ir,...ro,...->...io", one["a"], one["b"], one["scale"])
        flat[f"{path}/kernel"] = kernel + change.reshape(kernel.shape)
    return tree.unflatten(flat)


def listed(nest, layers):
    """Blocks as one dict a layer."""
    cut = lambda blocks: [jax.tree.map(lambda leaf: leaf[i], blocks) for i in range(layers)]
    return {name: part | {"blocks": cut(part["blocks"])} if "blocks" in part else part for name, part in nest.items()}


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, variables, tokens):
    return model.apply(variables, *tokens).logits


@pytest.fixture(params=["rotary", "encoder_decoder"], scope="module")
def case(request):
    config = tiny_models()[request.param]
    model = Model(config, compute="float32")
    params = randomized({"heads": {}} | abstract_params(model), jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, config.vocab)
    adapters = adapters_of(params)
    assert len(adapters) > 6
    return model, params, (tokens, tokens[:, ::-1])[: 1 + (request.param == "encoder_decoder")], adapters


def close(got, want, atol=2e-5):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol * float(jnp.abs(want).max()))


def test_an_adapter_with_a_zero_factor_is_the_base(case):
    model, params, tokens, adapters = case
    zero = {path: one | {"b": jnp.zeros_like(one["b"])} for path, one in adapters.items()}
    base = logits_of(model, {"params": params}, tokens)
    np.testing.assert_array_equal(logits_of(model, {"params": params, "lora": nested(zero)}, tokens), base)


def test_adapters_applied_equal_adapters_merged(case):
    model, params, tokens, adapters = case
    applied = logits_of(model, {"params": params, "lora": nested(adapters)}, tokens)
    close(applied, logits_of(model, {"params": merged(params, adapters)}, tokens))
    assert not np.allclose(applied, logits_of(model, {"params": params}, tokens), atol=0.1)


def test_adapters_of_a_list_of_layers_equal_those_of_the_stack(case):
    model, params, tokens, adapters = case
    variables = {"params": params, "lora": nested(adapters)}
    layers = (model.config.decoder or model.config.encoder).layers
    looped = {name: listed(part, layers) for name, part in variables.items()}
    close(logits_of(model, looped, tokens), logits_of(model, variables, tokens))


def test_an_adapter_may_hold_some_paths_alone(case):
    model, params, tokens, adapters = case
    some = {path: one for path, one in adapters.items() if path.endswith(("query", "down"))}
    applied = logits_of(model, {"params": params, "lora": nested(some)}, tokens)
    close(applied, logits_of(model, {"params": merged(params, some)}, tokens))


def test_gradients_reach_the_factors_as_if_they_were_merged():
    model = Model(tiny_models()["rotary"], compute="float32")
    params = randomized(abstract_params(model), jax.random.key(0))
    tokens = (jnp.asarray([[3, 1, 4, 1, 5]]),)
    adapters = {path: one for path, one in adapters_of(params).items() if path.endswith(("query", "out", "lm"))}

    def loss(logits):
        return jnp.sum(jnp.sin(logits))

    through = jax.jit(jax.grad(lambda a: loss(model.apply({"params": params, "lora": nested(a)}, *tokens).logits)))
    around = jax.jit(jax.grad(lambda a: loss(model.apply({"params": merged(params, a)}, *tokens).logits)))
    got, want = tree.flatten(through(adapters)), tree.flatten(around(adapters))
    for path, leaf in got.items():
        assert np.any(leaf), path
        close(leaf, want[path], 1e-4)


def test_the_low_rank_term_is_computed_without_the_product_of_its_factors():
    one = adapter_of((64, 48), 0, 1)
    text = str(jax.make_jaxpr(lambda x: adapted(x, one, 1, (48,)))(draw(2, 3, 64)))
    assert "[2,3,2]" in text
    assert "64,48" not in text.replace(" ", "")
