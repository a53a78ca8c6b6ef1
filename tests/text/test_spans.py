"""Spans to be written anew: by hand, against the papers' numbers, and as laws that rebuild the text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.text.spans import (
    UL2,
    corrupt_spans,
    fill_in_the_middle,
    mixture_of_denoisers,
    noise_spans,
    prefix_split,
    span_corruption,
    span_counts,
    span_lengths,
)

EOS = 1
SENTINELS = np.arange(9000, 9500)
MODES = {"R": 8001, "S": 8002, "X": 8003}
FIM = {"prefix": 7001, "suffix": 7002, "middle": 7003, "eos": EOS}
SEEDS = st.integers(0, 2**32)
DENSITIES = st.sampled_from([0.05, 0.15, 0.3, 0.5])
MEANS = st.sampled_from([1.0, 2.0, 3.0, 8.0, 64.0])


class Script:
    """A generator that draws what it is told to, in order."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def draw(self, *_, **__):
        return np.asarray(self.draws.pop(0))

    random = integers = permutation = draw


def seeded(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def text(length: int) -> np.ndarray:
    """Tokens 10, 11, 12 ... as a store gives them, not to be written to."""
    tokens = np.arange(10, 10 + length, dtype=np.uint16)
    tokens.flags.writeable = False
    return tokens


def spans(noise: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], noise, [False]]).astype(int)))
    return (edges[1::2] - edges[::2]).tolist()


def rebuilt(inputs: np.ndarray, targets: np.ndarray) -> list[int]:
    """The text, from inputs and targets alone."""
    assert inputs[-1] == targets[-1] == EOS
    answers: dict[int, list[int]] = {}
    for token in targets[:-1].tolist():
        if token in SENTINELS:
            current = answers[token] = []
        else:
            current.append(token)
    out: list[int] = []
    for token in inputs[:-1].tolist():
        out += answers.pop(token) if token in SENTINELS else [token]
    assert not answers
    return out


def test_the_papers_sentence_by_hand():
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    noise = np.array([word in ("for", "inviting", "last") for word in words])
    inputs, targets = corrupt_spans(np.arange(10, 21), noise, sentinels=[99, 98, 97], eos=EOS)
    assert inputs.tolist() == [10, 11, 99, 14, 15, 16, 17, 98, 19, 20, EOS]
    assert targets.tolist() == [99, 12, 13, 98, 18, EOS]
    assert inputs.dtype == targets.dtype == np.int32


def test_noise_spans_by_hand():
    draws = [3, 0, 1, 2, 4], [0, 1, 2]  # 6 kept tokens are cut behind 4, 4 corrupted ones behind 1
    noise = noise_spans(10, Script(*draws), density=0.4, mean=2.0)
    assert noise.astype(int).tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 1, 1]
    moved = noise_spans(10, Script(*draws, 3), density=0.4, mean=2.0, anywhere=True)
    assert moved.astype(int).tolist() == [0, 1, 0, 0, 1, 1, 1, 0, 0, 0]


def test_lengths_of_t5():
    assert span_lengths(512, 0.15, 3.0) == (568, 114)
    assert span_counts(568) == (85, 28)
    inputs, targets = span_corruption(text(568), seeded(0), sentinels=SENTINELS, eos=EOS)
    assert (len(inputs), len(targets)) == (512, 114)


@given(st.integers(3, 300), DENSITIES, MEANS, SEEDS)
def test_nothing_is_padded_and_nothing_more_would_fit(inputs_length, density, mean, seed):
    length, targets_length = span_lengths(inputs_length, density, mean)
    for size in (length, length + 1):
        noise = noise_spans(size, seeded(seed), density, mean)
        inputs, targets = corrupt_spans(text(size), noise, sentinels=SENTINELS, eos=EOS)
        if size == length:
            assert len(targets) == targets_length
            assert len(inputs) <= inputs_length
            assert len(inputs) == inputs_length or (density, mean) == (0.5, 1.0)
        else:
            assert len(inputs) > inputs_length


