"""What each processor does to logits, by plain loops, and that a strategy applies it at every token."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.generation import (
    BadWords,
    Beam,
    ForcedFirst,
    ForcedLast,
    FrequencyPenalty,
    Greedy,
    History,
    MinLength,
    MinNewTokens,
    NoRepeatNgram,
    PresencePenalty,
    Processor,
    RepetitionPenalty,
    Sample,
    generate,
    process,
    stream_tokens,
)
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models

VOCAB, EOS = 12, (3, 7)
PROMPTS = [[5, 9, 5, 9, 2], [7], [4, 4, 4, 8, 11, 5, 9]]
NEW = [[9, 5, 9], [7, 7, 1], [2, 5, 9]]


def history(steps=3, limit=6):
    width = max(map(len, PROMPTS))
    prompt = np.array([[0] * (width - len(row)) + row for row in PROMPTS], np.int32)
    mask = np.array([[False] * (width - len(row)) + [True] * len(row) for row in PROMPTS])
    new = np.array([row[:steps] + [0] * (5 - steps) for row in NEW], np.int32)
    return History(*map(jnp.asarray, (prompt, mask, new)), jnp.int32(steps), jnp.int32(limit), jnp.array(EOS))


def written(steps=3):
    return [prompt + new[:steps] for prompt, new in zip(PROMPTS, NEW, strict=True)]


@pytest.fixture(scope="module")
def logits():
    return jnp.asarray(np.random.default_rng(0).normal(0, 3, (len(PROMPTS), VOCAB)), jnp.float32)


def changed(processor, logits, steps=3, **given):
    return np.asarray(process.processed([processor.checked()], logits, history(steps, **given), [()]))


def barred(logits, rows):
    """The logits with -inf at the ids that each row has."""
    expected = np.array(logits)
    for row, ids in zip(expected, rows, strict=True):
        row[list(ids)] = -np.inf
    return expected


def test_repetition_is_of_prompt_and_answer_and_padding_does_not_count(logits):
    expected = np.array(logits)
    for row, tokens in zip(expected, written(), strict=True):
        for id in set(tokens):
            row[id] = row[id] / np.float32(1.3) if row[id] > 0 else row[id] * np.float32(1.3)
    np.testing.assert_allclose(changed(RepetitionPenalty(1.3), logits), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [PresencePenalty, FrequencyPenalty])
def test_presence_and_frequency_are_of_the_answer_alone(kind, logits):
    expected = np.array(logits)
    for row, tokens in zip(expected, NEW, strict=True):
        for id in set(tokens) if kind is PresencePenalty else tokens:
            row[id] -= np.float32(0.7)
    np.testing.assert_allclose(changed(kind(0.7), logits), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_no_ngram_comes_twice(size, logits):
    rows = []
    for tokens in written():
        grams = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
        tail = tokens[len(tokens) - size + 1 :]
        rows.append({gram[-1] for gram in grams if gram[:-1] == tail} if len(tokens) >= size - 1 else set())
    np.testing.assert_array_equal(changed(NoRepeatNgram(size), logits), barred(logits, rows))
    if size == 3:
        assert any(rows)


def test_bad_words_are_never_completed(logits):
    words = [[4], [5, 9, 6], [9, 5, 9, 6], [1, 1], [7, 7, 1, 10], [3], [5, 9, 3]]
    rows = []
    for tokens in written():
        met = [word for word in words if tokens[len(tokens) - len(word) + 1 :] == word[:-1]]
        rows.append({word[-1] for word in met if word != [3]})  # an eos alone may always come
    assert rows == [{4, 6, 3}, {4, 1, 10}, {4, 6, 3}]
    np.testing.assert_array_equal(changed(BadWords(words), logits), barred(logits, rows))
    np.testing.assert_array_equal(changed(BadWords([4]), logits), barred(logits, [{4}] * 3))


def test_a_minimal_length_bars_what_ends_a_row(logits):
    free = np.array(logits)
    for count, steps in ((3, 2), (3, 3), (0, 0)):
        rows = [EOS if steps < count else ()] * 3
        np.testing.assert_array_equal(changed(MinNewTokens(count), logits, steps), barred(free, rows))
    rows = [EOS if len(tokens) < 8 else () for tokens in written(2)]
    assert rows == [EOS, EOS, ()]
    np.testing.assert_array_equal(changed(MinLength(8), logits, 2), barred(free, rows))


def test_the_first_and_the_last_token_may_be_forced(logits):
    only = np.where(np.arange(VOCAB) == 6, 0, -np.inf)
    first = changed(ForcedFirst(6), logits, 0)
    np.testing.assert_array_equal(first[1], only)  # a prompt of one token
    np.testing.assert_array_equal(first[[0, 2]], np.array(logits)[[0, 2]])
    np.testing.assert_array_equal(changed(ForcedFirst(6), logits, 1), logits)
    np.testing.assert_array_equal(changed(ForcedLast(6), logits, 3, limit=4), np.tile(only, (3, 1)))
    np.testing.assert_array_equal(changed(ForcedLast(6), logits, 2, limit=4), logits)


def test_the_order_is_stated_once_and_ones_own_come_last():
    @dataclasses.dataclass(frozen=True)
    class Own(Processor):
        pass

    given = [Own(), ForcedLast(1), BadWords([1]), NoRepeatNgram(2), RepetitionPenalty(2.0)]
    kinds = [type(processor) for processor in process.ordered(given)]
    assert kinds == [RepetitionPenalty, NoRepeatNgram, BadWords, ForcedLast, process.Constant]


def test_what_cannot_be_used_is_told_at_once():
    wrong = [RepetitionPenalty(0.0), NoRepeatNgram(0), BadWords([[]]), MinNewTokens(-1), ForcedLast(-2), "greedy"]
    with pytest.raises(ValueError) as error:
        process.ordered([*wrong, FrequencyPenalty(float("nan")), MinLength(1.5)])
    names = ["RepetitionPenalty is 0.0", "NoRepeatNgram is 0", "BadWords are [[]]", "MinNewTokens is -1"]
    names += ["ForcedLast is -2", "'greedy' is no processor", "FrequencyPenalty is nan", "MinLength is 1.5"]
    assert all(name in str(error.value) for name in names)


# In a whole generation.


@pytest.fixture(scope="module")
def model():
    model = Model(dataclasses.replace(tiny_models()["rotary"], vocab=VOCAB), compute="float32")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    return model, randomized(shapes, jax.random.key(0))


STRATEGIES = [Greedy(), Sample(1.5), Beam(3)]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_ngrams_come_once_in_what_is_generated(model, strategy):
    def repeated(strategy):
        found = generate(*model, [[1, 2, 3], [4]], 16, strategy=strategy, eos=(), key=jax.random.key(0)).tokens
        rows = [prompt + row.tolist() for prompt, row in zip([[1, 2, 3], [4]], found, strict=True)]
        return [len(row) - 1 - len(set(itertools.pairwise(row))) for row in rows]

    assert any(repeated(strategy))
    assert repeated(dataclasses.replace(strategy, processors=[NoRepeatNgram(2)])) == [0, 0]


@dataclasses.dataclass(frozen=True)
class Rising(Processor):
    """A user's own, with a memory: each token is larger than the one before, and 11 ends a row."""

    def init(self, history):
        return jnp.full(history.prompt.shape[0], -1)

    def __call__(self, logits, history, state):
        return jnp.where(jnp.arange(logits.shape[-1])[None, :] > state[:, None], logits, -jnp.inf)

    def advance(self, state, token):
        return token

    def ended(self, state, token):
        return state == VOCAB - 1


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_a_processor_of_ones_own_keeps_a_memory_of_each_row(model, strategy):
    strategy = dataclasses.replace(strategy, processors=(Rising(),))
    found = generate(*model, [[1, 2, 3], [4]], 14, strategy=strategy, eos=(), samples=3, key=jax.random.key(1))
    assert len(found.lengths) == 6
    for row, length in zip(found.tokens, found.lengths, strict=True):
        assert (np.diff(row[:length]) > 0).all()
        assert row[length - 1] == VOCAB - 1
    if not isinstance(strategy, Beam):
        given = {"strategy": strategy, "eos": (), "samples": 3, "key": jax.random.key(1)}
        streamed = np.stack(list(stream_tokens(*model, [[1, 2, 3], [4]], 14, **given)), 1)
        np.testing.assert_array_equal(streamed, found.tokens[:, : streamed.shape[1]])


