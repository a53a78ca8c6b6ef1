"""The token store: whole or not there, made once, the same for any number of workers."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.text import prepare as module
from jaxformer.text.corpus import open_documents
from jaxformer.text.prepare import Store, prepare, progress_bar

TEXTS = [chr(97 + i % 26) * (i % 7 + 1) for i in range(100)]


def characters(document):
    """Two fields of different lengths, and two examples for some documents."""
    ids = np.frombuffer(document.text.encode(), np.uint8)
    yield {"tokens": ids, "lengths": np.array([len(ids)])}
    if len(ids) > 5:
        yield {"tokens": ids[:1], "lengths": np.array([1, 2, 3])}


FIELDS = {"tokens": 256, "lengths": 100_000}


def contents(store: Store) -> list:
    return [{field: values.tolist() for field, values in store[i].items()} for i in range(len(store))]


def expected() -> list:
    return [
        {field: np.asarray(values).tolist() for field, values in example.items()}
        for document in open_documents(TEXTS)
        for example in characters(document)
    ]


@pytest.fixture
def small(monkeypatch):
    """Several windows and shards."""
    monkeypatch.setattr(module, "WINDOW", 1000)
    monkeypatch.setattr(module, "SHARD", 100)
    monkeypatch.setattr(module, "OVERHEAD", 1)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_store_holds_all_examples_in_order(workers, on_disk, small, tmp_path):
    folder = tmp_path if on_disk else None
    store = prepare(open_documents(TEXTS), characters, FIELDS, "f", folder, workers)
    assert len(store.shards) > 3
    assert contents(store) == expected()
    assert store[0]["tokens"].dtype == np.uint16
    assert store[0]["lengths"].dtype == np.uint32
    assert store.lengths["tokens"].tolist() == [len(e["tokens"]) for e in expected()]
    assert store.sizes.sum() == sum(map(len, TEXTS))
    assert store.read("tokens", 6, 2, 4).tolist() == expected()[6]["tokens"][2:4]


def files(folder: Path) -> list:
    return [(p.relative_to(folder), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]


def test_the_bytes_on_disk_do_not_depend_on_the_workers(small, tmp_path):
    found = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        prepare(open_documents(TEXTS), characters, FIELDS, "f", folder, workers)
        found.append(files(folder))
    assert found[0] == found[1]


def test_preparing_twice_does_nothing_the_second_time(tmp_path):
    def refuse(document):
        raise AssertionError("tokenized again")

    first = prepare(open_documents(TEXTS), characters, FIELDS, "f", tmp_path)
    second = prepare(open_documents(TEXTS), refuse, FIELDS, "f", tmp_path)
    assert contents(second) == contents(first)
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint == prepare(open_documents(TEXTS), characters, FIELDS, "f").fingerprint


def test_other_texts_settings_or_fields_are_another_store(tmp_path):
    names = {
        prepare(open_documents(texts), characters, fields, fingerprint, tmp_path).fingerprint
        for texts in (TEXTS, TEXTS[::-1])
        for fields in (FIELDS, FIELDS | {"tokens": 300})
        for fingerprint in ("f", "g")
    }
    assert len(names) == len(list(tmp_path.iterdir())) == 8


def interrupted(error: BaseException, at: int, folder, seen: list):
    """A preparation that is stopped by `error` at a document; `seen` gets the documents that were begun."""

    def examples(document):
        number = int(document.source.split()[1])
        seen.append(number)
        if number == at:
            raise error
        return characters(document)

    return prepare(open_documents(TEXTS), examples, FIELDS, "f", folder, workers=2)


def whole_shards(folder: Path) -> int:
    return len([place for place in folder.glob(".*.part/shard-*") if place.suffix != ".part"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space left"), MemoryError(), SystemExit()])
def test_an_interrupted_preparation_goes_on_after_its_whole_shards(error, small, tmp_path):
    with pytest.raises(type(error)):
        interrupted(error, 80, tmp_path / "a", [])
    whole = whole_shards(tmp_path / "a")
    assert whole >= 2
    assert not [path for path in (tmp_path / "a").iterdir() if path.name[0] != "."]
    seen: list[int] = []
    told: list = []
    store = prepare(
        open_documents(TEXTS),
        lambda document: seen.append(int(document.source.split()[1])) or characters(document),
        FIELDS,
        "f",
        tmp_path / "a",
        progress=lambda *at: told.append(at),
    )
    first = 100 - len(seen)
    assert sorted(seen) == list(range(first, 100))
    assert first > 10 * whole  # whole shards are not made again
    assert told == [(i + 1, 100) for i in range(first, 100)]
    assert contents(store) == expected()
    prepare(open_documents(TEXTS), characters, FIELDS, "f", tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 99), max_size=4), st.sampled_from([500, 3000, 10**6]), st.integers(1, 3))
def test_however_often_it_is_stopped_the_store_is_the_same(tmp_path_factory, stops, shard, workers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", 2000)
        patch.setattr(module, "SHARD", shard)
        one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
        for stop in stops:
            seen: list[int] = []
            try:
                interrupted(KeyboardInterrupt(), stop, one, seen)
            except KeyboardInterrupt:
                assert stop in seen
        for folder in (one, two):
            prepare(open_documents(TEXTS), characters, FIELDS, "f", folder, workers)
    assert files(one) == files(two)
    assert contents(Store.open(next(two.iterdir()))) == expected()


def test_a_stop_after_the_last_shard_leaves_nothing_but_the_name_to_be_made(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SHARD", 1)  # no shard is left open at the end
    write = module.write_json

    def full(path, value):
        if path.name == "meta.json":
            raise OSError("full")
        write(path, value)

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(OSError, match="full"):
        prepare(open_documents(TEXTS), characters, FIELDS, "f", tmp_path / "a")
    monkeypatch.setattr(module, "write_json", write)
    assert whole_shards(tmp_path / "a") == 100
    for folder in ("a", "b"):
        prepare(open_documents(TEXTS), characters, FIELDS, "f", tmp_path / folder)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert not list(tmp_path.rglob(module.LOCK))


def test_what_fails_for_its_documents_or_its_code_leaves_nothing(small, tmp_path):
    for error in (KeyError("no"), ValueError("bad")):
        with pytest.raises(type(error)):
            interrupted(error, 80, tmp_path, [])
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_preparation_leaves_no_half_store_and_the_next_goes_on(small, tmp_path):
    code = f"""