def test_fifteen_in_a_hundred_are_corrupted_in_spans_of_three():
    random, first, ones = seeded(1), [], []
    for _ in range(2000):
        noise = noise_spans(568, random)
        sizes = spans(noise)
        assert (sum(sizes), len(sizes)) == (85, 28)
        assert not noise[0]
        assert noise[-1]
        first.append(sizes[0])
        ones.append(sizes.count(1))
    assert abs(np.mean(first) - 85 / 28) < 0.15
    assert abs(np.mean(ones) / 28 - 27 / 84) < 0.01  # where each of the cuts is as likely: (spans - 1) / (tokens - 1)


def test_a_single_span_ends_the_text_or_stands_anywhere():
    random = seeded(2)
    assert all(noise_spans(20, random)[-3:].all() for _ in range(20))
    starts = [int(noise_spans(20, random, anywhere=True).argmax()) for _ in range(9000)]
    np.testing.assert_allclose([starts.count(i) / 9000 for i in range(18)], 1 / 18, atol=0.015)


@given(st.integers(0, 200), DENSITIES, MEANS, SEEDS, st.booleans())
def test_noise_spans_are_as_many_and_hold_as_much_as_was_asked_for(length, density, mean, seed, anywhere):
    sizes = spans(noise_spans(length, seeded(seed), density, mean, anywhere))
    assert (sum(sizes), len(sizes)) == span_counts(length, density, mean)


@given(st.lists(st.booleans(), max_size=60))
def test_inputs_and_targets_rebuild_the_text_whatever_is_corrupted(noise):
    tokens = text(len(noise))
    inputs, targets = corrupt_spans(tokens, np.array(noise, bool), sentinels=SENTINELS, eos=EOS)
    assert rebuilt(inputs, targets) == tokens.tolist()
    marks = [token for token in inputs.tolist() if token in SENTINELS]
    assert marks == [token for token in targets.tolist() if token in SENTINELS] == SENTINELS[: len(marks)].tolist()


def test_what_can_not_be_corrupted_is_an_error():
    with pytest.raises(ValueError, match="3 spans in 6 tokens, and only 2 sentinels"):
        corrupt_spans(text(6), np.array([0, 1, 0, 1, 0, 1], bool), sentinels=[1, 2], eos=EOS)
    for wrong in ({"density": 0.0}, {"density": 1.0}, {"mean": 0.5}):
        with pytest.raises(ValueError, match="0 < density < 1 and mean >= 1"):
            noise_spans(10, seeded(0), **wrong)
    with pytest.raises(ValueError, match="inputs of 3 tokens or more, found 2"):
        span_lengths(2)
    for share in (0.0, 0.6):
        with pytest.raises(ValueError, match="and up to"):
            prefix_split(text(10), seeded(0), share)


def test_a_prefix_by_hand():
    prefix, target = prefix_split(text(6), Script(4))
    assert (prefix.tolist(), target.tolist()) == ([10, 11], [12, 13, 14, 15])
    assert [part.tolist() for part in prefix_split(text(1), seeded(0))] == [[], [10]]
    assert [part.tolist() for part in prefix_split(text(0), seeded(0))] == [[], []]


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_target_is_uniform_and_its_mean_is_the_share(share):
    random = seeded(3)
    sizes = np.array([len(prefix_split(text(400), random, share)[1]) for _ in range(4000)])
    assert abs(sizes.mean() - 400 * share) < 5
    assert 1 <= sizes.min() < 5
    assert 800 * share - 5 < sizes.max() < 800 * share
    assert abs(sizes.std() - 800 * share / 12**0.5) < 5


@given(st.integers(2, 60), st.sampled_from([0.05, 0.25, 0.5]), SEEDS)
def test_prefix_and_target_are_the_text(length, share, seed):
    prefix, target = prefix_split(text(length), seeded(seed), share)
    assert [*prefix, *target] == text(length).tolist()
    assert len(prefix) > 0
    assert len(target) > 0


