"""The laws of a whole model, over tiny ones that between them have every part."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import sharding, tree
from jaxformer.config import Card
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models

CONFIGS = tiny_models()
BATCH, LENGTH, VOCAB, WIDTH = 2, 8, 37, 16
DECODERS = [name for name, config in CONFIGS.items() if config.encoder is None]
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH)), jnp.int32)


@functools.cache
def built(name):
    model = Model(CONFIGS[name], compute="float32")
    return model, randomized(sharding.abstract_params(model), jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model, params, *tokens, method=None, **given):
    return model.apply({"params": params}, *tokens, method=method, **given)


def close(got, want, atol=1e-5):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol * float(np.abs(np.asarray(want)).max()))


# What sees what ---------------------------------------------------------------------------------------------


def reach(name, **given):
    """bool [T, S]: whether the logits of token t have a gradient with respect to the input of token s."""
    model, params = built(name)
    embeddings = jnp.take(params["embed"]["embedding"], TOKENS[:1], axis=0)

    @jax.jit
    def jacobian(embeddings):
        logits, pull = jax.vjp(lambda e: model.apply({"params": params}, embeddings=e, **given).logits, embeddings)
        ways = jnp.eye(LENGTH)[:, None, :, None] * jnp.sin(jnp.arange(VOCAB) + 1.0)[None, None, None, :]
        return jax.lax.map(lambda way: pull(way)[0], jnp.broadcast_to(ways, (LENGTH, *logits.shape)))

    return np.any(np.asarray(jacobian(embeddings)) != 0, axis=(1, 3))


@pytest.mark.parametrize("name", DECODERS)
def test_the_future_never_leaks(name):
    np.testing.assert_array_equal(reach(name), np.tri(LENGTH, dtype=bool))


def test_an_encoder_sees_both_ways():
    assert reach("encoder").all()


def test_a_causal_encoder_sees_what_came_before():
    causal = dataclasses.replace(CONFIGS["encoder"].encoder, causal=True)
    model = Model(dataclasses.replace(CONFIGS["encoder"], encoder=causal), compute="float32")
    params = built("encoder")[1]
    close(apply(model, params, TOKENS).hidden[:, :3], apply(model, params, TOKENS[:, :3]).hidden)


def test_prefix_tokens_see_each_other_and_nothing_later():
    prefix = jnp.arange(LENGTH)[None] < 3
    seen = np.tri(LENGTH, dtype=bool)
    seen[:3, :3] = True
    np.testing.assert_array_equal(reach("learned", prefix=prefix), seen)


def test_segments_and_masked_tokens_have_no_gradient_either():
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 0]])
    same = np.asarray(segments[0][:, None] == segments[0][None]) & (np.asarray(segments[0]) > 0)[:, None]
    seen = reach("rotary", segments=segments)
    np.testing.assert_array_equal(seen[:-1], (same & np.tri(LENGTH, dtype=bool))[:-1])


# Padding and packing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
    """Neither that it is there, nor what stands in it."""
    model, params = built(name)
    both = model.config.encoder is not None and model.config.decoder is not None
    pad = ((0, 0), (3, 0) if side == "left" else (0, 3))
    mask = jnp.pad(jnp.ones_like(TOKENS, bool), pad)
    real = slice(3, None) if side == "left" else slice(0, LENGTH)

    def padded(value):
        tokens = jnp.pad(TOKENS, pad, constant_values=value)
        if both:
            return apply(model, params, tokens, tokens, mask=mask, decoder_mask=mask).logits[:, real]
        return apply(model, params, tokens, mask=mask).logits[:, real]

    close(padded(0), apply(model, params, *(TOKENS,) * (1 + both)).logits)
    np.testing.assert_array_equal(padded(0), padded(VOCAB - 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_packing_changes_nothing(name):
    """Two documents and padding in one row are two rows: positions start anew, and nobody sees the other."""
    model, params = built(name)
    both = model.config.encoder is not None and model.config.decoder is not None
    first, second = TOKENS[:1, :5], TOKENS[1:, :3]
    row = jnp.concatenate([first, second, jnp.zeros((1, 2), jnp.int32)], axis=1)
    segments = jnp.asarray([[1] * 5 + [2] * 3 + [0] * 2])
    if both:
        packed = apply(model, params, row, row, segments=segments, decoder_segments=segments).logits
    else:
        packed = apply(model, params, row, segments=segments).logits
    close(packed[:, :5], apply(model, params, *(first,) * (1 + both)).logits)
    close(packed[:, 5:8], apply(model, params, *(second,) * (1 + both)).logits)
    assert np.isfinite(packed).all()


@pytest.mark.parametrize("name", ["learned", "rotary", "encoder_decoder"])
def test_positions_may_be_given(name):
    model, params = built(name)
    both = model.config.encoder is not None
    tokens = (TOKENS,) * (1 + both)
    count = jnp.broadcast_to(jnp.arange(LENGTH)[None], TOKENS.shape)
    close(apply(model, params, *tokens, positions=count).logits, apply(model, params, *tokens).logits, 1e-6)
    other = apply(model, params, *tokens, positions=count * 2).logits
    assert not np.allclose(other, apply(model, params, *tokens).logits, atol=1e-2)


# Two stacks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    model, params = built("encoder_decoder")
    mask = jnp.arange(LENGTH)[None] < jnp.asarray([[LENGTH], [5]])
    target = TOKENS[:, ::-1]
    full = apply(model, params, TOKENS, target, mask=mask)
    return model, params, mask, target, full


def test_encode_and_decode_are_the_halves_of_the_whole(pair):
    model, params, mask, target, full = pair
    memory = apply(model, params, TOKENS, mask=mask, method="encode")
    close(memory, full.encoder_hidden)
    out = apply(model, params, target, encoder_hidden=memory, encoder_mask=mask, method="decode")
    close(out.hidden, full.hidden)
    assert out.logits is None
    close(apply(model, params, out.hidden, method="unembed"), full.logits)


def test_cached_decoding_makes_cross_keys_once_and_equals_the_full_pass(pair):
    model, params, mask, target, full = pair
    cache = model.empty_cache(BATCH, LENGTH, encoder_length=LENGTH)
    first = {"encoder_hidden": full.encoder_hidden, "encoder_mask": mask}
    out = apply(model, params, target[:, :4], cache=cache, method="decode", **first)
    hidden, cross = [out.hidden], out.cache.cross
    step = functools.partial(apply, model, params, method="decode")
    for i in range(4, LENGTH):
        out = step(target[:, i : i + 1], cache=out.cache)  # without the encoder's output
        hidden.append(out.hidden)
    close(jnp.concatenate(hidden, axis=1), full.hidden)
    jax.tree.map(np.testing.assert_array_equal, out.cache.cross, cross)


def test_the_decoder_needs_the_encoder(pair):
    model, params, _, target, _ = pair
    with pytest.raises(ValueError, match="encoder_hidden is missing"):
        model.apply({"params": params}, target, method="decode")
    with pytest.raises(ValueError, match="give empty_cache its encoder_length"):
        model.apply({"params": params}, target, cache=model.empty_cache(BATCH, LENGTH), method="decode")


# Precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_half_precision_is_for_activations_alone(name, compute):
    model, params = built(name)
    half = model.clone(compute=compute)
    out, exact = apply(half, params, TOKENS), apply(model, params, TOKENS)
    assert (out.hidden.dtype, out.logits.dtype) == (jnp.dtype(compute), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    close(out.logits, exact.logits, 0.05)


def test_softmax_and_norms_of_half_precision_are_in_float32():
    model, params = built("learned")
    half = model.clone(compute="bfloat16")
    jaxpr = jax.make_jaxpr(lambda p: half.apply({"params": p}, TOKENS).logits)(params)
    for equation in equations(jaxpr.jaxpr):
        if equation.primitive.name in ("exp", "rsqrt", "reduce_sum", "div"):
            assert {v.aval.dtype for v in equation.invars} <= {np.dtype("float32"), np.dtype("int32")}, equation


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_stored_half_precision_computes_in_float32_where_asked():
    model, _ = built("rotary")
    params = sharding.init(model, jax.random.key(0, impl="rbg"), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert apply(model, params, TOKENS).hidden.dtype == jnp.float32


# Mistakes ---------------------------------------------------------------------------------------------------

EMBEDDINGS = jnp.ones((BATCH, LENGTH, WIDTH))


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("learned", {"tokens": TOKENS.astype(jnp.float32)}, "tokens must be integers of shape"),
        ("learned", {"tokens": TOKENS[0]}, r"tokens must be integers of shape \[B, T\], got int32 \(8,\)"),
        ("learned", {"tokens": TOKENS, "embeddings": EMBEDDINGS}, "either tokens .* or embeddings"),
        ("encoder", {}, "either tokens .* or embeddings"),
        (
            "learned",
            {"tokens": TOKENS, "decoder_tokens": TOKENS},
            "decoder_tokens given, but this model has one stack",
        ),
        (
            "encoder",
            {"tokens": TOKENS, "decoder_mask": TOKENS > 0},
            "decoder_mask given, but this model has one stack",
        ),
        ("learned", {"tokens": TOKENS, "encoder_embeddings": EMBEDDINGS}, "encoder_embeddings given"),
        ("encoder", {"tokens": TOKENS, "cache": 1}, "this model has no decoder"),
    ],
)
def test_wrong_arguments_are_said(name, given, said):
    model, params = built(name)
    with pytest.raises(ValueError, match=said):
        model.apply({"params": params}, **given)


def test_segments_do_not_go_with_a_cache():
    model, params = built("learned")
    cache = model.empty_cache(BATCH, LENGTH)
    with pytest.raises(ValueError, match="cannot be combined with a cache"):
        model.apply({"params": params}, TOKENS, cache=cache, segments=jnp.ones_like(TOKENS))


def test_a_model_without_a_decoder_has_no_cache():
    with pytest.raises(ValueError, match="no decoder"):
        built("encoder")[0].empty_cache(1, 4)


def test_a_model_that_cannot_be_built_says_why():
    model = Model(dataclasses.replace(CONFIGS["rotary"], vocab=0))
    with pytest.raises(ValueError, match="vocab is 0"):
        sharding.abstract_params(model)


def test_a_token_outside_the_vocabulary_gives_not_a_number_and_spoils_no_other_row():
    model, params = built("rotary")
    logits = apply(model, params, TOKENS.at[0, 3].set(VOCAB)).logits
    assert np.isnan(logits[0, 3:]).all()
    assert np.isfinite(logits[1]).all()


# Values -----------------------------------------------------------------------------------------------------


def test_embeddings_stand_for_tokens():
    for name in ("rotary", "encoder"):
        model, params = built(name)
        embeddings = jnp.take(params["embed"]["embedding"], TOKENS, axis=0)
        close(apply(model, params, embeddings=embeddings).logits, apply(model, params, TOKENS).logits, 1e-6)


def test_logits_are_made_on_request_alone():
    model, params = built("rotary")
    assert model.apply({"params": params}, TOKENS, logits=False).logits is None


def test_a_model_is_a_value_and_its_card_no_part_of_it():
    model = Model(CONFIGS["rotary"])
    other = Model(CONFIGS["rotary"], card=Card("x", {"labels": ["a"]}, {"eos_token_id": 3}))
    assert model == other
    assert hash(model) == hash(other)
    assert model != Model(CONFIGS["learned"])
    assert model != Model(CONFIGS["rotary"], compute="float16")
    assert model.clone(remat="full").config is model.config


ATTENTION = [f"attention/{part}/kernel" for part in ("key", "out", "query", "value")]
NORMS = ["attention_norm/scale", "mlp_norm/scale"]
GRAMMAR = {
    "rotary": [
        *(
            f"decoder/blocks/{part}"
            for part in (*ATTENTION, "mlp/down/kernel", "mlp/gate/kernel", "mlp/up/kernel", *NORMS)
        ),
        *("decoder/norm/scale", "embed/embedding", "heads/lm/kernel"),
    ],
    "encoder_decoder": [
        "embed/embedding",
        *(
            f"{stack}/blocks/{part}"
            for stack, attentions in (("encoder", ["attention"]), ("decoder", ["attention", "cross"]))
            for part in (
                *(
                    f"{a}/{p}/{leaf}"
                    for a in attentions
                    for p in ("query", "key", "value", "out")
                    for leaf in ("kernel", "bias")
                ),
                *(f"mlp/{p}/{leaf}" for p in ("up", "down") for leaf in ("kernel", "bias")),
                *(f"{norm}_norm/{leaf}" for norm in (*attentions, "mlp") for leaf in ("scale", "bias")),
            )
        ),
    ],
}


@pytest.mark.parametrize("name", GRAMMAR)
def test_the_grammar_of_paths(name):
    shapes = tree.flatten(sharding.abstract_params(Model(CONFIGS[name])))
    print("\n".join(f"{path} {list(leaf.shape)}" for path, leaf in shapes.items()))
    assert sorted(shapes) == sorted(GRAMMAR[name])
    layers = {leaf.shape[0] for path, leaf in shapes.items() if "/blocks/" in path}
    assert layers == {2}


def test_the_shapes_of_paths():
    shapes = {
        path: leaf.shape for path, leaf in tree.flatten(sharding.abstract_params(Model(CONFIGS["learned"]))).items()
    }
    for path, shape in {
        "embed/embedding": (37, 16),
        "decoder/position/embedding": (64, 16),
        "decoder/blocks/attention/query/kernel": (2, 16, 4, 4),
        "decoder/blocks/attention/query/bias": (2, 4, 4),
        "decoder/blocks/attention/out/kernel": (2, 4, 4, 16),
        "decoder/blocks/attention/out/bias": (2, 16),
        "decoder/blocks/mlp/up/kernel": (2, 16, 32),
        "decoder/norm/bias": (16,),
    }.items():
        assert shapes[path] == shape, path
    encoder = tree.flatten(sharding.abstract_params(Model(CONFIGS["encoder"])))
    assert encoder["encoder/position/embedding"].shape == (66, 16)  # 64 and the offset
    assert "encoder/input_norm/scale" in encoder


# Initialisation ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    return sharding.init(Model(CONFIGS["rotary"]), jax.random.key(0))


def test_another_key_gives_other_parameters(drawn):
    other = sharding.init(Model(CONFIGS["rotary"]), jax.random.key(1))
    for path, leaf in tree.flatten(other).items():
        assert path.endswith("scale") or not np.allclose(leaf, tree.flatten(drawn)[path]), path


def test_equal_keys_give_equal_parameters_on_a_mesh_and_none_is_ever_whole_on_a_device(drawn):
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=8))
    params = sharding.init(Model(CONFIGS["rotary"]), jax.random.key(0), mesh=mesh)
    for path, leaf in tree.flatten(params).items():
        np.testing.assert_allclose(leaf, tree.flatten(drawn)[path], rtol=0, atol=1e-6, err_msg=path)
        whole = max(shard.data.size for shard in leaf.addressable_shards)
        if path.endswith(("kernel", "embedding")):
            assert whole * 8 == leaf.size, path