def test_scores_are_the_models_whatever_the_processors(model):
    plain = generate(*model, [[1, 2, 3]], 6, eos=())
    same = generate(*model, [[1, 2, 3]], 6, strategy=Greedy((PresencePenalty(0.0),)), eos=())
    np.testing.assert_allclose(same.scores, plain.scores, rtol=1e-6)
    only = tuple(id for id in range(VOCAB) if id != 5)
    forced = generate(*model, [[1, 2, 3]], 6, strategy=Greedy((BadWords(only),)), eos=())
    assert forced.tokens.tolist() == [[5] * 6]
    assert forced.scores.max() < -0.01  # not those of a certain token


def test_alternatives_are_the_likeliest_under_the_model(model):
    found = generate(*model, [[1, 2, 3], [4]], 6, eos=(), alternatives=VOCAB)
    tokens, scores = found.alternatives
    assert tokens.shape == scores.shape == (2, 6, VOCAB)
    assert (np.diff(scores, axis=-1) <= 0).all()
    np.testing.assert_allclose(np.exp(scores).sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(tokens[..., 0], found.tokens)  # greedy
    np.testing.assert_allclose(scores[..., 0], found.scores, rtol=1e-5)
    drawn = generate(*model, [[1, 2, 3]], 6, strategy=Sample(2.0), eos=(), alternatives=3, key=jax.random.key(0))
    few, many = drawn.alternatives[0], generate(*model, [[1, 2, 3]], 6, eos=(), alternatives=3).alternatives[0]
    np.testing.assert_array_equal(few[:, 0], many[:, 0])
    with pytest.raises(ValueError, match="alternatives is -1"):
        generate(*model, [[1]], 2, alternatives=-1)
    with pytest.raises(ValueError, match="alternatives are those of a row"):
        generate(*model, [[1]], 2, strategy=Beam(2), alternatives=1)
