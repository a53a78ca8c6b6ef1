"""Laws of adapters: what they begin as, what is trained of them, and that merged equals applied."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import lora, source, tree
from jaxformer.generation import generate
from jaxformer.lora import ALL_LINEAR, LoraConfig
from jaxformer.losses import cross_entropy
from jaxformer.nn.linear import Linear
from jaxformer.nn.model import Model
from jaxformer.sharding import abstract_params
from jaxformer.testing import randomized, tiny_models, with_dropout

KINDS = ["rotary", "shared", "relative"]
every_kind = pytest.mark.parametrize("kind", KINDS)
EVERY = (*ALL_LINEAR, "heads/**/kernel", "{encoder,decoder}/input_projection/kernel")


@functools.cache
def case(kind):
    """(model, parameters, tokens), all parameters drawn at random."""
    model = Model(tiny_models()[kind], compute="float32")
    params = randomized(abstract_params(model), jax.random.key(0))
    two = model.config.encoder is not None and model.config.decoder is not None
    return model, params, jax.random.randint(jax.random.key(1), (1 + two, 2, 7), 0, model.config.vocab)


def targets(params):
    """EVERY, without what these parameters do not have."""
    return tuple(pattern for pattern in EVERY if any(tree.matches(pattern, path) for path in tree.flatten(params)))


def trained(config, params, seed=2):
    """An adapter whose factors are both drawn at random."""
    factors, fixed = lora.split_scale(lora.init(config, params, jax.random.key(seed)))
    return lora.join_scale(randomized(factors, jax.random.key(seed)), fixed)


@functools.partial(jax.jit, static_argnums=0)
def outputs(model, variables, tokens):
    out = model.apply(variables, *tokens)
    return [leaf for leaf in (out.hidden, out.logits, out.pooled, out.extra) if leaf is not None]


def equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# What an adapter begins as.


def test_a_new_adapter_changes_no_bit_of_a_product():
    random = np.random.default_rng(0)
    x, kernel, bias, a = (jnp.float32(random.normal(size=size)) for size in ((9, 8), (8, 2, 5), (2, 5), (8, 3)))
    new = {"a": a, "b": jnp.zeros((3, 10)), "scale": jnp.float32(2.0)}
    held = {"params": {"kernel": kernel, "bias": bias}}
    linear = Linear((8,), (2, 5), True)
    np.testing.assert_array_equal(linear.apply(held | {"lora": new}, x), linear.apply(held, x))


@every_kind
def test_a_new_adapter_changes_nothing(kind):
    model, params, tokens = case(kind)
    config = LoraConfig(targets=targets(params))
    one, other = (lora.init(config, params, jax.random.key(seed)) for seed in (0, 1))
    got = outputs(model, {"params": params, "lora": one}, tokens)
    equal_trees(got, outputs(model, {"params": params, "lora": other}, tokens))
    # The compiler may join other operations where there is an adapter, and so round otherwise.
    for ours, want in zip(
        jax.tree.leaves(got), jax.tree.leaves(outputs(model, {"params": params}, tokens)), strict=True
    ):
        np.testing.assert_allclose(ours, want, rtol=0, atol=2e-6 * float(jnp.abs(want).max()))
    equal_trees(lora.merge(params, one), params)


@pytest.mark.parametrize("kind", tiny_models())
def test_every_kernel_but_those_of_experts_can_have_an_adapter(kind):
    params = abstract_params(Model(tiny_models()[kind]))
    kernels = {path for path in tree.flatten(params) if path.endswith("/kernel") and "/experts/" not in path}
    patterns = (*targets(params), *(["**/mlp/router/kernel"] if kind == "experts" else []))
    adapter = lora.init(LoraConfig(rank=3, targets=patterns), params, jax.random.key(0))
    assert {path.removesuffix("/a") for path in tree.flatten(adapter) if path.endswith("/a")} == {
        path.removesuffix("/kernel") for path in kernels
    }


def test_factors_have_the_kernels_sides_and_the_rank_between_them():
    params = case("rotary")[1]
    adapter = tree.flatten(lora.init(LoraConfig(rank=3, alpha=5.0, targets=EVERY[:2]), params, jax.random.key(0)))
    blocks = "decoder/blocks/attention"
    assert {path: leaf.shape for path, leaf in adapter.items() if path.startswith((f"{blocks}/", "heads"))} == {
        **{f"{blocks}/query/a": (2, 16, 3), f"{blocks}/query/b": (2, 3, 16), f"{blocks}/query/scale": (2,)},
        **{f"{blocks}/key/a": (2, 16, 3), f"{blocks}/key/b": (2, 3, 8), f"{blocks}/key/scale": (2,)},
        **{f"{blocks}/value/a": (2, 16, 3), f"{blocks}/value/b": (2, 3, 8), f"{blocks}/value/scale": (2,)},
        **{f"{blocks}/out/a": (2, 16, 3), f"{blocks}/out/b": (2, 3, 16), f"{blocks}/out/scale": (2,)},
        **{"heads/lm/a": (16, 3), "heads/lm/b": (3, 37), "heads/lm/scale": ()},
    }
    assert {str(leaf.dtype) for leaf in adapter.values()} == {"float32"}
    assert {float(number) for path in adapter if path.endswith("scale") for number in adapter[path].reshape(-1)} == {
        float(np.float32(5 / 3))
    }


def test_the_first_factor_is_drawn_evenly_from_within_the_root_of_its_inputs():
    shapes = {"decoder": {"blocks": {"mlp": {"down": {"kernel": jax.ShapeDtypeStruct((3, 400, 100), jnp.float32)}}}}}
    down = lora.init(LoraConfig(50, targets=("**/down/kernel",)), shapes, jax.random.key(0))["decoder"]["blocks"][
        "mlp"
    ]
    a = np.asarray(down["down"]["a"])
    assert np.abs(a).max() < 400**-0.5
    assert np.std(a) == pytest.approx((400 * 3) ** -0.5, rel=0.02)
    assert abs(a.mean()) < 1e-3
    assert len(np.unique(a[:, 0, 0])) == 3


def test_what_a_path_draws_depends_on_the_key_and_the_path_alone():
    params, key = case("rotary")[1], jax.random.key(0)
    one = tree.flatten(lora.init(LoraConfig(targets=("**/query/kernel",)), params, key))
    many = tree.flatten(lora.init(LoraConfig(targets=EVERY[:2]), params, key))
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, many[path])
    query, out = (many[f"decoder/blocks/attention/{name}/a"] for name in ("query", "out"))
    assert not np.allclose(query, out)
    assert not np.allclose(
        query, lora.init(LoraConfig(), params, jax.random.key(1))["decoder"]["blocks"]["attention"]["query"]["a"]
    )


def test_the_count_is_of_what_is_trained():
    params = case("rotary")[1]
    adapter = lora.init(LoraConfig(4, targets=("**/{query,key}/kernel",), dropout=0.5), params, jax.random.key(0))
    assert lora.count(adapter) == 2 * 4 * (16 + 16) + 2 * 4 * (16 + 8)


def test_all_that_is_wrong_with_a_config_is_said_at_once():
    config = LoraConfig(
        0, -1.0, ("**/qery/kernel", "**/experts/*/kernel", "embed/embedding", "**/query/kernel"), dropout=1.0
    )
    with pytest.raises(ValueError) as error:
        lora.init(config, case("experts")[1], jax.random.key(0))
    lines = [line[4:].split(";")[0] for line in str(error.value).splitlines()[1:]]
    experts = [f"decoder/blocks/mlp/experts/{name}/kernel" for name in ("down", "gate", "up")]
    assert lines == [
        "rank is 0: make it at least 1",
        "alpha is -1.0: make it above 0",
        "dropout is 1.0: make it at least 0 and below 1",
        "targets: no parameter's path matches **/qery/kernel",
        *(f"targets: {path} has no adapter: only kernels have one, and not those of experts" for path in experts),
        "targets: embed/embedding has no adapter: only kernels have one, and not those of experts",
    ]


# Merged equals applied.


@every_kind
def test_merged_equals_applied(kind):
    model, params, tokens = case(kind)
    adapter = trained(LoraConfig(3, 2.0, targets(params)), params)
    base, merged = jax.tree.map(np.array, params), lora.merge(params, adapter)
    applied = outputs(model, {"params": params, "lora": adapter}, tokens)
    alone = outputs(model, {"params": merged}, tokens)
    for got, want in zip(jax.tree.leaves(applied), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-5 * float(jnp.abs(want).max()))
    assert not np.allclose(applied[0], outputs(model, {"params": params}, tokens)[0], atol=0.05)
    equal_trees(params, base)  # untouched
    untouched = {path for path, leaf in tree.flatten(merged).items() if leaf is tree.flatten(params)[path]}
    assert untouched == {path for path in tree.flatten(params) if not path.endswith("/kernel")}


def test_merging_keeps_the_dtype_and_rounds_once():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), case("rotary")[1])
    adapter = trained(LoraConfig(), params)
    merged = tree.flatten(lora.merge(params, adapter))
    assert {leaf.dtype for leaf in merged.values()} == {jnp.dtype("bfloat16")}
    one = {
        name: np.asarray(leaf, np.float64) for name, leaf in adapter["decoder"]["blocks"]["attention"]["out"].items()
    }
    kernel = tree.flatten(params)["decoder/blocks/attention/out/kernel"]
    exact = np.asarray(kernel, np.float64) + (one["a"] @ one["b"] * one["scale"][:, None, None]).reshape(kernel.shape)
    got = np.asarray(merged["decoder/blocks/attention/out/kernel"], np.float64)
    assert (np.abs(got - exact) <= np.abs(exact) * 2**-8).all()


def test_what_cannot_be_merged_is_named():
    _, params, _ = case("rotary")
    adapter = tree.flatten(trained(LoraConfig(targets=("**/{query,down}/kernel",)), params))
    adapter = {path.replace("down", "sideways"): leaf for path, leaf in adapter.items()}
    adapter["decoder/blocks/attention/query/b"] = jnp.zeros((2, 8, 15))
    with pytest.raises(ValueError) as error:
        lora.merge(params, tree.unflatten(adapter))
    assert str(error.value).splitlines()[1:] == [
        "  - decoder/blocks/attention/query/kernel (2, 16, 4, 4): expected a (2, 16, 'R') and b (2, 'R', 16), "
        "got (2, 16, 8) and (2, 8, 15)",
        "  - decoder/blocks/mlp/sideways/kernel: no such parameter",
    ]


def test_generation_with_an_adapter_continues_as_the_merged_model():
    model, params, _ = case("relative")
    adapter = trained(LoraConfig(targets=ALL_LINEAR), params)
    ask = functools.partial(
        generate, model, tokens=[[3, 5], [7]], max_new_tokens=6, eos=(), decoder_tokens=[[1], [1]]
    )
    applied, merged = ask(params=params, adapter=adapter), ask(params=lora.merge(params, adapter))
    np.testing.assert_array_equal(applied.tokens, merged.tokens)
    assert not np.array_equal(applied.scores, ask(params=params).scores)


# What is trained.


@functools.partial(jax.jit, static_argnums=0)
def loss(model, tokens, moving, fixed, params, rngs=None):
    held = {"params": params, "lora": lora.join_scale(moving, fixed)}
    out = model.apply(held, *tokens, logits=False, deterministic=rngs is None, rngs=rngs)
    unembed = model.apply(held, method="unembedding")
    return cross_entropy(out.hidden, unembed, tokens[-1], jnp.ones(tokens[-1].shape))[0]


def test_the_factors_are_trained_and_neither_scale_nor_base():
    model, params, tokens = case("rotary")
    base = jax.tree.map(np.array, params)
    adapter = lora.init(LoraConfig(targets=EVERY[:2], dropout=0.1), params, jax.random.key(0))
    moving, fixed = lora.split_scale(adapter)
    assert {path.rpartition("/")[2] for path in tree.flatten(moving)} == {"a", "b"}
    assert {path.rpartition("/")[2] for path in tree.flatten(fixed)} == {"scale", "dropout"}
    equal_trees(lora.join_scale(moving, fixed), adapter)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(moving, state, fixed, params):
        value, gradient = jax.value_and_grad(functools.partial(loss, model, tokens))(moving, fixed, params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(moving, updates), state, value, gradient

    state, values, first = optimizer.init(moving), [], None
    for _ in range(20):
        moving, state, value, gradient = step(moving, state, fixed, params)
        first = first or gradient
        values.append(float(value))
    assert values[-1] < values[0] - 0.5
    for path, leaf in tree.flatten(first).items():  # b is 0: a moves from the second step on
        assert np.any(leaf) == path.endswith("/b"), path
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    equal_trees(params, base)


def test_no_gradient_of_a_frozen_kernel_is_computed():
    width, layers = 64, 3
    shapes = (
        {"kernel": (layers, width, width)},
        {"a": (layers, width, 2), "b": (layers, 2, width), "scale": (layers,)},
    )
    params, adapter = jax.tree.map(jnp.ones, shapes, is_leaf=lambda node: isinstance(node, tuple) and len(node) != 2)

    def total(adapter, params, x):
        layer = lambda x, held: (Linear((width,), (width,)).apply({"params": held[0], "lora": held[1]}, x), None)
        return jnp.sum(jax.lax.scan(layer, x, (params, adapter))[0] ** 2)

    def flops(which):
        lowered = jax.jit(jax.grad(total, which)).lower(adapter, params, jnp.ones((32, width)))
        return lowered.compile().cost_analysis()["flops"]

    one_product = 2 * 32 * width * width  # a scan's body is counted once
    assert flops((0, 1)) - flops(0) > 0.9 * one_product


# Dropout of the term's input.


def test_dropout_acts_on_the_terms_input_where_there_is_a_key():
    x, kernel = jnp.ones((50, 8)), jnp.zeros((8, 5))
    one = {"a": jnp.eye(8, 4), "b": jnp.eye(4, 5), "scale": jnp.ones(()), "dropout": jnp.float32(0.25)}
    apply = lambda rngs: Linear((8,), (5,)).apply({"params": {"kernel": kernel}, "lora": one}, x, rngs=rngs)
    np.testing.assert_array_equal(apply(None)[:, :4], 1)
    dropped = np.asarray(apply({"dropout": jax.random.key(0)}))
    assert set(np.unique(dropped[:, :4].round(5))) == {0.0, np.float32(4 / 3).round(5)}
    assert np.mean(dropped[:, :4] == 0) == pytest.approx(0.25, abs=0.08)


def test_dropout_differs_by_layer_module_and_key_and_spares_the_rest():
    model, params, tokens = case("rotary")
    config = LoraConfig(2, targets=("**/{query,down}/kernel", "heads/lm/kernel"), dropout=0.5)
    adapter = trained(config, params)
    assert "dropout" not in adapter["heads"]["lm"]
    value = lambda adapter, key: loss(
        model, tokens, *lora.split_scale(adapter), params, {"dropout": jax.random.key(key)}
    )
    assert value(adapter, 0) == value(adapter, 0)
    assert value(adapter, 0) != value(adapter, 1)
    none = tree.unflatten(
        {path: leaf * (path.rpartition("/")[2] != "dropout") for path, leaf in tree.flatten(adapter).items()}
    )
    plain = loss(model, tokens, *lora.split_scale(adapter), params)
    assert value(none, 0) == pytest.approx(float(plain), rel=1e-6)
    assert value(adapter, 0) != pytest.approx(float(plain), rel=1e-4)


def test_dropout_of_an_adapter_leaves_the_models_own_as_it_was():
    model, params, tokens = case("rotary")
    model = Model(with_dropout(model.config, 0.3), compute="float32")
    run = lambda rate: loss(
        model,
        tokens,
        *lora.split_scale(lora.init(LoraConfig(dropout=rate), params, jax.random.key(0))),
        params,
        {"dropout": jax.random.key(0)},
    )
    assert run(0.0) == run(0.9)


def test_a_published_folder_holds_the_merged_model(tmp_path):
    model, params, _ = case("rotary")
    adapter = trained(LoraConfig(), params)
    source.save_pretrained(tmp_path / "merged", model, params, adapter=adapter)
    equal_trees(source.from_pretrained(tmp_path / "merged")[1], lora.merge(params, adapter))
