"""Prompts that are read in parts are continued as those that are read at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import Card
from jaxformer.generation import Beam, Contrastive, Lookup, Sample, generate, prefill, remember, stream_tokens
from jaxformer.generation import decode as decoding
from jaxformer.generation import past as pasts
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models

VOCAB, NEW = 37, 9
START = [5, 9, 2, 33, 7, 11, 30, 1, 2]
PROMPTS = [[*START, 4], [*START, 20, 3, 8, 8, 1], [*START, 7, 7]]
DECODERS = ["learned", "windowed", "alibi"]


def made(name):
    model = Model(tiny_models()[name], compute="float32", card=Card(config={"decoder_start_token_id": 0}))
    both = {"decoder_tokens": jnp.zeros((1, 2), jnp.int32)} if model.config.encoder is not None else {}
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), **both)["params"]
    return model, randomized(jax.eval_shape(init), jax.random.key(0))


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request):
    return made(request.param)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of four tokens, and buckets of as many, so that short prompts have several."""
    for module in (prefill, decoding, pasts):
        monkeypatch.setattr(module, "CHUNK", 4)
    jax.clear_caches()
    yield
    jax.clear_caches()


def same(found, plain):
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_allclose(found.scores, plain.scores, atol=2e-4)


STRATEGIES = [Sample(0.9), Beam(3), Lookup(count=3)]


def test_what_prompts_share_is_read_once_and_continued_as_if_it_were_not(decoder):
    past = remember(*decoder, START)
    for strategy in STRATEGIES:
        given = {"strategy": strategy, "eos": (), "key": jax.random.key(0), "samples": 2}
        plain = generate(*decoder, PROMPTS, NEW, **given)
        same(generate(*decoder, PROMPTS, NEW, past=past, **given), plain)
    streamed = np.stack(list(stream_tokens(*decoder, PROMPTS, NEW, eos=(), past=past)), 1)
    np.testing.assert_array_equal(streamed, generate(*decoder, PROMPTS, NEW, eos=()).tokens)


def test_a_past_is_gone_on_with_as_a_conversation_goes_on(decoder):
    turns = [START, [*START, 4, 5, 6], [*START, 4, 5, 6, 7, 8, 9, 10], [*START, 4, 30, 31], START[:4]]
    past = None
    for turn in turns:
        past = remember(*decoder, turn, past)
        assert past.ids.tolist() == turn
        for prompt in (turn, [*turn, 3]):  # a prompt may end with the past
            same(generate(*decoder, [prompt], NEW, eos=(), past=past), generate(*decoder, [prompt], NEW, eos=()))


def test_long_prompts_are_read_in_chunks(decoder, small_chunks):
    model, params = decoder
    prompts = [[*PROMPTS[1]], [3], [*range(1, 14)], PROMPTS[0][:8]]
    chunked = [generate(model, params, prompts, NEW, strategy=s, eos=(), key=jax.random.key(0)) for s in STRATEGIES]
    past = remember(model, params, START)
    shared = generate(model, params, PROMPTS, NEW, eos=(), past=past)
    for module in (prefill, decoding, pasts):
        module.CHUNK = 512
    jax.clear_caches()
    for strategy, found in zip(STRATEGIES, chunked, strict=True):
        same(found, generate(model, params, prompts, NEW, strategy=strategy, eos=(), key=jax.random.key(0)))
    same(shared, generate(model, params, PROMPTS, NEW, eos=()))


def test_what_cannot_be_continued_from_a_past_is_told():
    model, params = made("rotary")
    past = remember(model, params, START)
    with pytest.raises(ValueError, match="prompt 1 does not begin with the 9 tokens"):
        generate(model, params, [PROMPTS[0], START[:5]], NEW, past=past)
    with pytest.raises(ValueError, match="give no past"):
        generate(model, params, PROMPTS, NEW, strategy=Contrastive(), past=past)
    with pytest.raises(ValueError, match="give none with prefix"):
        generate(model, params, PROMPTS, NEW, past=past, prefix=True)
    with pytest.raises(ValueError, match="this model has an encoder"):
        remember(*made("encoder_decoder"), START)
    with pytest.raises(ValueError, match="holds 99"):
        remember(model, params, [1, 99])
