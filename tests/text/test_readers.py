"""Rows of files: the same from every format, read without a table in memory, and bad ones named."""

import csv
import datetime
import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.text import records
from jaxformer.text.corpus import DataConfig, open_documents
from jaxformer.text.readers import read_file
from jaxformer.text.records import Bad

FORMATS = (".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".jsonl.gz", ".csv.gz", ".tsv.gz")
ROWS = [{"a": "x", "b": "ü"}, {"a": "two words", "b": 'q"uote'}, {"a": "z", "b": "1"}]


def write_arrow(path: Path, table) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=2)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)


def write(path: Path, rows: list[dict]) -> Path:
    name = path.name.removesuffix(".gz")
    if name.endswith((".parquet", ".arrow")):
        write_arrow(path, pytest.importorskip("pyarrow").Table.from_pylist(rows))
        return path
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        if name.endswith(".jsonl"):
            file.writelines(json.dumps(row) + "\n" for row in rows)
        elif name.endswith(".csv"):
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines("\t".join(row) + "\r\n" for row in [[*rows[0]], *(map(str, r.values()) for r in rows)])
    return path


def opened(path: Path, columns=("a", "b"), on_error="raise"):
    return open_documents(DataConfig((str(path),), on_error=on_error), columns)


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_rows_are_equal_documents_whatever_the_format(suffix, tmp_path):
    documents = opened(write(tmp_path / f"rows{suffix}", ROWS))
    assert [d.record for d in documents] == ROWS
    assert documents.fingerprint == open_documents(ROWS, ("a", "b")).fingerprint
    first = 1 if ".jsonl" in suffix or suffix in (".parquet", ".arrow") else 2  # a header is a line
    assert [d.source for d in documents] == [f"{tmp_path}/rows{suffix}:{i + first}" for i in range(3)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_without_columns_are_texts(suffix, tmp_path):
    path = write(tmp_path / f"rows{suffix}", ROWS)
    documents = open_documents(DataConfig((str(path),), text_field="b"))
    assert [d.text for d in documents] == ["ü", 'q"uote', "1"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow"])
def test_types_are_kept_where_a_format_has_them(suffix, tmp_path):
    row = {"s": "1", "i": 1, "f": 0.5, "b": True, "ss": ["x", "y"], "ii": [1, 2], "ff": [0.5], "none": []}
    row |= {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    (document,) = opened(write(tmp_path / f"a{suffix}", [row]), tuple(row))
    assert document.record == row
    assert all(type(document.record[name]) is type(row[name]) for name in row)
    assert document.digest == next(iter(open_documents([row], tuple(row)))).digest


def test_rows_of_csv_are_strings(tmp_path):
    (document,) = opened(write(tmp_path / "a.csv", [{"a": 1, "b": True}]))
    assert document.record == {"a": "1", "b": "True"}


@settings(max_examples=50)
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(("a", "b"), st.text("x\"',\t\n\r é", max_size=6))), min_size=1))
def test_what_csv_and_json_writers_write_is_read_again(tmp_path_factory, rows):
    for suffix in (".csv", ".jsonl"):
        path = write(tmp_path_factory.mktemp("a") / f"a{suffix}", rows)
        assert [d.record for d in opened(path)] == rows


