"""However a stack is run, it computes the same: scanned, looped over, unrolled, its activations made anew."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import AttentionConfig
from jaxformer.nn.attention import View
from jaxformer.nn.block import Block, Memory
from jaxformer.nn.model import Model
from jaxformer.nn.positions import count, rotation
from jaxformer.nn.visibility import Visibility
from jaxformer.sharding import abstract_params
from jaxformer.testing import randomized, tiny_models, with_dropout

BATCH, LENGTH = 2, 9
ONE, TWO = jax.random.key(1), jax.random.key(2)
WAYS = ["scan dots 2", "scan full 1", "loop none 1"]


def build(name, rate=0.0, **run):
    model = Model(with_dropout(tiny_models()[name], rate), compute="float32", **run)
    tokens = jax.random.randint(jax.random.key(0), (BATCH, LENGTH), 0, model.config.vocab)
    return model, randomized(abstract_params(model), jax.random.key(3)), tokens


def looped(params, layers):
    blocks = params["decoder"]["blocks"]
    cut = [jax.tree.map(lambda leaf: leaf[i], blocks) for i in range(layers)]
    return params | {"decoder": params["decoder"] | {"blocks": cut}}


def stacked(params):
    blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["decoder"]["blocks"])
    return params | {"decoder": params["decoder"] | {"blocks": blocks}}


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(model, params, tokens, key):
    def loss(params):
        rngs = None if key is None else {"dropout": key}
        return jnp.sin(model.apply({"params": params}, tokens, deterministic=key is None, rngs=rngs).hidden).sum()

    return jax.value_and_grad(loss)(params)


@functools.partial(jax.jit, static_argnums=0)
def hidden(model, params, tokens, key=None):
    rngs = None if key is None else {"dropout": key}
    return model.apply({"params": params}, tokens, deterministic=key is None, rngs=rngs, logits=False).hidden


@pytest.fixture(scope="module")
def scanned():
    model, params, tokens = build("windowed", 0.1)
    return params, tokens, value_and_gradients(model, params, tokens, ONE)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_values_and_gradients_of_the_scan(scanned, way):
    """With dropout, so that what is computed anew must draw the same."""
    params, tokens, (value, gradients) = scanned
    form, remat, unroll = way.split()
    model = build("windowed", 0.1, remat=remat, unroll=int(unroll))[0]
    layers = model.config.decoder.layers
    got, found = value_and_gradients(model, looped(params, layers) if form == "loop" else params, tokens, ONE)
    found = stacked(found) if form == "loop" else found
    np.testing.assert_allclose(got, value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(np.abs(b).max())),
        found,
        gradients,
    )


@pytest.mark.parametrize(("remat", "more"), [("dots", 0), ("full", 1)])
def test_remat_runs_forward_products_again_as_it_says(remat, more):
    """`dots` keeps every product with a parameter; `full` keeps none of them."""

    def products(remat):
        model, params, tokens = build("rotary", remat=remat)
        text = value_and_gradients.lower(model, params, tokens, None).as_text()
        return text.count("dot_general")

    plain, score_products = products("none"), 2  # what a query sees is cheap to keep no trace of
    again = products(remat) - plain
    assert (again > score_products) if more else (0 <= again <= score_products)


def test_a_pattern_is_walked_again_and_again_each_block_with_its_own_settings():
    model, params, tokens = build("windowed")
    c = model.config.decoder
    assert [block.attention.window for block in c.pattern] == [None, 3]

    @jax.jit
    def by_hand(params):
        x = params["embed"]["embedding"][tokens]
        turn = rotation(count(tokens.shape), 4, c.pattern[0].attention.rope)
        for i in range(c.layers):
            block = c.pattern[i % 2]
            view = View(Visibility(causal=True, window=block.attention.window), rotation=turn)
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["decoder"]["blocks"])
            x, _, _ = Block(block).apply({"params": layer}, x, view, None, Memory(), None)
        x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + c.final_norm.eps)
        return x * params["decoder"]["norm"]["scale"][None, None]

    np.testing.assert_allclose(hidden(model, params, tokens), by_hand(params), atol=2e-5)


def test_a_block_of_a_pattern_has_its_own_rotation():
    model, params, tokens = build("windowed")
    far = dataclasses.replace(model.config.decoder.pattern[1].attention.rope, base=3.0)

    def with_rope(rope):
        first, second = model.config.decoder.pattern
        attention: AttentionConfig = dataclasses.replace(second.attention, rope=rope)
        pattern = (first, dataclasses.replace(second, attention=attention))
        stack = dataclasses.replace(model.config.decoder, pattern=pattern)
        return model.clone(config=dataclasses.replace(model.config, decoder=stack))

    plain, turned, still = (
        hidden(with_rope(rope), params, tokens)
        for rope in (model.config.decoder.pattern[0].attention.rope, far, None)
    )
    assert not np.allclose(plain, turned, atol=1e-2)
    assert not np.allclose(plain, still, atol=1e-2)


# Dropout ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["learned", "encoder_decoder"])
def dropping(request):
    model, params, tokens = build(request.param, 0.3)
    given = (tokens, tokens) if model.config.encoder else (tokens,)

    @jax.jit
    def run(key):
        return model.apply(
            {"params": params}, *given, deterministic=False, rngs={"dropout": key}, logits=False
        ).hidden

    plain = model.clone(config=tiny_models()[request.param])
    return model, plain, params, given, run


def test_equal_keys_drop_equal_bits_and_others_others(dropping):
    *_, run = dropping
    np.testing.assert_array_equal(run(ONE), run(ONE))
    assert not np.allclose(run(ONE), run(TWO), atol=1e-2)


def test_deterministic_ignores_dropout(dropping):
    model, plain, params, given, run = dropping
    quiet = model.apply({"params": params}, *given, logits=False).hidden
    np.testing.assert_array_equal(quiet, plain.apply({"params": params}, *given, logits=False).hidden)
    assert not np.allclose(quiet, run(ONE), atol=1e-2)


def test_training_without_a_key_is_an_error(dropping):
    model, _, params, given, _ = dropping
    with pytest.raises(Exception, match="dropout"):
        model.apply({"params": params}, *given, deterministic=False)


def kept_by_layer(rate=0.5, layers=2):
    """What dropout lets through of a stream of ones: layers whose sublayers give ones, and add to nothing."""
    model, params, _ = build("learned", rate)
    zero = jax.tree.map(jnp.zeros_like, params["decoder"]["blocks"])
    parts = []
    for layer in range(layers):
        for part in ("attention/out", "mlp/down"):
            group, name = part.split("/")
            ones = zero[group][name]["bias"].at[layer].set(1.0)
            blocks = zero | {group: zero[group] | {name: zero[group][name] | {"bias": ones}}}
            decoder = params["decoder"] | {"blocks": blocks}
            parts.append(params | {"decoder": decoder})
    stack = dataclasses.replace(model.config.decoder, final_norm=None)
    bare = model.clone(config=dataclasses.replace(model.config, decoder=stack))
    embeddings = jnp.zeros((4, 16, 16))

    @jax.jit
    def run(params):
        params = params | {
            "decoder": params["decoder"] | {"position": jax.tree.map(jnp.zeros_like, params["decoder"]["position"])}
        }
        return bare.apply(
            {"params": params},
            embeddings=embeddings,
            deterministic=False,
            rngs={"dropout": ONE},
            logits=False,
        ).hidden

    return [np.asarray(run(one)) for one in parts]


def test_each_sublayer_of_each_layer_drops_others_at_the_rate_and_scales_up_the_rest():
    kept = kept_by_layer()
    for one in kept:
        assert set(np.unique(one)) == {0.0, 2.0}
        assert np.mean(one > 0) == pytest.approx(0.5, abs=0.06)
    for i, one in enumerate(kept):
        for other in kept[:i]:
            assert 0.4 < np.mean(one == other) < 0.6


def test_what_writes_to_the_residual_stream_begins_small():
    model = build("learned")[0]
    blocks = jax.jit(model.init)(jax.random.key(1, impl="rbg"), jnp.zeros((1, 1), jnp.int32))["params"]["decoder"][
        "blocks"
    ]
    depth = (2 * model.config.decoder.layers) ** -0.5
    for group, name, inputs, factor in (
        ("attention", "query", 16, 1),
        ("attention", "out", 16, depth),
        ("mlp", "down", 32, depth),
    ):
        kernel = np.asarray(blocks[group][name]["kernel"])
        assert kernel.std() == pytest.approx(inputs**-0.5 * factor, rel=0.12), name
        assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize("scale", [None, 1.0, 0.1])
def test_scores_begin_alike_whatever_they_are_multiplied_by(scale):
    """Else a T5 from scratch, whose scale is 1, would begin with each query looking at one key alone."""
    attention, x = AttentionConfig(4, 4, 16, scale=scale), jax.random.normal(ONE, (1, 8, 64))
    view = View(Visibility())
    layer = Block(dataclasses.replace(tiny_models()["rotary"].decoder.pattern[0], attention=attention), parent=None)
    params = layer.init(TWO, x, view, None, Memory(), None)["params"]["attention"]
    query, key = (np.asarray(params[name]["kernel"]) for name in ("query", "key"))
    assert query.std() * (0.25 if scale is None else scale) == pytest.approx(64**-0.5 * 16**-0.5, rel=0.05)
    assert key.std() == pytest.approx(64**-0.5, rel=0.05)
