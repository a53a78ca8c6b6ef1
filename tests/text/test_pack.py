"""Packing loses nothing, as literal rows and as laws over any lengths."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxformer.text.pack import Packing, Piece

LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=12)


def places(packing: Packing, row: int) -> list[tuple[int, int]]:
    """(document, index) of each token of a row."""
    return [(p.document, i) for p in packing.pieces(row) for i in range(p.start, p.stop)]


def targets(packing: Packing, epoch: int) -> Counter:
    """How often each token is the target of its predecessor in one epoch."""
    count: Counter = Counter()
    for row in range(epoch * packing.rows, (epoch + 1) * packing.rows):
        at = places(packing, row)
        pairs = list(pairwise(at))[packing.fresh(row) :]
        count.update(b for a, b in pairs if a[0] == b[0])
    return count


def continuations(lengths) -> Counter:
    return Counter((d, i) for d, length in enumerate(lengths) for i in range(1, length))


def test_rows_without_a_seed_are_the_documents_on_end():
    packing = Packing(np.array([3, 0, 6, 2]), 4, seed=None)
    assert packing.rows == 3
    assert [packing.pieces(row) for row in range(3)] == [
        [Piece(0, 0, 3), Piece(2, 0, 2)],
        [Piece(2, 1, 6)],
        [Piece(2, 5, 6), Piece(3, 0, 2)],
    ]


@given(LENGTHS, st.integers(1, 12), st.integers(0, 9), st.integers(0, 3))
def test_each_token_but_a_documents_first_is_a_target_once_an_epoch(lengths, length, seed, epoch):
    assume(sum(lengths) > 1)
    for packing in (Packing(np.array(lengths), length, seed), Packing(np.array(lengths), length, None)):
        assert targets(packing, epoch) == continuations(lengths)
        assert all(len(places(packing, row)) <= length + 1 for row in range(packing.rows))


@given(LENGTHS, st.data())
def test_a_stride_counts_each_target_once_and_gives_it_context(lengths, data):
    assume(sum(lengths) > 1)
    length = data.draw(st.integers(1, 12))
    stride = data.draw(st.integers(1, length))
    packing = Packing(np.array(lengths), length, None, stride)
    assert targets(packing, 0) == continuations(lengths)
    for row in range(packing.rows):
        at = places(packing, row)
        for place in range(packing.fresh(row) + 1, len(at)):
            document, index = at[place]
            seen = sum(other[0] == document for other in at[:place])
            assert seen >= min(index, length - stride)


def test_each_epoch_has_its_own_order_and_only_full_rows_but_one():
    packing = Packing(np.full(30, 10), 7, seed=1)
    epochs = [[packing.pieces(row) for row in range(e * packing.rows, (e + 1) * packing.rows)] for e in (0, 1)]
    assert epochs[0] != epochs[1]
    for rows in epochs:
        assert sum(sum(p.stop - p.start for p in row) < 8 for row in rows) <= 1
    assert [packing.pieces(row) for row in range(packing.rows)] == epochs[0]  # whatever was asked for before
    assert [Packing(np.full(30, 10), 7, seed=2).pieces(row) for row in range(packing.rows)] != epochs[0]


def test_what_can_not_be_packed_is_an_error():
    with pytest.raises(ValueError, match="2 tokens or more in all, found 1"):
        Packing(np.array([1, 0]), 4, 0)
    with pytest.raises(ValueError, match="1 <= stride <= length"):
        Packing(np.array([5]), 4, None, 5)
    with pytest.raises(ValueError, match="for evaluation"):
        Packing(np.array([5]), 4, 0, 2)