def test_a_row_of_csv_is_named_by_the_line_that_it_begins_on(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfa,b\r\n"x\r\ny",z\r\n\r\n"1","2"')
    documents = list(opened(tmp_path / "a.csv"))
    assert [d.record for d in documents] == [{"a": "x\r\ny", "b": "z"}, {"a": "1", "b": "2"}]
    assert [d.source.rpartition(":")[2] for d in documents] == ["2", "5"]


def test_quotes_mean_nothing_in_tsv(tmp_path):
    (tmp_path / "a.tsv").write_text('a\tb\n"open\t5" and 6"\nx\t"y"\n')
    assert [d.record for d in opened(tmp_path / "a.tsv")] == [
        {"a": '"open', "b": '5" and 6"'},
        {"a": "x", "b": '"y"'},
    ]


LONG = b"y" * 1001
BAD_LINES = {
    ".jsonl": [
        (b'{"a": "x"}', r"expected the field 'b', found the fields \['a'\]"),
        (b'{"a": "x", "b": null}', "field 'b': expected a string, .* found null"),
        (b'{"a": "x", "b": [1, "x"]}', "field 'b': expected .* found a list of int and str"),
        (b'{"a": "x", "b": "\xff"}', "expected a JSON object, found .*can't decode byte 0xff"),
        (b'{"a": "x", "b": "\\ud800"}', "field 'b': expected Unicode text, found a lone surrogate"),
        (b'{"a": "x", "b": NaN}', "field 'b': it cannot be written as JSON"),
        (b'{"a": "x", "b": ', "expected a JSON object, found .*Expecting value"),
        (b'["a", "b"]', "expected a JSON object, found list"),
        (b"[" * 900 + b"]" * 50, "expected a JSON object"),
        (b"1" * 900, "expected a JSON object, found int"),
        (b'{"a": "x", "b": "' + LONG + b'"}', "expected a line of at most 1000 bytes, found one of 1021"),
    ],
    ".csv": [
        (b"x", "expected 2 fields, found 1"),
        (b"x,y,z", "expected 2 fields, found 3"),
        (b"x,\xff", "expected utf-8 text, found the byte 0xff"),
        (b'x,"y"z', "expected after '\"'"),
        (b"x," + LONG, "expected a line of at most 1000 bytes, found one of 1004"),
        (b'x,"' + b"y" * 990 + b"\n" + b"z" * 990 + b'"', "expected at most 1000 bytes of text, found 1982"),
    ],
    ".tsv": [
        (b"x", "expected 2 fields, found 1"),
        (b"x\t\xff", "expected utf-8 text, found the byte 0xff"),
        (b"x\t" + LONG, "expected a line of at most 1000 bytes, found one of 1004"),
    ],
}
GOOD = {".jsonl": b'{"a": "1", "b": "2"}', ".csv": b"1,2", ".tsv": b"1\t2"}
HEADER = {".jsonl": b'{"a": "1", "b": "2"}', ".csv": b"a,b", ".tsv": b"a\tb"}


@pytest.mark.parametrize(
    ("suffix", "line", "message"), [(s, *bad) for s, several in BAD_LINES.items() for bad in several]
)
def test_a_bad_line_is_named_or_skipped_and_counted(suffix, line, message, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST", 1000)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\n".join([HEADER[suffix], GOOD[suffix], line, GOOD[suffix], line, GOOD[suffix]]))
    with pytest.raises(ValueError, match=rf"a{suffix}:3: .*({message})") as error:
        opened(path)
    span = line.count(b"\n") + 1
    assert f"a{suffix}:{4 + span}: " in str(error.value)
    documents = opened(path, on_error="skip")
    assert documents.skipped.count == 2
    assert documents.skipped.first[0].startswith(f"{path}:3: ")
    good = [d.record for d in documents]
    assert good == [{"a": "1", "b": "2"}] * (4 if suffix == ".jsonl" else 3)


def test_quotes_that_never_close_are_bad(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'a,b\n1,2\n3,"4\n5,6\n')
    with pytest.raises(ValueError, match=r"a\.csv:3: unexpected end of data"):
        opened(tmp_path / "a.csv")


@pytest.mark.parametrize("header", [b"a,b,a", b'a,"b', b"a,b" + b"x" * 1000])
def test_a_bad_header_ends_the_file(header, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST", 1000)
    (tmp_path / "a.csv").write_bytes(header + b"\n1,2\n3,4\n5,6\n")
    with pytest.raises(ValueError, match=r"a\.csv:1: ") as error:
        opened(tmp_path / "a.csv")
    assert str(error.value).count("a.csv") == 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".arrow"])
def test_a_missing_column_is_named_with_those_that_are_there(suffix, tmp_path):
    path = write(tmp_path / f"a{suffix}", ROWS)
    with pytest.raises(ValueError, match=r":\d: expected the field 'c', found the fields \['a', 'b'\]") as error:
        opened(path, ("a", "c"))
    assert str(error.value).count("expected the field") == 3


