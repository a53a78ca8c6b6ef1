"""The laws of beam search, on two decoders and an encoder-decoder, all of them tiny."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import testing
from jaxformer.config import Card
from jaxformer.generation import Beam, ForcedFirst, Greedy, decode, generate, layout, stream_tokens
from jaxformer.nn.model import Model

NEW, EOS, ROOM = 8, (3, 14, 31), 16
PROMPTS = [[5, 9, 2, 33], [7], [30, 1, 1, 8, 20, 14, 3]]
BEGIN = [0]
"""What the decoder continues where an encoder reads the prompts."""


def drawn(config, seed=0, sharper=1.0):
    """(model, parameters drawn at random); `sharper` logits differ more from one token to the next."""
    model = Model(config, compute="float32")
    stacks = 2 if config.encoder is not None else 1
    given = [jax.ShapeDtypeStruct((1, 2), jnp.int32)] * stacks
    shapes = jax.eval_shape(model.init, jax.random.key(0), *given)["params"]
    params = testing.randomized(shapes, jax.random.key(seed))
    return model, params | {"embed": jax.tree.map(lambda leaf: leaf * sharper, params["embed"])}


@functools.cache
def case(name):
    return drawn(testing.tiny_models()[name])


def run(name, rows=PROMPTS, new=NEW, strategy=Beam(), eos=EOS, **given):
    model, params = case(name)
    if model.config.encoder is not None:
        given |= {"decoder_tokens": [BEGIN] * len(rows)}
    return generate(model, params, rows, new, strategy=strategy, eos=eos, pad=0, **given)


def log_probabilities(name, prompt, continuations):
    """The model's own, of each token [N, n], by a full pass over rows of one length."""
    model, params = case(name)
    begin = prompt if model.config.encoder is None else BEGIN
    whole = np.concatenate([np.tile(begin, (len(continuations), 1)), continuations], axis=1).astype(np.int32)
    padded = np.pad(whole, ((0, 0), (0, ROOM - whole.shape[1])))
    given = [padded] if model.config.encoder is None else [np.tile(np.int32(prompt), (len(whole), 1)), padded]
    logits = jax.jit(model.apply)({"params": params}, *given).logits[:, len(begin) - 1 : whole.shape[1] - 1]
    return np.asarray(jnp.take_along_axis(jax.nn.log_softmax(logits), continuations[:, :, None], axis=2))[:, :, 0]


@pytest.fixture(params=["learned", "rotary scanned", "relative"])
def name(request, monkeypatch):
    kind, *scanned = request.param.split()
    if scanned:
        monkeypatch.setattr(layout, "per_layer", lambda variables: variables)
    return kind


def test_one_beam_is_greedy(name):
    greedy, beam = run(name, strategy=Greedy()), run(name, strategy=Beam(1))
    np.testing.assert_array_equal(beam.tokens, greedy.tokens)
    np.testing.assert_array_equal(beam.lengths, greedy.lengths)
    np.testing.assert_allclose(beam.scores, greedy.scores, atol=1e-5)


def test_scores_are_the_models_own_and_rank_the_rows(name):
    """Whatever beam a token came from, its past in the cache is that of its row."""
    found = run(name, strategy=Beam(4, 0.6), samples=3)
    for i, (tokens, length) in enumerate(zip(found.tokens, found.lengths, strict=True)):
        expected = log_probabilities(name, PROMPTS[i // 3], tokens[None, :length])[0]
        np.testing.assert_allclose(found.scores[i, :length], expected, atol=1e-4)
        assert not found.scores[i, length:].any()
        assert not tokens[length:].any()
        assert not np.isin(tokens[: length - 1], EOS).any()
        assert length == NEW or tokens[length - 1] in EOS
    np.testing.assert_allclose(found.ranks, found.scores.sum(1) / found.lengths**0.6, rtol=1e-5)
    assert (np.diff(found.ranks.reshape(-1, 3)) <= 0).all()
    assert len(set(found.lengths.tolist())) > 1  # some ended by themselves
    for rows in found.tokens.reshape(-1, 3, NEW):
        assert len(np.unique(rows, axis=0)) == 3


def test_prompts_do_not_influence_each_other(name):
    first, second = run(name, samples=2), run(name, [[9] * 5, PROMPTS[1], [4, 4]], samples=2)
    np.testing.assert_array_equal(first.tokens[2:4], second.tokens[2:4])
    np.testing.assert_array_equal(first.ranks[2:4], second.ranks[2:4])
    assert (first.tokens[:2] != second.tokens[:2]).any()


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0, -1.0])
def test_beams_enough_find_the_best_of_all(penalty, monkeypatch):
    """Six tokens, three columns: as many beams as there are continuations leave nothing out."""
    vocab, new, eos, prompt = 6, 3, 4, [1, 5, 2]
    config = dataclasses.replace(testing.tiny_models()["rotary"], vocab=vocab)
    monkeypatch.setitem(globals(), "case", lambda name: drawn(config, sharper=3.0))
    every = np.array(list(itertools.product(range(vocab), repeat=new)))
    stops = every == eos
    lengths = np.where(stops.any(1), stops.argmax(1) + 1, new)
    scores = log_probabilities("", prompt, every) * (np.arange(new) < lengths[:, None])
    ranks = scores.sum(1) / lengths**penalty
    best = np.argsort(-ranks, kind="stable")
    found = run("", [prompt], new, Beam(vocab**new, penalty, "never"), eos)
    size = lengths[best[0]]
    assert found.lengths.tolist() == [size]
    assert found.tokens[0, :size].tolist() == every[best[0], :size].tolist()
    np.testing.assert_allclose(found.ranks, ranks[best[:1]], rtol=1e-5)


