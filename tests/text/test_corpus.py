"""Documents: what is read, what is refused, and what is held out."""

import gzip
import json
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.text.corpus import DataConfig, find_files, open_documents, split


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
        "bad.jsonl:3: expected a JSON object with 'text', found list",
        "bad.jsonl:4: expected a string in field 'text', found the fields ['txt']",
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
    with pytest.raises(ValueError, match="document 1: expected a string or a token array, found int"):
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
    assert documents.skipped == (str(tmp_path / "bad.py"),)


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
    assert documents.sample(10**6).chosen == documents.chosen
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


def test_text_needs_no_accelerator_library():
    import subprocess

    code = "import jaxformer.text.pack, jaxformer.text.index, jaxformer.text.tokenizer, sys\n"
    code += "print([m for m in ('jax', 'flax', 'orbax', 'torch', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
