"""Mixtures: the shares of the parts, and that their rows come in order, evenly, none left out."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxformer.text import mixture
from jaxformer.text.mixture import PERIOD, Part, problems, schedule, shares

SHARES = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=8).map(lambda rates: np.array(rates) / sum(rates))
SEED = st.integers(0, 2**32)


def walk(at, start, stop):
    return np.array([at(number) for number in range(start, stop)])


@settings(max_examples=30, deadline=None)
@given(SHARES, SEED, st.integers(0, 3 * PERIOD))
def test_each_part_gives_its_rows_in_order_and_none_is_left_out(asked, seed, stop):
    found = walk(schedule(asked, seed), 0, stop)
    for part in range(len(asked)):
        rows = found[found[:, 0] == part, 1] if stop else np.arange(0)
        np.testing.assert_array_equal(rows, np.arange(len(rows)))


@settings(max_examples=30, deadline=None)
@given(SHARES, SEED, st.integers(0, 2**40))
def test_a_period_holds_each_share_to_a_row(asked, seed, period):
    assume(asked.min() * PERIOD >= 1)  # else the period is longer
    at = schedule(asked, seed)
    found = walk(at, period * PERIOD, (period + 1) * PERIOD)[:, 0]
    counts = np.bincount(found, minlength=len(asked))
    assert (counts >= 1).all()
    assert (np.abs(counts - asked * PERIOD) < 1 + 1e-6).all()


@settings(max_examples=30, deadline=None)
@given(SHARES, SEED, st.integers(0, 3 * PERIOD), st.integers(1, PERIOD))
def test_rows_of_a_part_lie_evenly(asked, seed, start, size):
    """In any stretch, and not in whole periods alone: a random permutation would be off by the root of its size."""
    found = walk(schedule(asked, seed), start, start + size)[:, 0]
    counts = np.bincount(found, minlength=len(asked))
    assert (np.abs(counts - asked * size) <= 2 * (len(asked) + 2)).all()


@given(SHARES, SEED, st.integers(0, 10**15))
def test_a_row_is_a_function_of_its_number(asked, seed, number):
    at, other = schedule(asked, seed), schedule(asked, seed)
    other(number // 2)
    assert at(number) == other(number)
    assert at(number) == at(number)


def test_the_seed_and_the_period_decide_the_order():
    at = schedule([0.5, 0.5], 0)
    orders = [walk(at, 0, 100), walk(at, PERIOD, PERIOD + 100), walk(schedule([0.5, 0.5], 1), 0, 100)]
    assert len({order[:, 0].tobytes() for order in orders}) == 3


def test_a_small_share_lengthens_the_period_until_it_has_a_row():
    asked = np.array([1 / 50_000, 1 - 1 / 50_000])
    found = walk(schedule(asked, 0), 0, 1 << 16)
    assert (found[:, 0] == 0).sum() == 1
    with pytest.raises(ValueError, match=r"part 1 would have a share of 1\.0e-07, less than one row in 1048576"):
        schedule([1 - 1e-7, 1e-7], 0)
    assert mixture.LONGEST_PERIOD == 1 << 20


def test_shares_by_size_are_those_of_the_paper():
    np.testing.assert_allclose(shares([100, 300]), [0.25, 0.75])
    np.testing.assert_allclose(shares([100, 300, 10_000], limit=400), [1 / 8, 3 / 8, 4 / 8])
    np.testing.assert_allclose(shares([100, 400], temperature=2), [1 / 3, 2 / 3])
    np.testing.assert_allclose(shares([1, 10**6], temperature=1e9), [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(shares([100, 400, 10**9], temperature=2, limit=900), [1 / 6, 2 / 6, 3 / 6])


def test_weights_are_shares_whatever_the_sizes():
    np.testing.assert_allclose(shares([5, 10**6], [3, 1]), [0.75, 0.25])
    np.testing.assert_allclose(shares([5, 10], [None, None]), shares([5, 10]))
    np.testing.assert_array_equal(shares([7]), [1.0])


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=20), st.floats(1.0, 100.0), st.integers(1, 10**12))
def test_shares_add_up_and_grow_with_the_size(sizes, temperature, limit):
    found = shares(sizes, temperature=temperature, limit=limit)
    assert found.sum() == pytest.approx(1)
    assert (found > 0).all()
    assert (np.diff(found[np.argsort(sizes)]) >= -1e-12).all()
    plain = shares(sizes)
    assume(plain.max() < 1)
    assert found.max() <= plain.max() + 1e-9  # never less equal than in proportion


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "expected a size and a weight for each part, found 0 and 0"),
        (([1, 2], [1]), "found 2 and 1"),
        (([1, 0],), "part 1 is empty"),
        (([1, 2], [1, None]), "either every part has a weight, or none"),
        (([1, 2], [1, 0]), "a weight of 0: it must be above zero"),
        (([1, 2], [1, float("nan")]), "a weight of nan"),
        (([1, 2], [1, 1], 2.0), "weights are shares as they are"),
        (([1, 2], None, -1.0), "a temperature of -1.0"),
        (([1, 2], None, 1.0, 0), "a limit of 0"),
    ],
)
def test_what_cannot_be_mixed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        shares(*arguments)


def test_a_good_mixture_has_no_problems():
    assert problems([Part("a", ("x",), 1.0), Part("b", ("y",), 2.0)]) == []
    assert problems([Part("a", ("x",)), Part("b", ("y",))], 2.0, 1000) == []