def test_a_rule_that_stops_later_finds_better():
    """Eight ids that end a row and a penalty that favours long ones: first ends are soon found, and not the best."""
    searches = [Beam(2, 2.0, rule) for rule in (True, False, "never")]
    at_once, behind, never = (run("rotary", strategy=beam, eos=range(8)).ranks for beam in searches)
    assert (at_once <= behind).all()
    assert (behind <= never).all()
    assert at_once.sum() + 0.1 < behind.sum() < never.sum() - 0.1


def test_nothing_goes_on_behind_an_end():
    """Each row has one of the ids that end it in its last column, if in any."""
    for penalty in (0.0, 1.0, 2.0):
        found = run("rotary", strategy=Beam(2, penalty, "never"), eos=range(8), samples=2)
        columns, last = np.arange(NEW)[None, :], found.lengths[:, None] - 1
        ends = (found.tokens < 8) & (columns <= last)
        assert not (ends & (columns < last)).any()
        assert (ends.any(axis=1) | (found.lengths == NEW)).all()


def test_forced_tokens_stand_where_the_card_wants_them():
    model, params = case("relative")
    card = Card(generation={"forced_bos_token_id": 11, "forced_eos_token_id": 22, "eos_token_id": 22})
    carded, begin = dataclasses.replace(model, card=card), [BEGIN] * 3
    found = generate(carded, params, PROMPTS, NEW, strategy=Beam(4, 0.0), decoder_tokens=begin, samples=4)
    assert (found.tokens[:, 0] == 11).all()
    assert (found.tokens[np.arange(12), found.lengths - 1] == 22).all()
    last = np.where(found.lengths == NEW, found.scores[:, -1], 0.0)  # forced as well, and so taken as certain
    np.testing.assert_allclose(found.ranks, found.scores[:, 1:].sum(1) - last, rtol=1e-4)
    longer = generate(carded, params, PROMPTS, NEW, strategy=Beam(4), decoder_tokens=[[0, 1]] * 3)
    assert (longer.tokens[:, 0] != 11).any()


def test_what_cannot_be_is_an_empty_row():
    """One token of which nothing but the forced one is possible: one continuation, not four."""
    model, params = case("relative")
    carded = dataclasses.replace(model, card=Card(generation={"forced_bos_token_id": 11}))
    found = generate(carded, params, PROMPTS, 1, strategy=Beam(4), decoder_tokens=[BEGIN] * 3, samples=4, pad=7)
    assert found.lengths.tolist() == [1, 0, 0, 0] * 3
    assert found.tokens[:, 0].tolist() == [11, 7, 7, 7] * 3
    assert np.isneginf(found.ranks).tolist() == [False, True, True, True] * 3


def test_the_search_stops_when_nothing_can_get_better():
    model, params = case("rotary")
    arguments = None, Beam(2, 1.0, True), tuple(range(36)), None, None, 1, jax.random.key(0), None
    state, request = decode.start(model, params, PROMPTS, NEW, *arguments, whole=True)
    state = decode.steps(model, state, request, np.int32(NEW))
    assert state.done.all()
    assert int(state.step) < NEW


@pytest.mark.parametrize("listed", [True, False])
def test_beams_share_what_the_prompt_and_the_encoder_left(listed):
    cache = case("relative")[0].empty_cache(4, 6, listed=listed, encoder_length=3)
    random = np.random.default_rng(0)
    cache = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), cache)
    rows = np.array([1, 1, 3, 2])
    picked = cache.gathered(jnp.asarray(rows), 4)
    for old, new in zip(jax.tree.leaves(cache.layers), jax.tree.leaves(picked.layers), strict=True):
        np.testing.assert_array_equal(new[..., :4, :], old[..., :4, :])
        np.testing.assert_array_equal(new[..., 4:, :], np.take(np.asarray(old), rows, axis=-4)[..., 4:, :])
    assert picked.cross is cache.cross


