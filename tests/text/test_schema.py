"""Texts of the expression of a JSON schema are JSON that the schema holds of."""

import json
import re

import pytest

from jaxformer.text.schema import Expression, bare


def matches(schema, text, **more):
    """By Python's engine, which reads all that we write in the same way."""
    return re.fullmatch(Expression(schema, **more).regex, text) is not None


def of(**properties):
    return {"type": "object", "properties": properties}


INTEGER, STRING = {"type": "integer"}, {"type": "string"}
CASES = [
    (INTEGER, ["0", "-7", "120"], ["01", "1.5", "", "+1", "1e3"]),
    ({"type": "number"}, ["0", "-7.25", "1e5", "2.5E-10"], ["1.", ".5", "1e999", "NaN"]),
    (STRING, ['""', '"a b"', r'"\n\"\\"', '"日本"'], ["a", '"a"b"', '"\n"', '"\\x"', '"\\"']),
    ({"type": "string", "minLength": 1, "maxLength": 2}, ['"a"', r'"\"b"', '"🙂é"'], ['""', '"abc"']),
    ({"type": "string", "maxLength": 0}, ['""'], ['"a"']),
    ({"type": "string", "pattern": "^[A-Z]{2}$"}, ['"AB"'], ['"A"', '"ABC"', "AB"]),
    ({"type": "string", "format": "date"}, ['"2024-02-28"', '"1999-12-31"'], ['"2024-02-30"', '"2024-13-01"']),
    (
        {"type": "string", "format": "date-time"},
        ['"2024-02-28T23:59:59.5Z"'],
        ['"2024-02-28"', '"2024-02-28T24:00:00Z"'],
    ),
    ({"type": "boolean"}, ["true", "false"], ["True", "1"]),
    ({"type": ["null", "integer"]}, ["null", "5"], ['"5"']),
    ({"enum": ["a.b", 3, None, [1, "x"], "é\n"]}, ['"a.b"', "3", "null", '[1, "x"]', '"é\\n"'], ['"axb"', "[1]"]),
    ({"enum": ["a", 1, True, 2.5], "type": "integer"}, ["1"], ['"a"', "true", "2.5"]),
    ({"const": {"k": "{}"}}, ['{"k": "{}"}'], ["{}"]),
    ({"anyOf": [INTEGER, {"type": "null"}]}, ["1", "null"], ['""']),
    ({"type": "array", "items": INTEGER}, ["[]", "[1]", "[ 1, 2,3 ]"], ["[1,]", "[,1]", "[1 2]"]),
    ({"items": INTEGER, "minItems": 2, "maxItems": 3}, ["[1,2]", "[1,2,3]"], ["[1]", "[]", "[1,2,3,4]"]),
    ({"items": INTEGER, "maxItems": 0}, ["[]"], ["[1]"]),
    ({"items": INTEGER, "minItems": 1}, ["[1]", "[1,2,3]"], ["[]"]),
    ({"prefixItems": [INTEGER, {"type": "null"}], "minItems": 2}, ["[1, null]"], ["[1]", "[1,null,1]"]),
    ({"type": "object", "properties": {}}, ["{}", "{ }"], ['{"a": 1}']),
    (
        of(a=INTEGER, b=STRING),
        ["{}", '{"a": 1}', '{"b":""}', '{"a":1, "b":""}'],
        ['{"a":1,}', '{,"b":""}', '{"b":"","a":1}'],
    ),
    (
        of(a=INTEGER, b=INTEGER, c=INTEGER) | {"required": ["b"]},
        ['{"b":1}', '{"a":1,"b":1}', '{"b":1,"c":1}', '{"a":1,"b":1,"c":1}'],
        ["{}", '{"a":1}', '{"a":1,"c":1}', '{"a":1"b":1}'],
    ),
    (of(**{'a"b': INTEGER}), [r'{"a\"b": 1}'], ['{"a"b": 1}']),
    ({"additionalProperties": INTEGER}, ["{}", '{"x": 1, "y":2}'], ['{"x": null}', '{"x": 1,}']),
    ({"$ref": "#/$defs/n~1m", "$defs": {"n/m": INTEGER}}, ["4"], ["null"]),
    (
        of(a={"$ref": "#/$defs/p"}, b={"$ref": "#/$defs/p"}) | {"$defs": {"p": INTEGER}},
        ['{"a":1,"b":2}'],
        ['{"a":null}'],
    ),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), CASES, ids=lambda part: json.dumps(part)[:40])
def test_what_matches_is_what_the_schema_says(schema, right, wrong):
    for text in right:
        assert matches(schema, text), text
        json.loads(text)
    for text in wrong:
        assert not matches(schema, text), text


def test_between_the_parts_stands_what_is_said():
    assert matches(of(a=INTEGER), '{"a":1}', whitespace="")
    assert not matches(of(a=INTEGER), '{"a": 1}', whitespace="")
    assert matches(of(a=INTEGER), '{\n  "a": 1}', whitespace=r"[ \n]*")


def test_all_that_no_expression_holds_to_is_listed():
    schema = {
        "type": "object",
        "title": "fine",
        "properties": {
            "age": {"type": "integer", "minimum": 0},
            "tags": {"type": "array", "items": STRING, "uniqueItems": True},
            "any": {},
            "list": {"type": "array"},
            "map": {"type": "object"},
            "self": {"$ref": "#"},
            "lost": {"$ref": "#/$defs/nothing"},
            "code": {"type": "string", "pattern": "a", "maxLength": 3},
            "host": {"type": "string", "format": "hostname"},
            "both": {"anyOf": [INTEGER], "minimum": 1},
            "none": {"enum": ["a"], "type": "integer"},
            "true": True,
        },
        "required": ["age", "more"],
        "minProperties": 2,
    }
    with pytest.raises(ValueError) as error:
        Expression(schema)
    lines = str(error.value).splitlines()[1:]
    for said in (
        *("#: minProperties", "age: minimum", "tags: uniqueItems", "any: expected a type", "list: expected items"),
        *("map: expected properties", "lost: there is no #/$defs/nothing", "code: of pattern", "host: format"),
        *(
            "both: minimum",
            "none: none of its values",
            "true: expected an object",
            "required 'more'",
            "# holds itself",
        ),
    ):
        assert any(said in line for line in lines), said


@pytest.mark.parametrize(
    ("pattern", "expected"), [("^a$", "a"), ("a", "a"), (r"a\$", r"a\$"), ("$", ""), ("^[^a]", "[^a]")]
)
def test_anchors_at_the_ends_say_nothing(pattern, expected):
    assert bare(pattern) == expected