def not_utf8():
    """Three strings in Arrow's layout, the second of which is no UTF-8."""
    pyarrow = pytest.importorskip("pyarrow")
    starts = b"".join(start.to_bytes(4, "little") for start in range(4))
    return pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, *map(pyarrow.py_buffer, (starts, b"2\xff2"))])


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_bad_row_of_arrow_is_named_or_skipped_and_counted(suffix, tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(records, "LONGEST", 1000)
    good, path = {"a": "1", "b": "2"}, tmp_path / f"a{suffix}"
    one_row = {
        "found null": pyarrow.Table.from_pylist([good, {"a": "1"}, good]),
        "expected at most 1000 bytes": pyarrow.Table.from_pylist([good, {"a": "1", "b": "x" * 1001}, good]),
        r"utf-8 text.*(the byte 0xff|Invalid UTF8)": pyarrow.table({"a": ["1"] * 3, "b": not_utf8()}),
    }
    tables = one_row | {
        "found bytes": pyarrow.table({"a": ["1"] * 3, "b": [b"1"] * 3}),
        "found datetime": pyarrow.table({"a": ["1"] * 3, "b": [datetime.datetime(2026, 1, 1)] * 3}),
    }
    for message, table in tables.items():
        write_arrow(path, table)
        with pytest.raises(ValueError, match=rf"a{suffix}:2: .*{message}"):
            opened(path)
        if message in one_row:
            documents = opened(path, on_error="skip")
            assert documents.skipped.count == 1
            assert [d.record for d in documents] == [good, good]


def test_columns_that_nobody_asked_for_are_not_looked_at(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    rows = [{"a": "x", "b": None, "c": {"d": 1}}]
    for suffix in (".jsonl", ".parquet", ".arrow"):
        assert [d.record for d in opened(write(tmp_path / f"a{suffix}", rows), ("a",))] == [{"a": "x"}]
    for suffix in (".parquet", ".arrow"):
        write_arrow(tmp_path / f"a{suffix}", pyarrow.table({"a": ["1"] * 3, "b": not_utf8()}))
        assert len(opened(tmp_path / f"a{suffix}", ("a",))) == 3


def test_a_line_of_50_megabytes_is_bad_and_never_held(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    documents = open_documents(DataConfig((str(path),), on_error="skip"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [d.text for d in documents] == ["before", "after"]
    assert documents.skipped.first == [f"{path}:2: expected a line of at most 33554432 bytes, found one of 50000013"]
    assert peak < records.LONGEST + (4 << 20)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_large_file_is_not_held(suffix, tmp_path):
    path = write(tmp_path / f"a{suffix}", [{"a": f"{i:5}" * 1000, "b": "x"} for i in range(2000)])
    tracemalloc.start()
    count = sum(len(d.record["a"]) > 0 for d in opened(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2000
    assert peak < 5_000_000  # the texts alone have 10 MB


def test_a_file_that_breaks_off_is_bad_after_its_last_row(tmp_path):
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % (i**20) for i in range(2000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"after .*a\.jsonl\.gz:\d+: Compressed file ended"):
        open_documents(DataConfig((str(tmp_path / "a.jsonl.gz"),)))
    documents = open_documents(DataConfig((str(tmp_path / "a.jsonl.gz"),), on_error="skip"))
    assert documents.skipped.count == 1
    assert len(documents) > 100
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    pytest.importorskip("pyarrow")
    *_, (place, value) = read_file(tmp_path / "a.parquet", ("a",))
    assert place == str(tmp_path / "a.parquet")
    assert isinstance(value, Bad)


def test_what_needs_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    for name in ("pyarrow", "pyarrow.ipc", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match=r'a\.parquet: .* pip install "jaxformer\[data\]"'):
        opened(tmp_path / "a.parquet", on_error="skip")


def test_parquet_needs_no_pandas(tmp_path):
    path = write(tmp_path / "a.parquet", ROWS)
    code = "import sys; sys.modules['pandas'] = None\n"
    code += "from jaxformer.text.corpus import DataConfig, open_documents\n"
    code += f"print(len(open_documents(DataConfig(({str(path)!r},)), ('a',))))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "3\n"


def test_data_sets_are_read_in_memory_and_as_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = [{"a": f"x{i}", "b": [i], "messages": [{"role": "user", "content": str(i)}]} for i in range(7)]
    columns = ("a", "b", "messages")
    expected = open_documents(rows, columns)
    held = datasets.Dataset.from_list(rows)
    shuffled = held.shuffle(seed=1)
    for data in (held, held.with_format("numpy"), held.to_iterable_dataset()):
        assert [d.record for d in open_documents(data, columns)] == rows
    shuffled.save_to_disk(tmp_path / "saved", num_shards=3)
    found = open_documents(DataConfig((str(tmp_path / "saved"),)), columns)
    assert [d.record for d in found] == list(shuffled) != rows
    assert found.fingerprint == open_documents(shuffled, columns).fingerprint != expected.fingerprint
    datasets.load_from_disk(str(tmp_path / "saved")).map(lambda row: {"a": "other"})  # leaves a file beside them
    assert len(list((tmp_path / "saved").glob("*.arrow"))) > 3
    assert open_documents(DataConfig((str(tmp_path / "saved"),)), columns).fingerprint == found.fingerprint

    both = datasets.DatasetDict(train=held, test=held)
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(FileNotFoundError, match=r"several data sets: name one of them, .*both/test or .*both/train"):
        open_documents(DataConfig((str(tmp_path / "both"),)), columns)
    assert len(open_documents(DataConfig((str(tmp_path / "both/train"),)), columns)) == 7
    with pytest.raises(TypeError, match=r"found a mapping of \['test', 'train'\]"):
        open_documents(both, columns)
