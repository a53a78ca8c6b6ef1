"""Documents: what is read, what is refused, and what is held out."""

import gc
import gzip
import json
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.text.corpus import DataConfig, find_files, open_corpora, open_documents, split
from jaxformer.text.mixture import Part


def texts(documents) -> list:
    return [d.text for d in documents]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo")
    (tmp_path / "b.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n\n{"text": "", "n": 1}\n{"text": "four"}\n')
    (tmp_path / "deep" / "d.md.gz").write_bytes(gzip.compress("fünf".encode()))
    (tmp_path / "deep" / "e.jsonl.gz").write_bytes(gzip.compress(b'{"text": "six"}'))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.png").write_bytes(b"\xff\xfe")
    (tmp_path / ".hidden.txt").write_text("hidden")
    return tmp_path


ALL = ["one\r\ntwo", "# coding: latin-1\nx = 'é'\n", "three", "four", "fünf", "six"]


def test_a_folder_gives_its_documents_in_sorted_order(folder):
    documents = open_documents(DataConfig((str(folder),)))
    assert texts(documents) == texts(documents) == ALL
    assert documents.size == sum(len(t.encode()) for t in ALL)
    sources = [Path(d.source).name for d in documents]
    assert sources == ["a.txt", "b.py", "c.jsonl:1", "c.jsonl:4", "d.md.gz", "e.jsonl.gz:1"]


def test_globs_and_exclusions_choose_files_once(folder):
    def read(*files, exclude=()):
        return texts(open_documents(DataConfig(tuple(f"{folder}/{f}" for f in files), exclude)))

    assert read("*.txt") == ALL[:1]
    assert read("**/*.gz") == ALL[4:]
    assert read("*.txt", "a.txt", ".") == ALL
    assert read(".", exclude=("*/deep/*", "*.py")) == [ALL[0], *ALL[2:4]]


def test_token_arrays_are_documents(tmp_path):
    np.save(tmp_path / "a.npy", np.array([5, 6, 70_000]))
    np.array([1, 2, 3], "<u2").tofile(tmp_path / "b.bin")
    documents = list(open_documents(DataConfig((str(tmp_path),))))
    assert [d.tokens.tolist() for d in documents] == [[5, 6, 70_000], [1, 2, 3]]
    assert [d.size for d in documents] == [0, 0]
    np.save(tmp_path / "c.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"c\.npy: expected integers \[length\], found float64 \[2, 3\]"):
        open_documents(DataConfig((str(tmp_path),)))
    (tmp_path / "c.npy").unlink()
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="found both"):
        open_documents(DataConfig((str(tmp_path),)))


def test_patterns_that_find_nothing_are_all_named_before_anything_is_read(folder, tmp_path):
    (tmp_path / "void").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xff")
    config = DataConfig((f"{folder}/*.txt", "no/*.such", f"{tmp_path}/void"))
    with pytest.raises(FileNotFoundError) as error:
        open_documents(config)
    assert "'no/*.such': no such file (looked from" in str(error.value)
    assert "void': a folder without a file that ends in .txt" in str(error.value)
    assert "a.txt" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no pattern given"):
        open_documents(DataConfig(()))
    with pytest.raises(FileNotFoundError, match=r"data\.exclude leaves out all of it"):
        open_documents(DataConfig((str(folder),), exclude=("*",)))


def test_all_bad_lines_are_told_at_once_with_file_and_line(tmp_path):
    lines = ['{"text": "good"}', "no json", "[1]", '{"txt": "x"}', '{"text": 3}', '{"text": "\\ud800"}']
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    (tmp_path / "bad.txt").write_bytes(b"fine\nfine\nnot \xff fine")
    (tmp_path / "bad.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError) as error:
        open_documents(DataConfig((str(tmp_path),)))
    for part in [
        "bad.jsonl:2: expected a JSON object, found b'no json",
        "bad.jsonl:3: expected a JSON object, found list",
        "bad.jsonl:4: expected the field 'text', found the fields ['txt']",
        "bad.jsonl:5: expected a string in field 'text', found int",
        "bad.jsonl:6: expected Unicode text, found a lone surrogate",
        "bad.txt: line 3: expected utf-8",
        "bad.txt.gz: Not a gzipped file",
    ]:
        assert part in str(error.value)
    (tmp_path / "bad.jsonl").write_text("bad\n" * 100)
    with pytest.raises(ValueError, match="and 82 more"):
        open_documents(DataConfig((str(tmp_path),)))


def test_the_text_field_has_a_name_of_choice(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"content": "x", "text": 1}))
    assert texts(open_documents(DataConfig((str(tmp_path),), text_field="content"))) == ["x"]


