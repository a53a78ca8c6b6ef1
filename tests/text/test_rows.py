"""Rows as functions of their number: streams, whole examples together, and mixtures."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.text.corpus import open_documents
from jaxformer.text.pack import bins
from jaxformer.text.prepare import Store, prepare
from jaxformer.text.rows import BinRows, MixedRows, StreamRows, padded, side_by_side


def store_of(*documents, vocab=1000) -> Store:
    arrays = [np.asarray(document) for document in documents]
    return prepare(open_documents(arrays), lambda d: [{"tokens": d.tokens}], {"tokens": vocab}, "as they are")


STORE = store_of(*(np.arange(100 * i + 1, 100 * i + 2 + 3 * i) for i in range(9)))


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_without_overlap_each_token_stands_in_one_row():
    rows = StreamRows(store_of([1, 2, 3], [4, 5, 6, 7]), 4, None, overlap=0)
    assert rows.count == 2
    first, second = rows.row(0), rows.row(1)
    assert first["tokens"].tolist() == [1, 2, 3, 4]
    assert first["segments"].tolist() == [1, 1, 1, 2]
    assert first["positions"].tolist() == [0, 1, 2, 0]
    assert first["weights"].tolist() == [1, 1, 1, 1]
    assert second["tokens"].tolist() == [5, 6, 7, 0]
    assert second["weights"].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("overlap", [0, 1])
def test_an_epoch_holds_every_token(overlap):
    rows = StreamRows(STORE, 7, seed=3, overlap=overlap)
    for epoch in (0, 1):
        found: Counter = Counter()
        for number in range(epoch * rows.count, (epoch + 1) * rows.count):
            row = rows.row(number)
            found.update(row["tokens"][overlap:][row["weights"] > 0].tolist())
        firsts = [STORE[i]["tokens"][0] for i in range(len(STORE))] if overlap else []
        wanted = Counter(int(t) for i in range(len(STORE)) for t in STORE[i]["tokens"])
        assert found == wanted - Counter(map(int, firsts))


def test_what_is_drawn_for_a_row_is_a_function_of_its_number():
    def noisy(row, random):
        return row | {"noise": random.integers(0, 1 << 30, 4)}

    rows, again = (StreamRows(STORE, 7, seed=3, transform=noisy) for _ in range(2))
    forwards = [rows.row(n) for n in range(2 * rows.count)]
    assert all(equal(again.row(n), forwards[n]) for n in reversed(range(2 * rows.count)))
    assert len({row["noise"].tobytes() for row in forwards}) == len(forwards)
    still = StreamRows(STORE, 7, None, transform=noisy)
    assert [equal(still.row(n), still.row(n)) for n in range(still.count)] == [True] * still.count


def test_whole_examples_stand_in_a_new_order_in_each_epoch():
    rows = BinRows(STORE, 5, lambda examples, random: {"first": examples[0]["tokens"][:1]})
    orders = [[int(rows.row(e * rows.count + i)["first"][0]) for i in range(rows.count)] for e in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == [100 * i + 1 for i in range(9)]
    assert orders[0] != orders[1]
    kept = BinRows(STORE, None, rows.make)
    assert [int(kept.row(i)["first"][0]) for i in range(9)] == [100 * i + 1 for i in range(9)]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=40), st.integers(0, 3))
def test_bins_hold_each_example_once_and_no_more_than_fits(sizes, seed):
    lengths = np.array(sizes).T
    found = bins([lengths[0], lengths[1]], [10, 8], seed)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(sizes)))
    for row in found:
        assert len(row) == 1 or (lengths[0][row].sum() <= 10 and lengths[1][row].sum() <= 8)
    assert all(map(np.array_equal, found, bins([lengths[0], lengths[1]], [10, 8], seed)))


def test_bins_are_well_filled():
    lengths = np.random.default_rng(0).integers(5, 60, 2000)
    found = bins([lengths], [128], 0)
    assert lengths.sum() / (128 * len(found)) > 0.9


def test_arrays_side_by_side_are_numbered_and_counted():
    row = side_by_side([[5, 6, 7], [8]], 6)
    assert {name: values.tolist() for name, values in row.items()} == {
        "tokens": [5, 6, 7, 8, 0, 0],
        "segments": [1, 1, 1, 2, 0, 0],
        "positions": [0, 1, 2, 0, 0, 0],
    }
    with pytest.raises(ValueError, match="at most 3 values in a row, found 4"):
        side_by_side([[1, 2], [3, 4]], 3)
    assert padded([1, 2, 3], 2).tolist() == [1, 2]
    assert padded([1], 3, fill=9).tolist() == [1, 9, 9]


def test_a_mixture_takes_each_part_in_its_order_and_share():
    parts = [BinRows(store_of(*([i] for i in part)), None, lambda e, r: e[0]) for part in ((1, 2, 3), (11, 12))]
    mixed = MixedRows(parts, [0.75, 0.25], seed=1)
    found = [int(mixed.row(n)["tokens"][0]) for n in range(4096)]
    few, many = [t for t in found if t > 10], [t for t in found if t < 10]
    assert len(few) == 1024
    assert few[:5] == [11, 12, 11, 12, 11]
    assert many[:5] == [1, 2, 3, 1, 2]
    assert mixed.count == 5
    assert mixed.fingerprint != MixedRows(parts[::-1], [0.25, 0.75], seed=1).fingerprint
