"""Documents: what a text, a token array or a record may be, and what names it."""

from collections import UserDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.text.records import Bad, Document, Problems, make

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
NUMBER = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
DICT = st.dictionaries(TEXT, TEXT | NUMBER, max_size=3)
VALUE = TEXT | NUMBER | st.lists(TEXT) | st.lists(NUMBER) | st.lists(DICT)
RECORD = st.dictionaries(TEXT, VALUE, min_size=1, max_size=4)


def record(row, *columns):
    return make("here", row, columns or tuple(row), "text").record


@given(RECORD)
def test_a_record_holds_exactly_the_columns_that_are_asked_for(row):
    assert record(row) == row
    name = next(iter(row))
    assert record(row | {"other": object()}, name) == {name: row[name]}


@given(RECORD, RECORD)
def test_equal_records_and_no_others_have_equal_digests(one, two):
    def digest(row):
        return Document("here", record=row).digest

    assert digest(one) == digest(dict(reversed(one.items())))
    same = repr(sorted(one.items())) == repr(sorted(two.items()))
    assert same or digest(one) != digest(two)


def test_texts_tokens_and_records_never_share_a_digest():
    alike = [
        Document("a", text='{"a":"x"}'),
        Document("a", record={"a": "x"}),
        Document("a", tokens=np.frombuffer(b'{"a":"x"}', np.uint8)),
    ]
    assert len({document.digest for document in alike}) == 3
    assert Document("a", record={"a": 1}).digest != Document("a", record={"a": "1"}).digest
    assert Document("here", text="x").digest == Document("there", text="x").digest


def test_the_size_counts_the_bytes_of_every_string():
    assert Document("a", text="fünf").size == 5
    assert Document("a", tokens=np.arange(3)).size == 0
    row = {"n": 3, "q": "ü", "options": ["ab", "c"], "messages": [{"role": "user", "content": "hi"}]}
    assert Document("a", record=row).size == 2 + 3 + 6
    assert list(Document("a", record=row).texts()) == ["ü", "ab", "c", "user", "hi"]


def test_arrays_tuples_and_numpy_numbers_become_plain():
    row = UserDict(a=np.float32(0.5), b=np.arange(3), c=("x", "y"), d=np.str_("z"), e=[{"k": "v", "none": None}])
    found = record(row)
    assert found == {"a": 0.5, "b": [0, 1, 2], "c": ["x", "y"], "d": "z", "e": [{"k": "v"}]}
    assert [type(found[name]) for name in "abd"] == [float, list, str]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "found null"),
        ({"a": 1}, "found dict"),
        (b"x", "found bytes"),
        ([1, "x"], "found a list of int and str"),
        ([["x"]], "found a list of list"),
        ([None], "found a list of null"),
        (float("nan"), "cannot be written as JSON"),
        ([1.0, float("inf")], "cannot be written as JSON"),
        ("a\ud800", "found a lone surrogate, '\\ud800'"),
        ([{"a": b"x"}], "cannot be written as JSON"),
        ([{1: "x", "a": "y"}], "cannot be written as JSON"),
    ],
)
def test_what_a_record_cannot_hold_is_told_with_its_field(value, found):
    with pytest.raises(Bad) as error:
        record({"good": "x", "bad": value})
    assert "'bad'" in str(error.value)
    assert found in str(error.value)


def test_what_nests_too_deeply_is_bad():
    value: list = [{}]
    for _ in range(100_000):
        value = [{"a": value}]
    with pytest.raises(Bad, match=r"field 'a': (nested too deeply|it cannot be written)"):
        record({"a": value})
    while value[0]:  # a deep nest must not be freed in one go
        value = value[0].pop("a")


def test_missing_columns_are_named_with_those_that_are_there():
    with pytest.raises(Bad, match=r"expected the field 'c', found the fields \['a', 'b'\]"):
        record({"a": 1, "b": 2}, "a", "c")
    with pytest.raises(Bad, match=r"expected the fields 'c' and 'd', found"):
        record({"a": 1}, "c", "d")


def test_without_columns_the_text_field_is_the_document():
    def text(value):
        return make("here", value, (), "body")

    assert text({"body": "x", "other": None}).text == text("x").text == "x"
    assert text({"body": ""}) is text("") is text(np.arange(0)) is None
    for value, message in [
        ({"text": "x"}, r"expected the field 'body', found the fields \['text'\]"),
        ({"body": 3}, "expected a string in field 'body', found int"),
        ({"body": None}, "expected a string in field 'body', found null"),
        (3, "expected a string, a token array or a mapping, found int"),
        (np.zeros(3), r"expected integers \[length\], found float64 \[3\]"),
        ("\udcff", "a lone surrogate"),
    ]:
        with pytest.raises(Bad, match=message):
            text(value)
    with pytest.raises(Bad, match=r"expected a record with the fields \['a'\], found str"):
        make("here", "x", ("a",), "text")


def test_problems_are_counted_and_the_first_are_listed():
    problems = Problems()
    for i in range(30):
        problems.add(f"row {i}", "bad")
    assert problems.count == 30
    assert str(problems).splitlines()[0] == "  row 0: bad"
    assert str(problems).splitlines()[-1] == "  ... and 10 more"
    assert len(problems.first) == 20
