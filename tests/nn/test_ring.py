"""Layers with a window keep few slots, and decode as if they kept all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import AlibiConfig
from jaxformer.nn.cache import Cache, LayerCache, places_of, slots_of
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models

BATCH, LENGTH, SLOTS, WINDOW, WRITTEN = 3, 66, 96, 5, 28
RING = WINDOW + WRITTEN - 1
PIECES = (28, 1, 28, 1, 8)


def stacks():
    """By their windows: one for all layers; some layers without, and one left of the pattern; beside distances."""
    tiny = tiny_models()
    near, wide = tiny["windowed"].decoder.pattern[::-1]
    see = lambda block, window: dataclasses.replace(
        block, attention=dataclasses.replace(block.attention, window=window)
    )
    mixed = dataclasses.replace(tiny["rotary"].decoder, pattern=(see(near, WINDOW), see(near, 4), wide), layers=4)
    near = dataclasses.replace(mixed, pattern=mixed.pattern[:1], layers=2)
    alibi = tiny["alibi"].decoder
    alibi = dataclasses.replace(alibi, pattern=(see(alibi.pattern[0], WINDOW), alibi.pattern[0]))
    assert isinstance(alibi.bias, AlibiConfig)
    return {"near": near, "mixed": mixed, "alibi": alibi, "short": dataclasses.replace(mixed, layers=2)}


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, tokens, **given):
    return model.apply({"params": params}, tokens, **given)


def made(stack):
    model = Model(dataclasses.replace(tiny_models()["rotary"], decoder=stacks()[stack]), compute="float32")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    return model, randomized(shapes, jax.random.key(0))


def listed_blocks(params, layers):
    blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], params["decoder"]["blocks"]) for i in range(layers)]
    return params | {"decoder": params["decoder"] | {"blocks": blocks}}


CASES = [
    "near scanned",
    "near listed",
    "mixed scanned",
    "mixed listed",
    "alibi scanned",
    "short scanned",
    "short listed",
]


@pytest.fixture(params=CASES, scope="module")
def case(request):
    stack, form = request.param.split()
    model, params = made(stack)
    tokens = jnp.asarray(np.random.default_rng(1).integers(37, size=(BATCH, LENGTH)), jnp.int32)
    mask = jnp.arange(LENGTH)[None] >= jnp.array([[0], [2], [30]])
    full = apply(model, params, tokens, mask=mask).logits
    listed = form == "listed"
    params = listed_blocks(params, model.config.decoder.layers) if listed else params
    return model, params, listed, tokens, mask, np.asarray(full)


def agree(found, full, mask):
    where = np.asarray(mask)
    np.testing.assert_allclose(np.asarray(found)[where], full[where], atol=1e-5 * np.abs(full).max(), rtol=0)


def read(case, cache, pieces):
    """(the logits of so many tokens at a time from the cache's end on, the cache behind them)."""
    model, params, _, tokens, mask, _ = case
    logits, at = [], int(cache.end)
    for size in pieces:
        piece = slice(at, at + size)
        out = apply(model, params, tokens[:, piece], mask=mask[:, piece], cache=cache)
        cache, logits, at = out.cache, [*logits, out.logits], at + size
    return jnp.concatenate(logits, 1), cache


def test_rings_from_the_start_give_the_logits_of_one_pass(case):
    model, _, listed, _, mask, full = case
    logits, cache = read(case, model.empty_cache(BATCH, SLOTS, listed=listed, written=WRITTEN), PIECES)
    layers = cache.layers if isinstance(cache.layers, list) else [cache.layers]
    assert all(layer.places == (SLOTS if layer.window is None else RING) for layer in layers)
    agree(logits, full, mask)


def test_a_full_cache_is_turned_into_rings_and_what_is_written_may_be_taken_back(case):
    model, _, listed, tokens, mask, full = case
    _, cache = read(case, model.empty_cache(BATCH, 37, listed=listed), (28, 8, 1))
    cache = jax.jit(lambda cache: cache.grown(SLOTS, WRITTEN))(cache)
    other = (*case[:3], (tokens + 5) % 37, *case[4:])
    wrong = read(other, cache, (WRITTEN,))[1]
    cache = jax.jit(lambda cache: cache.shortened(cache.end - WRITTEN))(wrong)
    logits, _ = read(case, cache, (1, 28))
    agree(logits, full[:, 37:], mask[:, 37:])


def test_more_tokens_than_a_ring_has_room_for_are_refused():
    model, params = made("near")
    cache = model.empty_cache(1, SLOTS, written=1)
    with pytest.raises(ValueError, match="write at most 28"):
        apply(model, params, jnp.zeros((1, 29), jnp.int32), cache=cache)


def test_a_window_as_long_as_the_cache_makes_no_ring():
    assert places_of(4096, 512, 1) == 512
    assert places_of(None, 5000, 1) == places_of(4096, 5000, None) == 5000
    assert [places_of(4096, 5000, written) for written in (1, 2, 33, 34)] == [4096, 4128, 4128, 4160]


def test_places_hold_the_newest_slots_that_they_may():
    for end in range(10):
        held = [max((a for a in range(end) if a % 4 == place), default=None) for place in range(4)]
        found = [int(a) if a >= 0 else None for a in slots_of(4, jnp.int32(end))]
        assert found == held


@pytest.mark.parametrize("start", [96, 94, 62, 40, 33, 30, 3])
def test_rows_that_are_gathered_bring_all_that_they_wrote_themselves(start):
    """Slots before `start` are equal in all rows; a ring that holds but newer ones has nothing equal."""
    random, rows = np.random.default_rng(0), jnp.array([2, 2, 0])
    slots, end = 98, 98

    def layer(places):
        own = np.asarray(slots_of(places, end)) >= start
        leaf = np.where(own[:, None], random.normal(size=(BATCH, 2, places, 4)), random.normal(size=(2, places, 4)))
        return LayerCache(jnp.asarray(leaf), jnp.asarray(-leaf), None if places == slots else WINDOW)

    books = jnp.ones((BATCH, slots), bool), jnp.zeros((BATCH, slots), jnp.int32), jnp.int32(end)
    cache = Cache([layer(32), layer(slots)], *books)
    found = cache.gathered(rows, start)
    for old, new in zip(jax.tree.leaves(cache.layers), jax.tree.leaves(found.layers), strict=True):
        np.testing.assert_array_equal(new, old[rows])


def test_rows_of_their_own_ends_are_moved_to_one():
    """Padding behind a row takes no place from it, and each row goes on as the row alone does."""
    model, params = made("mixed")
    lengths, width = jnp.array([3, 57, 84]), 3 * WRITTEN
    tokens = jnp.asarray(np.random.default_rng(2).integers(37, size=(BATCH, width)), jnp.int32)
    mask = jnp.arange(width)[None] < lengths[:, None]
    cache = model.empty_cache(BATCH, width, written=WRITTEN)
    for start in range(0, width, WRITTEN):
        part = slice(start, start + WRITTEN)
        cache = apply(model, params, tokens[:, part], mask=mask[:, part], cache=cache).cache
    cache = jax.jit(lambda cache: cache.rolled(width - lengths, width).grown(SLOTS, 1))(cache)
    assert {layer.places for layer in cache.layers} == {32, SLOTS}
    next_one = jnp.array([[1], [2], [3]])
    found = apply(model, params, next_one, cache=cache).logits[:, 0]
    whole = jnp.where(mask, tokens, 0)
    whole = (
        jnp.concatenate([whole, jnp.zeros((BATCH, 1), jnp.int32)], 1)
        .at[jnp.arange(BATCH), lengths]
        .set(next_one[:, 0])
    )
    full = np.asarray(apply(model, params, whole).logits)[np.arange(BATCH), np.asarray(lengths)]
    np.testing.assert_allclose(found, full, atol=1e-5 * np.abs(full).max(), rtol=0)
