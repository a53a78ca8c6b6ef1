"""Guidance and contrastive search, token by token by full passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import Card
from jaxformer.generation import Contrastive, Greedy, Guided, NoRepeatNgram, Sample, generate, stream_tokens
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models

VOCAB, NEW, ROOM = 12, 9, 24
PROMPTS = [[1, 2, 3, 1, 2], [4], [5, 6, 5, 6, 7, 5, 6]]


def made(name, seed=0):
    config = dataclasses.replace(tiny_models()[name], vocab=VOCAB)
    model = Model(config, compute="float32", card=Card(config={"decoder_start_token_id": 0}))
    both = {"decoder_tokens": jnp.zeros((1, 2), jnp.int32)} if config.encoder is not None else {}
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), **both)["params"]
    return model, randomized(jax.eval_shape(init), jax.random.key(seed))


@pytest.fixture(scope="module", params=["learned", "rotary"])
def decoder(request):
    return made(request.param)


def passer(model, params):
    """tokens, source -> (logits [T, V], hidden [T, D]) of a full pass, compiled for one shape."""
    run = jax.jit(model.apply)

    def one(tokens, source=None):
        row = np.pad(np.array([tokens], np.int32), ((0, 0), (0, ROOM - len(tokens))))
        given = (row,) if source is None else (np.array([source], np.int32), row)
        out = run({"params": params}, *given)
        return np.asarray(out.logits)[0, : len(tokens)], np.asarray(out.hidden)[0, : len(tokens)]

    return one


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x - x.max()).sum()) - x.max()


NEGATIVES = [None, [6, 6, 2], [[1], [2, 3], [11, 10, 9, 8]]]


@pytest.mark.parametrize("negative", NEGATIVES, ids=["last", "one", "each"])
def test_guided_tokens_are_those_of_two_full_passes(decoder, negative):
    model, params = decoder
    full = passer(model, params)
    found = generate(model, params, PROMPTS, NEW, strategy=Guided(2.5, negative), eos=())
    plain = generate(model, params, PROMPTS, NEW, eos=())
    assert (found.tokens != plain.tokens).any()
    for i, prompt in enumerate(PROMPTS):
        other = prompt[-1:] if negative is None else negative if isinstance(negative[0], int) else negative[i]
        new = found.tokens[i].tolist()
        for step in range(NEW):
            given, away = (log_softmax(full(before + new[:step])[0][-1]) for before in (prompt, other))
            guided = away + 2.5 * (given - away)
            assert guided[new[step]] > guided.max() - 1e-4
            np.testing.assert_allclose(found.scores[i, step], given[new[step]], atol=1e-4)


def test_a_scale_of_one_changes_nothing_and_processors_see_what_is_guided(decoder):
    model, params = decoder
    for base in (Greedy(), Sample(0.8)):
        key = jax.random.key(3)
        plain = generate(model, params, PROMPTS, NEW, strategy=base, eos=(), key=key)
        guided = generate(model, params, PROMPTS, NEW, strategy=Guided(1.0, base=base), eos=(), key=key)
        np.testing.assert_array_equal(guided.tokens, plain.tokens)
    strategy = Guided(3.0, base=Greedy((NoRepeatNgram(1),)))
    tokens = generate(model, params, [[1]], NEW, strategy=strategy, eos=(), samples=2).tokens
    assert all(len({1, *row}) == NEW + 1 for row in tokens.tolist())
    streamed = np.stack(list(stream_tokens(model, params, [[1]], NEW, strategy=strategy, eos=(), samples=2)), 1)
    np.testing.assert_array_equal(streamed, tokens)


def test_what_cannot_guide_is_told(decoder):
    with pytest.raises(ValueError, match="scale of Guided is nan"):
        generate(*decoder, PROMPTS, NEW, strategy=Guided(float("nan")))
    with pytest.raises(ValueError, match="2 negative prompts for 3"):
        generate(*decoder, PROMPTS, NEW, strategy=Guided(2.0, [[1], [2]]))
    with pytest.raises(ValueError, match="at least one token"):
        generate(*decoder, PROMPTS, NEW, strategy=Guided(2.0, []))
    with pytest.raises(ValueError, match="decoder alone"):
        generate(*made("encoder_decoder"), PROMPTS, NEW, strategy=Guided(2.0))


@pytest.mark.parametrize("name", ["learned", "rotary", "encoder_decoder", "relative"])
def test_contrastive_tokens_are_those_of_full_passes(name):
    model, params = made(name)
    full = passer(model, params)
    found = generate(model, params, PROMPTS, NEW, strategy=Contrastive(0.6, 3), eos=())
    if name != "encoder_decoder":  # its likeliest token is very likely here
        assert (found.tokens != generate(model, params, PROMPTS, NEW, eos=()).tokens).any()
    for i, prompt in enumerate(PROMPTS):
        source, before = (prompt, [0]) if model.config.encoder is not None else (None, prompt)
        for step, token in enumerate(found.tokens[i].tolist()):
            log_p = log_softmax(full(before, source)[0][-1])
            candidates = np.argsort(-log_p)[:3]
            worth = []
            for id in candidates:
                *past, own = (row / np.linalg.norm(row) for row in full([*before, int(id)], source)[1])
                worth.append(0.4 * np.exp(log_p[id]) - 0.6 * max(row @ own for row in past))
            assert worth[candidates.tolist().index(token)] > max(worth) - 1e-5
            np.testing.assert_allclose(found.scores[i, step], log_p[token], atol=1e-4)
            before = [*before, token]


def test_contrastive_search_without_a_penalty_is_greedy(decoder):
    model, params = decoder
    ends = generate(model, params, PROMPTS, NEW, eos=()).tokens[0, 4:5]
    plain = generate(model, params, PROMPTS, NEW, eos=ends, alternatives=2)
    for strategy in (Contrastive(0.0, 3), Contrastive(0.6, 1)):
        found = generate(model, params, PROMPTS, NEW, strategy=strategy, eos=ends, alternatives=2)
        np.testing.assert_array_equal(found.tokens, plain.tokens)
        np.testing.assert_array_equal(found.lengths, plain.lengths)
        np.testing.assert_array_equal(found.alternatives[0], plain.alternatives[0])
    strategy = Contrastive(0.6, 3, (NoRepeatNgram(2),))
    tokens = generate(model, params, PROMPTS, NEW, strategy=strategy, eos=()).tokens
    streamed = np.stack(list(stream_tokens(model, params, PROMPTS, NEW, strategy=strategy, eos=())), 1)
    np.testing.assert_array_equal(streamed, tokens)


def test_what_cannot_contrast_is_told(decoder):
    with pytest.raises(ValueError) as error:
        generate(*decoder, PROMPTS, NEW, strategy=Contrastive(1.5, 0))
    assert all(name in str(error.value) for name in ("alpha is 1.5", "top_k is 0"))
    with pytest.raises(ValueError, match="samples is 2"):
        generate(*decoder, PROMPTS, NEW, strategy=Contrastive(), samples=2)