def test_the_seven_denoisers_have_the_papers_numbers_and_equal_parts():
    length, random = 512, seeded(4)
    modes, last, shares = [], [], {mode: [] for mode in MODES}
    for _ in range(3500):
        inputs, targets = mixture_of_denoisers(text(length), random, sentinels=SENTINELS, eos=EOS, modes=MODES)
        (mode,) = [mode for mode, id in MODES.items() if id == inputs[0]]
        count = int(np.isin(targets, SENTINELS).sum())
        shares[mode].append((round((len(targets) - 1 - count) / length, 2), count))
        modes.append(mode)
        last += [inputs[-2] in SENTINELS] * (mode != "S")
    np.testing.assert_allclose([modes.count(mode) / 3500 for mode in "RSX"], [2 / 7, 1 / 7, 4 / 7], atol=0.03)
    assert set(shares["R"]) == {(0.15, 26), (0.15, 10)}  # 77 tokens in spans of 3 and 8
    assert set(shares["X"]) == {(0.5, 85), (0.5, 32), (0.15, 1), (0.5, 4)}  # of 3, 8, 64 and 64
    assert {count for _, count in shares["S"]} == {1}
    assert abs(np.mean([share for share, _ in shares["S"]]) - 0.25) < 0.02
    assert np.mean(last) < 0.5  # only one that is sequential always ends the text
    for mode, kind in (("R", (0.15, 26)), ("X", (0.15, 1)), ("X", (0.5, 85))):
        assert abs(shares[mode].count(kind) / 3500 - 1 / 7) < 0.03


def test_a_sequential_denoiser_writes_the_end_of_the_text():
    inputs, targets = mixture_of_denoisers(text(8), Script(2, 3), sentinels=SENTINELS, eos=EOS, modes=MODES)
    assert inputs.tolist() == [MODES["S"], 10, 11, 12, 13, 14, SENTINELS[0], EOS]
    assert targets.tolist() == [SENTINELS[0], 15, 16, 17, EOS]


@given(st.integers(0, 150), st.sampled_from(UL2), SEEDS)
def test_a_denoisers_inputs_and_targets_rebuild_the_text(length, denoiser, seed):
    inputs, targets = mixture_of_denoisers(
        text(length), seeded(seed), sentinels=SENTINELS, eos=EOS, modes=MODES, denoisers=[denoiser]
    )
    assert inputs[0] == MODES[denoiser.mode]
    assert rebuilt(inputs[1:], targets) == text(length).tolist()


def test_the_middle_comes_last_by_hand():
    psm = fill_in_the_middle(text(6), Script(0.4, [4, 1], 0.5), **FIM, length=10)
    assert psm.tolist() == [7001, 10, 7002, 14, 15, 7003, 11, 12, 13, EOS]
    spm = fill_in_the_middle(text(6), Script(0.4, [4, 1], 0.4), **FIM, length=10)
    assert spm.tolist() == [7001, 7002, 14, 15, 7003, 10, 11, 12, 13, EOS]
    ended = np.append(text(6), EOS)
    assert fill_in_the_middle(ended, Script(0.4, [4, 1], 0.5), **FIM, length=10).tolist() == psm.tolist()
    assert fill_in_the_middle(ended, Script(0.5), **FIM, length=10).tolist() == ended.tolist()
    assert fill_in_the_middle(ended, Script(0.5), **FIM, length=3).tolist() == [10, 11, 12]
    cut = fill_in_the_middle(text(6), Script(0.4, [1, 3], 0.5), **FIM, length=8)
    assert cut.tolist() == [7001, 10, 7002, 13, 7003, 11, 12, EOS]


