"""Cached decoding, seen from the model: however it is split or padded, the logits are those of one pass."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    StackConfig,
)
from jaxformer.nn.model import Model

VOCAB, WIDTH, LAYERS, BATCH, LENGTH = 37, 16, 2, 3, 9


def learned():
    attention = AttentionConfig(4, 4, 4, bias=("query", "key", "value", "out"))
    block = BlockConfig(attention, MlpConfig(32, "gelu_tanh"))
    return StackConfig((block,), LAYERS, True, InputConfig(LearnedConfig(64)), NormConfig())


def rotary(window=None):
    attention = AttentionConfig(4, 2, 4, rope=RopeConfig())
    block = BlockConfig(attention, MlpConfig(24, "silu", gated=True, bias=False), NormConfig("rms"))
    other = dataclasses.replace(block, attention=dataclasses.replace(attention, window=window))
    return StackConfig((block,) if window is None else (block, other), LAYERS, True, final_norm=NormConfig("rms"))


STACKS = {"learned": learned(), "rotary": rotary(), "windowed": rotary(window=3)}
CASES = ["learned listed", "rotary scanned", "windowed scanned", "windowed listed"]


def drawn(model, tokens, scale=0.3):
    """Parameters with none at its neutral initial value."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens)["params"])
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(0, scale, x.shape), x.dtype), shapes)


def layer_list(params):
    host = jax.tree.map(np.asarray, params["decoder"]["blocks"])
    layers = [jax.tree.map(operator.itemgetter(i), host) for i in range(LAYERS)]
    return params | {"decoder": params["decoder"] | {"blocks": layers}}


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, tokens, **given):
    return model.apply({"params": params}, tokens, **given)


@pytest.fixture(params=CASES, scope="module")
def case(request):
    stack, form = request.param.split()
    model = Model(ModelConfig(VOCAB, WIDTH, decoder=STACKS[stack]), compute="float32")
    tokens = jnp.asarray(np.random.default_rng(1).integers(VOCAB, size=(BATCH, LENGTH)), jnp.int32)
    params = drawn(model, tokens)
    full = apply(model, params, tokens).logits
    listed = form == "listed"
    return model, layer_list(params) if listed else params, listed, tokens, full


@pytest.mark.parametrize("pieces", [(9,), (5, 1, 1, 1, 1)], ids=str)
def test_cached_decoding_equals_the_full_pass(case, pieces):
    model, params, listed, tokens, full = case
    cache, logits = model.empty_cache(BATCH, 16, listed=listed), []
    for piece in jnp.split(tokens, np.cumsum(pieces)[:-1], axis=1):
        out = apply(model, params, piece, cache=cache)
        cache, logits = out.cache, [*logits, out.logits]
    assert int(cache.end) == LENGTH
    np.testing.assert_allclose(jnp.concatenate(logits, 1), full, atol=1e-5 * np.abs(full).max(), rtol=0)


def test_left_padding_and_growing_change_nothing(case):
    model, params, listed, tokens, full = case
    pad = 4
    padded = jnp.pad(tokens, ((0, 0), (pad, 0)), constant_values=5)
    mask = jnp.broadcast_to(jnp.arange(LENGTH + pad)[None] >= pad, padded.shape)
    head = LENGTH + pad - 3
    out = apply(
        model,
        params,
        padded[:, :head],
        mask=mask[:, :head],
        cache=model.empty_cache(BATCH, head, listed=listed),
    )
    grown = jax.jit(lambda cache: cache.grown(head + 5))(out.cache)
    assert grown.slots == head + 5
    late = apply(model, params, padded[:, head:], cache=grown)
    np.testing.assert_allclose(late.logits, full[:, -3:], atol=1e-5 * np.abs(full).max(), rtol=0)
    np.testing.assert_array_equal(late.cache.positions[:, pad : pad + LENGTH], np.tile(np.arange(LENGTH), (BATCH, 1)))


def test_what_masked_slots_hold_changes_no_bit(case):
    model, params, listed, tokens, _ = case
    mask = jnp.arange(LENGTH)[None] >= jnp.array([[0], [2], [5]])

    @jax.jit
    def run(garbage):
        cache = model.empty_cache(BATCH, 16, listed=listed)
        cache = cache.replace(layers=jax.tree.map(lambda leaf: leaf + garbage, cache.layers))
        hidden = jnp.where(mask, tokens, garbage.astype(jnp.int32) % VOCAB)
        out = apply(model, params, hidden[:, :-1], mask=mask[:, :-1], cache=cache)
        return apply(model, params, tokens[:, -1:], cache=out.cache).logits

    np.testing.assert_array_equal(run(jnp.float32(0)), run(jnp.float32(1000)))


def test_repeated_rows_go_on_as_their_original(case):
    model, params, listed, tokens, _ = case
    cache = apply(model, params, tokens[:, :-1], cache=model.empty_cache(BATCH, 12, listed=listed)).cache
    once = apply(model, params, tokens[:, -1:], cache=cache).logits
    twice = apply(
        model, params, np.repeat(tokens[:, -1:], 2, 0), cache=jax.jit(lambda cache: cache.repeated(2))(cache)
    ).logits
    np.testing.assert_allclose(twice, np.repeat(once, 2, 0), atol=1e-5 * np.abs(once).max(), rtol=0)


def test_the_books_count_slots_and_positions(case):
    model, params, listed, tokens, _ = case
    mask = jnp.arange(4)[None] >= jnp.array([[0], [1], [3]])
    out = apply(model, params, tokens[:, :4], mask=mask, cache=model.empty_cache(BATCH, 8, listed=listed))
    np.testing.assert_array_equal(out.cache.valid[:, :4], mask)
    assert not out.cache.valid[:, 4:].any()
    assert out.cache.positions[:, 3].tolist() == [3, 2, 0]
    assert int(out.cache.end) == 4
