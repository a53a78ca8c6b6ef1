"""Batch n is a function of n: laws over batches, hosts and epochs, and the prefetch thread."""

import threading
import time
from collections import Counter

import numpy as np
import pytest

from jaxformer.text.corpus import open_documents
from jaxformer.text.index import Batches, EvaluationBatches, prefetch
from jaxformer.text.prepare import Store, prepare
from jaxformer.text.rows import StreamRows

FIELDS = ["tokens", "segments", "positions", "weights"]
BOS, EOS = 1, 2


def ids(document):
    yield {"tokens": [BOS, *document.tokens, EOS]}


@pytest.fixture(scope="module")
def store() -> Store:
    random = np.random.default_rng(0)
    documents = [random.integers(3, 1000, size) for size in random.integers(1, 60, 40)]
    return prepare(open_documents(documents), ids, {"tokens": 1000}, "f")


def training(store, batch_size, length, seed=0):
    return Batches(StreamRows(store, length, seed), batch_size)


def evaluation(store, batch_size, length, stride=None):
    return EvaluationBatches(StreamRows(store, length, None, stride), batch_size)


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_a_batch_has_the_pinned_shapes_and_dtypes(store):
    for batches in (training(store, 4, 16), evaluation(store, 4, 16)):
        batch = batches.batch(0)
        assert list(batch) == FIELDS
        for field in FIELDS[:3]:
            assert batch[field].shape == (4, 17)
            assert batch[field].dtype == np.int32
        assert batch["weights"].shape == (4, 16)
        assert batch["weights"].dtype == np.float32


def test_a_literal_batch():
    store = prepare(open_documents([np.array([5, 6]), np.array([7])]), ids, {"tokens": 10}, "f")
    (batch,) = evaluation(store, 2, 5)
    assert batch["tokens"].tolist() == [[1, 5, 6, 2, 1, 7], [7, 2, 0, 0, 0, 0]]
    assert batch["segments"].tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 0, 0, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 0, 0, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 1, 0, 1], [1, 0, 0, 0, 0]]


def test_segments_positions_and_weights_agree(store):
    batches = training(store, 4, 16, seed=3)
    for n in range(40):
        batch = batches.batch(n)
        segments, positions = batch["segments"], batch["positions"]
        steps = np.diff(segments, axis=1)
        begins = steps == 1
        assert np.all((steps == 0) | begins | (segments[:, 1:] == 0))
        assert np.all(positions[:, 1:] == np.where((steps == 0) & (segments[:, 1:] > 0), positions[:, :-1] + 1, 0))
        assert np.array_equal(batch["weights"], (steps == 0) & (segments[:, 1:] > 0))
        assert np.all(batch["tokens"][:, 1:][begins] == BOS)
        assert np.all(batch["tokens"][:, :-1][begins] == EOS)


def test_any_number_of_hosts_reads_the_same_batch(store):
    whole = training(store, 8, 16, seed=1)
    for n in (0, 5, 31):
        for hosts in (1, 2, 4, 8):
            size = 8 // hosts
            parts = [training(store, 8, 16, seed=1).batch(n, slice(h * size, (h + 1) * size)) for h in range(hosts)]
            assert equal({k: np.concatenate([p[k] for p in parts]) for k in parts[0]}, whole.batch(n))


def test_a_batch_does_not_depend_on_the_batches_before(store):
    one = training(store, 4, 16, seed=1)
    forwards = [one.batch(n) for n in range(30)]
    for n in reversed(range(30)):
        assert equal(training(store, 4, 16, seed=1).batch(n), forwards[n])
        assert equal(one.batch(n), forwards[n])
    assert not equal(training(store, 4, 16, seed=2).batch(0), forwards[0])


def test_two_epochs_hold_the_same_targets(store):
    batches = training(store, 1, 16, seed=1)
    rows = batches.rows.count
    epochs = []
    for epoch in (0, 1):
        count: Counter = Counter()
        for n in range(epoch * rows, (epoch + 1) * rows):
            batch = batches.batch(n)
            count.update(batch["tokens"][:, 1:][batch["weights"] > 0].tolist())
        epochs.append(count)
    everything = Counter(t for i in range(len(store)) for t in store[i]["tokens"][1:].tolist())
    assert epochs == [everything, everything]
    assert batches.epoch_of(rows) == 1.0
    assert training(store, 4, 16).epoch_of(rows) == 4.0


@pytest.mark.parametrize("length", [1, 7, 16, 10_000])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_evaluation_counts_each_target_once(store, length, batch_size):
    targets = store.lengths["tokens"].sum() - len(store)
    for stride in {length, max(1, length // 2), max(1, length // 5)}:
        batches = evaluation(store, batch_size, length, stride)
        assert sum(batch["weights"].sum() for batch in batches) == targets
        assert all(len(batch["tokens"]) == batch_size for batch in batches)
        for outside in (-1, len(batches)):
            with pytest.raises(IndexError, match="of"):
                batches.batch(outside)


def test_a_state_is_refused_when_the_data_changed(store):
    batches = training(store, 4, 16)
    state = batches.state(17)
    assert state == {"n": 17, "fingerprint": store.fingerprint}
    assert training(store, 8, 16).check(state) == 17
    other = prepare(open_documents([np.arange(3, 30)]), ids, {"tokens": 1000}, "f")
    with pytest.raises(ValueError, match="the data changed"):
        training(other, 4, 16).check(state)


def test_a_resumed_prefetch_continues(store):
    batches = training(store, 4, 16, seed=1)
    direct = [batches.batch(n) for n in range(12)]
    assert all(map(equal, prefetch(batches.batch, 0, 12), direct))
    source = prefetch(batches.batch)
    assert all(equal(next(source), direct[n]) for n in range(5))
    source.close()
    assert all(map(equal, prefetch(batches.batch, 5, 12), direct[5:]))
    assert list(prefetch(batches.batch, 3, 3)) == []


def test_prefetch_works_ahead_by_its_depth_and_stops_when_closed():
    asked: list[int] = []
    source = prefetch(lambda n: asked.append(n) or n, start=10, depth=2)
    assert next(source) == 10
    deadline = time.monotonic() + 5
    while len(asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert asked == [10, 11, 12, 13]  # one used, two ready, one waiting for its place
    source.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    assert asked[-1] == 13


def test_an_error_of_the_source_comes_where_its_batch_is_due():
    source = prefetch(lambda n: 1 // (3 - n))
    assert [next(source) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(source)
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
