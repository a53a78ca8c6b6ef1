"""The token store: whole or not there, made once, the same for any number of workers."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

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


def test_the_bytes_on_disk_do_not_depend_on_the_workers(small, tmp_path):
    found = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        prepare(open_documents(TEXTS), characters, FIELDS, "f", folder, workers)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        found.append([(p.relative_to(folder), p.read_bytes()) for p in files])
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


def test_a_failed_preparation_leaves_nothing(small, tmp_path):
    def failing(document):
        if document.text == TEXTS[60]:
            raise KeyError("no")
        return characters(document)

    with pytest.raises(KeyError):
        prepare(open_documents(TEXTS), failing, FIELDS, "f", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_preparation_leaves_no_half_store_and_the_next_removes_what_it_left(tmp_path):
    code = f"""
import time, sys
sys.path[:0] = {sys.path!r}
from jaxformer.text import prepare as module
from jaxformer.text.corpus import open_documents
module.WINDOW = 100; module.SHARD = 100
texts = {TEXTS!r}
def slow(document):
    time.sleep(0.02)
    yield {{"tokens": [ord(c) for c in document.text]}}
module.prepare(open_documents(texts), slow, {{"tokens": 256}}, "f", {str(tmp_path)!r}, workers=1)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and not list(tmp_path.glob(".*.part/shard-00001/bytes.npy")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    assert left[0].name.endswith(".part")

    def quick(document):
        yield {"tokens": [ord(c) for c in document.text]}

    store = prepare(open_documents(TEXTS), quick, {"tokens": 256}, "f", tmp_path)
    assert [bytes(store[i]["tokens"].astype(np.uint8)).decode() for i in range(len(store))] == TEXTS
    assert list(tmp_path.iterdir()) == [tmp_path / store.fingerprint[:16]]


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    store = prepare(open_documents(TEXTS), characters, FIELDS, "f", tmp_path)
    name = store.fingerprint[:16]
    host = module.socket.gethostname()
    living = tmp_path / f".{name}.{host}.{os.getppid()}.part"
    living.mkdir()
    module.remove_left_over(tmp_path / name)
    assert living.is_dir()


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
    nothing = module.Documents(list, (), (), ())
    for folder in (None, tmp_path):
        assert len(prepare(nothing, characters, FIELDS, "f", folder)) == 0