def test_groups_avoid_what_the_ones_before_go_on_by():
    """No token that a group of two begins with begins another, where the penalty is large; nor do prompts matter."""
    apart = Beam(6, 0.0, groups=3, diversity_penalty=100.0)
    found = run("rotary", strategy=apart, samples=6)
    firsts = [np.unique(rows[:, 0], return_counts=True) for rows in found.tokens.reshape(3, 6, NEW)]
    assert all(len(ids) >= 3 and counts.max() <= 2 for ids, counts in firsts)
    np.testing.assert_array_equal(
        run("rotary", PROMPTS[::-1], strategy=apart, samples=6).tokens[6:12], found.tokens[6:12]
    )
    alike = run("rotary", strategy=Beam(6, 0.0, groups=3, diversity_penalty=1e-6), samples=6)
    assert all(len(np.unique(rows, axis=0)) == 2 for rows in alike.tokens.reshape(3, 6, NEW))


def holds(tokens, phrase):
    """Whether a row holds a phrase, or one of several."""
    if isinstance(phrase[0], list):
        return any(holds(tokens, each) for each in phrase)
    return any(list(tokens[i : i + len(phrase)]) == phrase for i in range(len(tokens)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("width", [2, 6])
def test_phrases_stand_in_every_continuation(width, groups):
    """They share their beginnings, and one of them begins within itself again; no more columns than they have."""
    phrases = [[5, 9], [5, 5, 8], [[7, 7, 7, 1], [30]]]
    strategy = Beam(width, 0.3, phrases=phrases, groups=groups)
    for new in (6, NEW + 4):
        found = run("rotary", new=new, strategy=strategy, samples=width)
        assert (found.lengths[::width] > 0).all()
        for tokens, length, rank in zip(found.tokens, found.lengths, found.ranks, strict=True):
            assert length == 0 or all(holds(tokens[:length], phrase) for phrase in phrases)
            assert (length > 0) == (rank > -np.inf)
    assert found.lengths.all()  # where there is more room


@pytest.mark.parametrize("phrases", [[[2, 2]], [[3], [1]], [[[0, 1], [5]], [3]]], ids=str)
def test_beams_enough_find_the_best_that_holds_the_phrases(phrases, monkeypatch):
    vocab, new, eos, prompt = 6, 3, 4, [2, 2, 3]
    config = dataclasses.replace(testing.tiny_models()["rotary"], vocab=vocab)
    monkeypatch.setitem(globals(), "case", lambda name: drawn(config, sharper=3.0))
    every = np.array(list(itertools.product(range(vocab), repeat=new)))
    stops = every == eos
    lengths = np.where(stops.any(1), stops.argmax(1) + 1, new)
    ranks = (log_probabilities("", prompt, every) * (np.arange(new) < lengths[:, None])).sum(1) / lengths
    right = [all(holds(row[:size], phrase) for phrase in phrases) for row, size in zip(every, lengths, strict=True)]
    best = np.where(right, ranks, -np.inf).argmax()
    found = run("", [prompt], new, Beam(vocab**new, 1.0, "never", phrases=phrases), eos)
    assert found.tokens[0, : lengths[best]].tolist() == every[best, : lengths[best]].tolist()
    np.testing.assert_allclose(found.ranks, ranks[best], rtol=1e-5)
    assert ranks[best] < ranks.max() - 0.01  # another continuation is better


def test_phrases_that_come_anyway_change_nothing():
    """The first token is forced, and is the phrase: all beams are of one bank, and search as without."""
    plain, held = (
        run("relative", strategy=Beam(4, 0.6, processors=[ForcedFirst(11)], phrases=phrases), samples=4)
        for phrases in ([], [[11]])
    )
    np.testing.assert_array_equal(plain.tokens, held.tokens)
    np.testing.assert_array_equal(plain.ranks, held.ranks)


def test_other_phrases_of_the_same_lengths_compile_nothing(count_compilations):
    run("rotary", strategy=Beam(4, phrases=[[5, 9], [[7], [8, 1]]], groups=2))
    with count_compilations() as compiled:
        beam = Beam(4, 0.3, phrases=[[[6, 2], [1, 4, 4]], [9]], groups=2, diversity_penalty=2.0)
        run("rotary", strategy=beam, eos=(10, 11, 12))
    assert not compiled.of("steps")
    assert not compiled.of("prefill")


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError) as error:
        Beam(0, float("nan"), "always", groups=2, diversity_penalty=0, phrases=[[]]).checked()
    said = ("width is 0", "length_penalty is nan", "is 'always'", "diversity_penalty is 0", "phrase is []")
    assert all(part in str(error.value) for part in said)
    with pytest.raises(ValueError, match="groups is 3: give a number that divides the width, 4"):
        Beam(4, groups=3).checked()
    with pytest.raises(
        ValueError, match=r"phrases \[1, 2\] .* cannot be written: .* ids below 37, and \[3, 14, 31\] end"
    ):
        run("rotary", strategy=Beam(4, phrases=[[[35, 3], [5]], [37], [2, 14]]))
    with pytest.raises(ValueError, match="samples is 5: of 4 beams give at most 4"):
        run("rotary", samples=5)
    model, params = case("rotary")
    with pytest.raises(ValueError, match="cannot be streamed: call generate"):
        stream_tokens(model, params, PROMPTS, NEW, strategy=Beam())
