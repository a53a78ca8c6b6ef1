"""Guessing ahead changes how many passes there are, and nothing about what comes out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import Card
from jaxformer.generation import (
    BadWords,
    Draft,
    ForcedLast,
    Greedy,
    Lookup,
    NoRepeatNgram,
    RepetitionPenalty,
    Sample,
    generate,
    stream_tokens,
)
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models

VOCAB, NEW = 12, 21
PROMPTS = [[1, 2, 3, 1, 2], [4], [5, 6, 5, 6, 7, 5, 6]]
KEY = jax.random.key(5)


def made(name, seed, vocab=VOCAB):
    config = dataclasses.replace(tiny_models()[name], vocab=vocab)
    model = Model(config, compute="float32", card=Card(config={"decoder_start_token_id": 0}))
    both = {"decoder_tokens": jnp.zeros((1, 2), jnp.int32)} if config.encoder is not None else {}
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), **both)["params"]
    return model, randomized(jax.eval_shape(init), jax.random.key(seed))


@pytest.fixture(scope="module", params=["learned", "relative"])
def pair(request):
    """((a model, its parameters), a worse model of the same vocabulary): here the same with some noise."""
    model, params = made(request.param, 0)
    noise = randomized(params, jax.random.key(9))
    return (model, params), (model, jax.tree.map(lambda a, b: a + 0.05 * b, params, noise))


def guessers(draft, base):
    return {
        "lookup": Lookup(base, count=3, ngram=2),
        "draft": Draft(*draft, base, count=4),
        "itself": Draft(*draft, base, count=2),
    }


@pytest.mark.parametrize("kind", ["lookup", "draft", "itself"])
def test_greedy_tokens_are_those_without_guesses(pair, kind):
    large, small = pair
    ends = generate(*large, PROMPTS, NEW, eos=()).tokens[0, 9:10]
    all_kinds = NoRepeatNgram(3), RepetitionPenalty(1.2), ForcedLast(3)
    for processors, eos in (((), ()), (all_kinds, ends)):
        plain = generate(*large, PROMPTS, NEW, strategy=Greedy(processors), eos=eos, alternatives=2)
        strategy = guessers(large if kind == "itself" else small, Greedy(processors))[kind]
        found = generate(*large, PROMPTS, NEW, strategy=strategy, eos=eos, alternatives=2)
        np.testing.assert_array_equal(found.tokens, plain.tokens)
        np.testing.assert_array_equal(found.lengths, plain.lengths)
        np.testing.assert_allclose(found.scores, plain.scores, atol=1e-4)
        np.testing.assert_array_equal(found.alternatives[0], plain.alternatives[0])
        if kind == "itself" and not processors:  # every guess is right: three columns in a pass
            assert found.passes == -(-(plain.lengths.max() - 1) // 3)


def test_what_repeats_is_found_and_takes_few_passes():
    model, params = made("rotary", 0)
    barred = BadWords([id for id in range(VOCAB) if id not in (3, 4)])
    strategy = Greedy((barred, NoRepeatNgram(30)))
    plain = generate(model, params, [[3, 4]], 40, strategy=strategy, eos=())
    found = generate(model, params, [[3, 4]], 40, strategy=Lookup(strategy, count=5), eos=())
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    assert found.passes < 30


def test_a_row_alone_and_in_a_batch_and_streamed_are_the_same(pair):
    large, small = pair
    for kind in ("lookup", "draft"):
        strategy = guessers(small, Greedy())[kind]
        together = generate(*large, PROMPTS, NEW, strategy=strategy, eos=())
        alone = generate(*large, PROMPTS[:1], NEW, strategy=strategy, eos=())
        assert alone.tokens[0].tolist() == together.tokens[0].tolist()
    streamed = np.stack(list(stream_tokens(*large, PROMPTS, NEW, strategy=strategy, eos=())), 1)
    np.testing.assert_array_equal(streamed, together.tokens)


@pytest.mark.parametrize("kind", ["lookup", "draft"])
@pytest.mark.parametrize("base", [Sample(), Sample(0.7, top_k=5), Sample(1.5, top_p=0.8)], ids=str)
def test_draws_are_distributed_as_without_guesses(kind, base):
    """Pearson's chi-square of 3,000 draws of three tokens against the model's own probabilities.

    Two rows a call: of many some one refuses its first guess nearly always, and no second column is tried. Those of
    the third token, given the two before, are checked for the commonest pair; the bound is the 99.9% point.
    """
    large, small = made("rotary", 0, vocab=6), made("rotary", 3, vocab=6)
    prompt, calls = [1, 2, 1], 1500
    strategy = guessers(small, base)[kind]
    one = lambda key: generate(*large, [prompt], 3, strategy=strategy, eos=(), samples=2, key=key)
    drawn = [one(key) for key in jax.random.split(KEY, calls)]
    assert 1 < sum(found.passes for found in drawn) / calls < 2  # often two columns come of one pass
    found = np.concatenate([found.tokens for found in drawn])
    pairs, counts = np.unique(found[:, :2], axis=0, return_counts=True)
    common = pairs[counts.argmax()]
    for before in ([], common[:1].tolist(), common.tolist()):
        behind = found[(found[:, : len(before)] == before).all(1), len(before)]
        row = np.array([prompt + before], np.int32)
        logits = large[0].apply({"params": large[1]}, row).logits[:, -1]
        expected = len(behind) * np.exp(np.asarray(base.checked().log_probabilities(logits)))[0]
        seen, possible = np.bincount(behind, minlength=6), expected > 0
        assert not seen[~possible].any()
        limit = {0: 0.0, 1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5}[possible.sum() - 1]
        assert len(behind) > 300
        assert np.sum((seen - expected)[possible] ** 2 / expected[possible]) <= limit + 1e-3


def test_temperature_zero_is_greedy():
    large, small = made("rotary", 0), made("rotary", 3)
    plain = generate(*large, PROMPTS, NEW, eos=())
    for kind in ("lookup", "draft"):
        strategy = guessers(small, Sample(0.0))[kind]
        np.testing.assert_array_equal(generate(*large, PROMPTS, NEW, strategy=strategy, eos=()).tokens, plain.tokens)


def test_guesses_may_reach_beyond_the_learned_positions():
    model, params = made("learned", 0)
    most = model.config.decoder.input.positions.length - len(PROMPTS[0])
    plain = generate(model, params, PROMPTS[:1], most, eos=())
    for strategy in guessers((model, params), Greedy()).values():
        found = generate(model, params, PROMPTS[:1], most, strategy=strategy, eos=())
        np.testing.assert_array_equal(found.tokens, plain.tokens)


def test_what_cannot_guess_is_told():
    large, small = made("rotary", 0), made("rotary", 3, vocab=7)
    with pytest.raises(ValueError, match="count is 0"):
        generate(*large, PROMPTS, NEW, strategy=Lookup(count=0))
    with pytest.raises(ValueError, match="ngram is -1"):
        generate(*large, PROMPTS, NEW, strategy=Lookup(ngram=-1))
    with pytest.raises(ValueError, match="7 tokens"):
        generate(*large, PROMPTS, NEW, strategy=Draft(*small))
    with pytest.raises(ValueError, match="Lookup as base"):
        generate(*large, PROMPTS, NEW, strategy=Lookup(Lookup()))