import time, sys
sys.path[:0] = {sys.path!r}
import numpy as np
from jaxformer.text import prepare as module
from jaxformer.text.corpus import open_documents
module.WINDOW = 100; module.SHARD = 100; module.OVERHEAD = 1
texts = {TEXTS!r}
def slow(document):
    time.sleep(0.02)
    ids = np.frombuffer(document.text.encode(), np.uint8)
    yield {{"tokens": ids, "lengths": np.array([len(ids)])}}
    if len(ids) > 5:
        yield {{"tokens": ids[:1], "lengths": np.array([1, 2, 3])}}
module.prepare(open_documents(texts), slow, {FIELDS!r}, "f", {str(tmp_path / "a")!r}, workers=1)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and not list(tmp_path.glob("a/.*.part/shard-00001/bytes.npy")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (left,) = (tmp_path / "a").iterdir()
    assert left.name.endswith(".part")
    seen: list[int] = []
    documents = open_documents(TEXTS)
    store = prepare(documents, lambda d: seen.append(1) or characters(d), FIELDS, "f", tmp_path / "a")
    assert 0 < len(seen) < 80
    prepare(documents, characters, FIELDS, "f", tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == [store.fingerprint[:16]]


@pytest.mark.parametrize("fails", [False, True])
def test_two_that_make_the_same_store_do_it_once(fails, small, tmp_path):
    begun, go = threading.Event(), threading.Event()
    found: dict[str, Store] = {}
    seen: list[str] = []

    def run(name):
        def examples(document):
            seen.append(name)
            if name == "first":
                begun.set()
                go.wait()
                if fails:
                    raise KeyError("no")
            return characters(document)

        found[name] = prepare(open_documents(TEXTS), examples, FIELDS, "f", tmp_path)

    def first():
        if not fails:
            return run("first")
        with pytest.raises(KeyError):
            run("first")

    threads = [threading.Thread(target=first), threading.Thread(target=run, args=("second",))]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    time.sleep(0.1)
    assert "second" not in seen  # it waits
    go.set()
    for thread in threads:
        thread.join(20)
    assert {*seen} == ({"first", "second"} if fails else {"first"})
    assert contents(found["second"]) == expected()
    assert [path.name for path in tmp_path.iterdir()] == [found["second"].fingerprint[:16]]


def test_records_are_prepared_as_texts_are(small, tmp_path):
    rows = [{"text": text, "label": i % 3} for i, text in enumerate(TEXTS)]

    def labelled(document):
        ids = np.frombuffer(document.record["text"].encode(), np.uint8)
        yield {"tokens": ids, "label": np.array([document.record["label"]])}

    stores = [
        prepare(open_documents(rows, ("text", "label")), labelled, {"tokens": 256, "label": 3}, "f", folder, workers)
        for folder, workers in ((None, 1), (tmp_path, 3))
    ]
    for store in stores:
        assert [int(store[i]["label"][0]) for i in range(100)] == [row["label"] for row in rows]
        assert store.sizes.sum() == sum(map(len, TEXTS))
    assert stores[0].fingerprint == stores[1].fingerprint


def test_a_value_out_of_range_names_its_document():
    def wrong(value):
        return lambda document: [{"tokens": value}]

    for value, message in [
        (np.array([3, 256]), r"document 0: tokens must lie in 0\.\.255, found 3\.\.256"),
        (np.array([-1]), r"found -1\.\.-1"),
        (np.array([0.5]), r"expected integers \[length\], found float64 \[1\]"),
        (np.array([[1]]), r"expected integers \[length\], found int64 \[1, 1\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare(open_documents(["a"]), wrong(value), {"tokens": 256}, "f")
    with pytest.raises(ValueError, match=r"expected the fields \['labels'\], found \['tokens'\]"):
        prepare(open_documents(["a"]), wrong(np.array([1])), {"labels": 256}, "f")


def test_a_damaged_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no meta\.json"):
        Store.open(tmp_path)
    store = prepare(open_documents(TEXTS), characters, FIELDS, "f", tmp_path)
    folder = tmp_path / store.fingerprint[:16]
    (folder / "shard-00000" / "tokens.bin").write_bytes(b"12")
    with pytest.raises(ValueError, match=r"tokens\.bin: damaged"):
        Store.open(folder)


def test_progress_counts_documents(capsys):
    seen = []
    prepare(open_documents(TEXTS), characters, FIELDS, "f", progress=lambda *at: seen.append(at))
    assert seen == [(i + 1, 100) for i in range(100)]
    assert capsys.readouterr().out == ""
    with progress_bar("tokens") as progress:
        prepare(open_documents(TEXTS), characters, FIELDS, "f", progress=progress)
    assert "100/100" in capsys.readouterr().out


def test_no_documents_make_an_empty_store(tmp_path):
    nothing = open_documents(TEXTS).after(100)
    for folder in (None, tmp_path):
        assert len(prepare(nothing, characters, FIELDS, "f", folder)) == 0
