"""Models with windows generate from rings what they generate from all their keys."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.generation import (
    Beam,
    Contrastive,
    Draft,
    Greedy,
    Lookup,
    decode,
    generate,
    layout,
    prefill,
    remember,
)
from jaxformer.generation import past as pasts
from jaxformer.nn import cache as caches
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models

NEW = 40
PROMPTS = [[5, 9, 2, 33], [7], [30, 1, 1, 8, 20, 14, 3]]
LONG = [[*range(1, 36), 4, *range(9, 20)], [3], [*range(20, 0, -1)]]


def made(name, seed=0):
    """sandwich: two windows of three, then none, and one layer left of the pattern; near: a window in each layer."""
    tiny = tiny_models()["sandwich" if name == "sandwich" else "windowed"]
    near = dataclasses.replace(tiny.decoder, pattern=tiny.decoder.pattern[1:], layers=2)
    model = Model(tiny if name == "sandwich" else dataclasses.replace(tiny, decoder=near), compute="float32")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    return model, randomized(shapes, jax.random.key(seed))


@pytest.fixture(scope="module", params=["near", "sandwich"])
def case(request):
    return made(request.param)


@pytest.fixture(scope="module")
def one():
    return made("sandwich")


def of_full_passes(model, params, prompt, found, scores):
    """One pass over prompt and new tokens checks every step: each has the largest logit before it."""
    row = np.pad([*prompt, *found], (0, 96 - len(prompt) - len(found)))[None].astype(np.int32)
    logits = jax.jit(model.apply)({"params": params}, row).logits[0, len(prompt) - 1 :][: len(found)]
    assert found.tolist() == logits.argmax(-1).tolist()
    np.testing.assert_allclose(scores, jax.nn.log_softmax(logits).max(-1), atol=1e-4)


def slots_kept(model, params, max_new_tokens, strategy=Greedy()):
    """By their window: the most slots that layers keep while new tokens are decoded."""
    given = [None, strategy, (), None, None, 1, jax.random.key(0), None]
    start = lambda: decode.start(model, params, PROMPTS, max_new_tokens, *given)[0].cache
    layers = jax.tree.leaves(start().layers, is_leaf=lambda node: isinstance(node, caches.LayerCache))
    return {layer.window: layer.places for layer in layers}


@pytest.mark.parametrize("form", ["listed", "scanned"])
def test_greedy_tokens_are_those_of_full_passes(case, form, monkeypatch):
    if form == "scanned":
        monkeypatch.setattr(layout, "per_layer", lambda variables: variables)
    result = generate(*case, PROMPTS, NEW, eos=())
    for prompt, found, scores in zip(PROMPTS, result.tokens, result.scores, strict=True):
        of_full_passes(*case, prompt, found, scores)


def test_guesses_that_are_taken_back_leave_nothing_behind(one):
    plain = generate(*one, PROMPTS, NEW, eos=())
    for strategy in (Lookup(count=7), Draft(*made("near", seed=1), count=3)):
        np.testing.assert_array_equal(generate(*one, PROMPTS, NEW, eos=(), strategy=strategy).tokens, plain.tokens)


def test_searches_are_those_of_full_caches(one, monkeypatch):
    strategies = Beam(3), Contrastive(top_k=3)
    found = [generate(*one, PROMPTS, NEW, eos=(), strategy=strategy) for strategy in strategies]
    monkeypatch.setattr(caches, "places_of", lambda window, slots, written: slots)
    jax.clear_caches()
    for strategy, ours in zip(strategies, found, strict=True):
        full = generate(*one, PROMPTS, NEW, eos=(), strategy=strategy)
        np.testing.assert_array_equal(ours.tokens, full.tokens)
        np.testing.assert_allclose(ours.scores, full.scores, atol=1e-4)
    jax.clear_caches()


def test_long_prompts_and_those_that_share_a_past_are_read_into_rings(one, monkeypatch):
    for module in (prefill, decode, pasts):
        monkeypatch.setattr(module, "CHUNK", 4)
    jax.clear_caches()
    past = remember(*one, LONG[0][:38])
    for rows, more in ((LONG, {}), ([LONG[0], [*LONG[0][:38], 1]], {"past": past})):
        result = generate(*one, rows, NEW, eos=(), **more)
        for prompt, found, scores in zip(rows, result.tokens, result.scores, strict=True):
            of_full_passes(*one, prompt, found, scores)
    jax.clear_caches()


def test_more_new_tokens_take_no_more_slots_of_layers_with_a_window(one):
    assert slots_kept(*one, NEW) == {3: 32, None: 96}
    assert slots_kept(*one, 4 * NEW) == {3: 32, None: 192}
    assert slots_kept(*one, NEW, Lookup(count=40)) == {3: 64, None: 128}