def test_the_middle_is_whole_lines_by_hand():
    breaks = np.array([0, 2, 5, 7])
    one = fill_in_the_middle(text(8), Script(0.4, 1, 0, 0.5), **FIM, length=12, breaks=breaks)
    assert one.tolist() == [7001, 10, 11, 7002, 15, 16, 17, 7003, 12, 13, 14, EOS]
    two = fill_in_the_middle(text(8), Script(0.4, 1, 1, 0.5), **FIM, length=12, breaks=breaks, lines=2)
    assert two.tolist() == [7001, 10, 11, 7002, 17, 7003, 12, 13, 14, 15, 16, EOS]
    most = fill_in_the_middle(text(8), Script(0.4, 2, 4, 0.5), **FIM, length=12, breaks=breaks, lines=9)
    assert most.tolist() == [7001, 10, 11, 12, 13, 14, 7002, 17, 7003, 15, 16, EOS]
    short = fill_in_the_middle(text(8), Script(0.4, 0, 0, 0.5), **FIM, length=8, breaks=breaks)  # of 4 tokens
    assert short.tolist() == [7001, 7002, 12, 13, 7003, 10, 11, EOS]
    assert fill_in_the_middle(text(8), Script(0.4), **FIM, length=5, breaks=breaks).tolist() == [10, 11, 12, 13, 14]


def unturned(tokens: list[int]) -> list[int]:
    """The text of a piece, turned or not."""
    if 7001 not in tokens:
        return tokens
    pre, suf, mid = (tokens.index(each) for each in (7001, 7002, 7003))
    assert pre == 0
    assert tokens[-1] == EOS
    return tokens[1:suf] + tokens[mid + 1 : -1] + tokens[suf + 1 : mid]


@given(st.integers(0, 40), st.integers(1, 44), SEEDS, st.booleans(), st.none() | st.sets(st.integers(0, 40)))
def test_a_turned_piece_fits_and_loses_only_its_end(size, length, seed, ended, breaks):
    tokens = np.append(text(size), [EOS] * ended)
    breaks = None if breaks is None else np.array(sorted(breaks), int)
    out = fill_in_the_middle(tokens, seeded(seed), **FIM, length=length, breaks=breaks).tolist()
    assert len(out) <= length
    whole = unturned(out)
    assert whole == tokens[: len(whole)].tolist()
    if 7001 in out:
        assert len(whole) == min(size, length - 4)
    else:
        assert len(whole) == min(len(tokens), length)


def test_half_is_turned_and_half_of_that_begins_with_the_suffix():
    random, turned, spm, sizes = seeded(5), 0, 0, []
    for _ in range(4000):
        out = fill_in_the_middle(text(100), random, **FIM, length=104).tolist()
        if out[0] == 7001:
            turned += 1
            last = out[out.index(7003) + 1 : -1]
            if last[:1] == [10] and out[1] == 7002:
                spm += 1
            else:
                sizes.append(len(last))
    assert abs(turned / 4000 - 0.5) < 0.03
    assert abs(spm / turned - 0.5) < 0.04
    assert abs(np.mean(sizes) - 100 / 3) < 3  # two cuts anywhere leave a third between them


@pytest.mark.parametrize(
    "transform",
    [
        lambda r: np.concatenate(span_corruption(text(50), r, sentinels=SENTINELS, eos=EOS)),
        lambda r: np.concatenate(mixture_of_denoisers(text(50), r, sentinels=SENTINELS, eos=EOS, modes=MODES)),
        lambda r: prefix_split(text(50), r)[0],
        lambda r: fill_in_the_middle(text(50), r, **FIM, length=50),
    ],
    ids=["span_corruption", "mixture_of_denoisers", "prefix_split", "fill_in_the_middle"],
)
def test_a_seed_gives_the_same_and_another_seed_another(transform):
    assert transform(seeded(1)).tolist() == transform(seeded(1)).tolist()
    assert len({tuple(transform(seeded(seed)).tolist()) for seed in range(20)}) > 5