def test_strings_in_memory_are_documents():
    assert texts(open_documents(["a", "", "b"])) == ["a", "b"]
    with pytest.raises(ValueError, match="document 1: expected a string, a token array or a mapping, found int"):
        open_documents(["a", 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="found one string 'abc'"):
        open_documents("abc")
    with pytest.raises(ValueError, match="every document is empty"):
        open_documents(["", ""])


def test_the_standard_library_is_there_without_its_tests():
    paths = [path for path, _ in find_files(DataConfig())]
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [p.relative_to(root).as_posix() for p in paths]
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= set(names)
    parts = {part for p in names for part in p.split("/")[:-1]}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert names == sorted(names)
    assert len(names) > 400


def test_what_can_not_be_decoded_is_skipped_in_the_standard_library_alone(tmp_path, monkeypatch):
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_bytes(b"# coding: nonsense\n")
    with pytest.raises(ValueError, match=r"bad\.py: .*unknown encoding"):
        open_documents(DataConfig((str(tmp_path),)))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    documents = open_documents(DataConfig())
    assert texts(documents) == ["x = 1\n"]
    assert documents.skipped.count == 1
    assert documents.skipped.first[0].startswith(f"{tmp_path}/bad.py: ")


@given(st.lists(st.text("abc", min_size=1), min_size=1), st.integers(2, 5), st.randoms())
def test_the_split_is_a_matter_of_content_alone(values, held_out, random):
    if len(set(values)) < 2:
        return
    training, held = (set(texts(part)) for part in split(open_documents(values), held_out))
    assert training | held == set(values)
    assert not training & held
    assert len(held) == -(-len(set(values)) // held_out)
    random.shuffle(values)
    again = split(open_documents([*values, values[0]]), held_out)
    assert [set(texts(part)) for part in again] == [training, held]


def test_the_split_does_not_change_with_the_folder(folder, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved")
    for i, path in enumerate(sorted(folder.rglob("*.*"), reverse=True)):
        path.rename(moved / f"{i}{''.join(path.suffixes)}" if path.name[0] != "." else moved / path.name)
    assert sorted(texts(open_documents(DataConfig((str(moved),))))) == sorted(ALL)
    here = split(open_documents(ALL), 3)
    there = split(open_documents(DataConfig((str(moved),))), 3)
    assert [set(texts(part)) for part in here] == [set(texts(part)) for part in there]


def test_a_single_document_is_cut_after_a_line():
    lines = "".join(f"line {i}\n" for i in range(100))
    training, held = split(open_documents([lines]), 20)
    (head,), (tail,) = texts(training), texts(held)
    assert head + tail == lines
    assert head.endswith("\n")
    assert len(lines) / 20 <= len(tail) <= len(lines) / 20 + 8
    training, held = split(open_documents([lines] * 3), 20)
    assert texts(training) == [head] * 3
    assert texts(held) == [tail]
    training, held = split(open_documents([np.arange(40)]), 20)
    assert [d.tokens.tolist() for d in held] == [[38, 39]]


def test_nothing_is_held_out_unless_asked():
    training, held = split(open_documents(["a", "b"]), 0)
    assert (len(training), len(held)) == (2, 0)
    assert list(held) == []
    for wrong in (1, -1):
        with pytest.raises(ValueError, match="0 or at least 2"):
            split(open_documents(["a", "b"]), wrong)


def test_a_sample_is_large_enough_and_no_larger_than_it_must_be():
    documents = open_documents([f"{i:10}" for i in range(50)])
    assert documents.sample(95).size == 100
    assert documents.sample(10**6).fingerprint == documents.fingerprint
    assert set(texts(documents.sample(95))) < set(texts(documents.sample(200)))


def test_the_fingerprint_knows_content_and_order_not_place(folder):
    documents = open_documents(DataConfig((str(folder),)))
    assert documents.fingerprint == open_documents(ALL).fingerprint
    assert documents.fingerprint != open_documents(ALL[::-1]).fingerprint
    assert documents.fingerprint != open_documents([*ALL, "more"]).fingerprint


def test_a_file_that_changes_while_in_use_is_noticed(folder):
    documents = open_documents(DataConfig((str(folder),)))
    (folder / "a.txt").write_text("other")
    with pytest.raises(ValueError, match=r"a\.txt: changed while it was in use"):
        list(documents)


def test_rows_that_come_or_go_while_in_use_are_noticed(tmp_path):
    file = tmp_path / "a.jsonl"
    for after in (1, 3):
        file.write_text('{"text": "x"}\n' * 2)
        documents = open_documents(DataConfig((str(file),)))
        file.write_text('{"text": "x"}\n' * after)
        with pytest.raises(ValueError, match="changed while it was in use"):
            list(documents)


ROWS = [{"text": f"question {i}", "label": i % 3, "other": None} for i in range(40)]


def test_records_in_memory_are_documents_with_the_columns_of_the_task():
    documents = open_documents(ROWS, ("label", "text"))
    assert [d.record for d in documents] == [{"label": i % 3, "text": f"question {i}"} for i in range(40)]
    assert [d.source for d in documents][:2] == ["document 0", "document 1"]
    assert texts(open_documents(ROWS)) == [row["text"] for row in ROWS]
    assert texts(open_documents(ROWS, config=DataConfig(text_field="text"))) == [row["text"] for row in ROWS]
    assert documents.size == sum(len(row["text"]) for row in ROWS)


def test_records_are_split_by_content_as_texts_are():
    training, held = ({d.record["text"] for d in part} for part in split(open_documents(ROWS, ("text", "label")), 5))
    assert (len(training), len(held)) == (32, 8)
    again = split(open_documents(ROWS[::-1], ("label", "text")), 5)
    assert [{d.record["text"] for d in part} for part in again] == [training, held]
    with pytest.raises(ValueError, match="a single record cannot be cut in two"):
        split(open_documents(ROWS[:1] * 3, ("text",)), 5)


def test_the_fingerprint_of_records_knows_the_columns_and_not_the_file(tmp_path):
    def fingerprint(name, rows, *columns):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return open_documents(DataConfig((str(tmp_path / name),)), columns).fingerprint

    first = fingerprint("a.jsonl", ROWS, "text", "label")
    assert first == fingerprint("b.jsonl", ROWS, "text", "label")
    assert first == fingerprint("b.jsonl", [row | {"other": "x"} for row in ROWS], "label", "text")
    others = {
        fingerprint("c.jsonl", ROWS, "text"),
        fingerprint("c.jsonl", ROWS[::-1], "text", "label"),
        fingerprint("c.jsonl", [*ROWS[:-1], ROWS[-1] | {"label": 7}], "text", "label"),
        fingerprint("c.jsonl", ROWS),
    }
    assert len(others | {first}) == 5


def test_a_bad_row_in_memory_is_named_or_skipped_and_counted():
    rows = [ROWS[0], "no record", {"text": "x"}, ROWS[1], ROWS[2] | {"label": None}]
    with pytest.raises(ValueError) as error:
        open_documents(rows, ("text", "label"))
    for line in [
        "document 1: expected a record with the fields ['label', 'text'], found str",
        "document 2: expected the field 'label', found the fields ['text']",
        "document 4: field 'label': expected a string",
    ]:
        assert line in str(error.value)
    documents = open_documents(rows, ("text", "label"), DataConfig(on_error="skip"))
    assert [d.record["label"] for d in documents] == [0, 1]
    assert documents.skipped.count == 3
    for part in (*split(documents, 2), documents.sample(1)):
        assert part.skipped.count == 3
    with pytest.raises(ValueError, match=r"every document is empty, or bad\n  document 0: expected a record"):
        open_documents(["x"], ("a",), DataConfig(on_error="skip"))


def test_files_that_cannot_be_read_are_skipped_and_counted(folder):
    (folder / "bad.txt").write_bytes(b"\xff")
    (folder / "c.jsonl").write_text('{"text": "three"}\nbad\n{"text": "four"}\n{"text": 5}')
    documents = open_documents(DataConfig((str(folder),), on_error="skip"))
    assert texts(documents) == ALL
    assert documents.skipped.count == 3
    assert "bad.txt: line 1: expected utf-8" in str(documents.skipped)
    assert "c.jsonl:4: expected a string in field 'text', found int" in str(documents.skipped)


def test_an_iterator_is_kept_on_disk_for_as_long_as_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    values = ["a", "", "b", np.arange(1)]
    documents = open_documents(value for value in values[:3])
    assert texts(documents) == texts(documents) == ["a", "b"]
    assert [x + y for x in texts(documents) for y in texts(documents)] == ["aa", "ab", "ba", "bb"]
    training, held = split(documents, 2)
    del documents
    gc.collect()
    assert {*texts(training), *texts(held)} == {"a", "b"}
    assert len(list(tmp_path.iterdir())) == 1
    del training, held
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    (document,) = open_documents(iter(values[3:]))
    assert document.tokens.tolist() == [0]


def test_an_iterable_is_read_anew_and_not_held():
    class Endless:
        asked = 0

        def __iter__(self):
            self.asked += 1
            return (f"text {i}" for i in range(3))

    data = Endless()
    documents = open_documents(data)
    assert data.asked == 1
    assert texts(documents) == texts(documents) == ["text 0", "text 1", "text 2"]
    assert data.asked == 3


def test_with_columns_only_files_with_rows_are_taken(folder):
    (folder / "c.jsonl").write_text(json.dumps(ROWS[0]))
    (folder / "deep" / "e.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[1]).encode()))
    documents = open_documents(DataConfig((str(folder),)), ("text",))
    assert [d.record["text"] for d in documents] == ["question 0", "question 1"]
    with pytest.raises(
        FileNotFoundError, match=r"a\.txt': expected rows \(\.jsonl .*\) with text, label, found /.*a\.txt"
    ):
        open_documents(DataConfig((str(folder / "a.txt"),)), ("text", "label"))
    with pytest.raises(FileNotFoundError, match=r"'stdlib': expected rows"):
        open_documents(DataConfig(), ("text",))


def test_a_mixture_is_opened_by_parts_and_each_is_split(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    parts = (
        Part("plain", (f"{folder}/*.txt",), held_out_files=(f"{folder}/deep/*.md.gz",)),
        Part("rows", (f"{other}/*",)),
    )
    plain, rows = open_corpora(None, DataConfig(mixture=parts, held_out=8))
    assert (plain.name, rows.name) == ("plain", "rows")
    assert texts(plain.training) == ALL[:1]
    assert set(texts(plain.held_out)) <= set(ALL[1:])
    assert (len(rows.training), len(rows.held_out)) == (35, 5)
    with pytest.raises(ValueError, match="opened by open_corpora"):
        open_documents(DataConfig(mixture=parts))
    (alone,) = open_corpora(None, DataConfig((f"{other}/*",), held_out=0), ("text", "label"))
    assert (alone.name, len(alone.training), len(alone.held_out)) == ("", 40, 0)
    assert next(iter(alone.training)).record == {"text": "question 0", "label": 0}
    (memory,) = open_corpora(["one", "two", "three"], DataConfig(held_out=3))
    assert (len(memory.training), len(memory.held_out)) == (2, 1)


def test_a_mixture_that_cannot_be_is_refused_before_anything_is_read():
    parts = (Part("a", ("no.txt",), 1.0), Part("a", (), -1.0), Part("b", ("no.txt",)))
    with pytest.raises(ValueError) as error:
        open_corpora(None, DataConfig(mixture=parts, temperature=0.0, limit=0))
    for line in [
        "'a' names several parts",
        "part 'a': no files",
        "a weight of -1.0",
        "either every part has a weight, or none",
        "temperature and limit are for shares by size",
        "a temperature of 0.0",
        "a limit of 0",
    ]:
        assert line in str(error.value)


def test_text_needs_no_accelerator_library():
    import subprocess

    code = "import jaxformer.text.pack, jaxformer.text.index, jaxformer.text.tokenizer, sys\n"
    code += "print([m for m in ('jax', 'flax', 'orbax', 'torch', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
