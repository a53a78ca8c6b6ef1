"""A JSON schema as a regular expression over the texts of its values.

JSON: RFC 8259. JSON Schema: https://json-schema.org/draft/2020-12/json-schema-validation.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

NOTES = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions"),
}
"""Keywords that allow and forbid nothing."""
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": set[str](),
    "integer": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}
CHARACTER = r'([^"\\\x00-\x1f]|\\["\\/bfnrt])'  # \u and four digits are left out: half a pair is no character
INTEGER = "-?(0|[1-9][0-9]*)"
NUMBER = rf"{INTEGER}(\.[0-9]+)?([eE][-+]?[0-9]{{1,2}})?"
_DATE = (
    "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[-+]([01][0-9]|2[0-3]):[0-5][0-9])"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


class Expression:
    """Makes `regex` of a schema; `patterns` are (where, pattern) of the schema's own patterns.

    Every text of it is JSON that the schema holds of; not every value that it holds of has one: properties come in
    the schema's order, no others are written, an exponent has two digits at most. `whitespace` is what may stand
    between the parts.

    Raises one ValueError that lists every keyword which a regular expression cannot hold to.
    """

    def __init__(self, schema: Schema, whitespace: str = " ?") -> None:
        self.root, self.space, self.wrong = schema, f"({whitespace})", list[str]()
        self.patterns = list[tuple[str, str]]()
        self.regex = self._value(schema, "#", ("#",))
        if self.wrong:
            lines = "\n".join(f"  - {line}" for line in dict.fromkeys(self.wrong))
            raise ValueError(f"no regular expression can hold a text to this JSON schema:\n{lines}")

    def _fail(self, at: str, what: str) -> str:
        self.wrong.append(f"{at}: {what}")
        return ""

    def _value(self, schema: Any, at: str, within: tuple[str, ...]) -> str:
        if not isinstance(schema, Mapping):
            return self._fail(at, f"expected an object that says a type, found {schema!r}")
        for key, write in (("$ref", self._ref), ("anyOf", self._any), ("enum", self._enum), ("const", self._enum)):
            if key in schema:
                self._only(schema, at, {key, "type"} if key in ("enum", "const") else {key})
                return write(schema, at, within)
        types = schema.get("type", next((kind for kind, keys in KEYWORDS.items() if keys & schema.keys()), None))
        types = types if isinstance(types, list) else [types]
        if unknown := [kind for kind in types if kind not in KEYWORDS]:
            return self._fail(at, f"expected a type, one of {', '.join(KEYWORDS)}, found {unknown[0]!r}")
        self._only(schema, at, {"type"}.union(*(KEYWORDS[kind] for kind in types)))
        return _either(self._typed(kind, schema, at, within) for kind in types)

    def _only(self, schema: Schema, at: str, known: set[str]) -> None:
        """Refuses keywords that are neither known here nor notes."""
        for key in schema.keys() - known - NOTES:
            self._fail(at, f"{key} cannot be held to here")

    def _typed(self, kind: str, schema: Schema, at: str, within: tuple[str, ...]) -> str:
        if kind == "object":
            return self._object(schema, at, within)
        if kind == "array":
            return self._array(schema, at, within)
        if kind == "string":
            return f'"{self._string(schema, at)}"'
        return {"number": NUMBER, "integer": INTEGER, "boolean": "(true|false)", "null": "null"}[kind]

    def _ref(self, schema: Schema, at: str, within: tuple[str, ...]) -> str:
        path = schema["$ref"]
        if path in within:
            return self._fail(at, f"{path} holds itself: that takes a grammar")
        found: Any = self.root
        for part in str(path).removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        if not str(path).startswith("#") or found is None:
            return self._fail(at, f"there is no {path}")
        return self._value(found, str(path), (*within, path))

    def _any(self, schema: Schema, at: str, within: tuple[str, ...]) -> str:
        return _either(self._value(each, f"{at}/anyOf/{i}", within) for i, each in enumerate(schema["anyOf"]))

    def _enum(self, schema: Schema, at: str, within: tuple[str, ...]) -> str:
        types = schema.get("type", [*KEYWORDS])
        values = [schema["const"]] if "const" in schema else schema["enum"]
        values = [v for v in values if any(_is(v, kind) for kind in ([types] if isinstance(types, str) else types))]
        if not values:
            return self._fail(at, "none of its values has its type")
        return _either(re.escape(json.dumps(value, ensure_ascii=False)) for value in values)

    def _object(self, schema: Schema, at: str, within: tuple[str, ...]) -> str:
        given, rest, required = (
            schema.get("properties"),
            schema.get("additionalProperties"),
            schema.get("required", ()),
        )
        if given is None and isinstance(rest, Mapping) and not required:
            pair = f'"{CHARACTER}*"{self.space}:{self.space}{self._value(rest, f"{at}/additionalProperties", within)}'
            return self._between("{", f"({pair}({self.space},{self.space}{pair})*)?", "}")
        if given is None:
            return self._fail(at, "expected properties, or a schema in additionalProperties")
        for name in [name for name in required if name not in given]:
            self._fail(at, f"required {name!r} is none of its properties")
        pairs = []
        for name, value in given.items():
            written = re.escape(json.dumps(name, ensure_ascii=False))
            value = self._value(value, f"{at}/properties/{name}", within)
            pairs.append((f"{written}{self.space}:{self.space}{value}", name in required))
        return self._between("{", self._listed(pairs), "}")

    def _listed(self, pairs: Sequence[tuple[str, bool]]) -> str:
        """Properties and whether each is required, with commas between those that are written."""
        after, first = "", ""
        for pair, required in reversed(pairs):
            begins = f"{pair}{after}"
            first = begins if required else _either([begins, first])
            with_comma = f"{self.space},{self.space}{pair}"
            after = (with_comma if required else f"({with_comma})?") + after
        return first

    def _array(self, schema: Schema, at: str, within: tuple[str, ...]) -> str:
        comma, least, most = f"{self.space},{self.space}", schema.get("minItems", 0), schema.get("maxItems")
        if "prefixItems" in schema:
            first = [
                self._value(each, f"{at}/prefixItems/{i}", within) for i, each in enumerate(schema["prefixItems"])
            ]
            if not least <= len(first) <= (len(first) if most is None else most):
                return self._fail(at, f"{len(first)} prefixItems do not fit minItems and maxItems")
            return self._between("[", comma.join(first), "]")
        if "items" not in schema:
            return self._fail(at, "expected items: the schema of its elements")
        if most is not None and most < least:
            return self._fail(at, f"maxItems {most} is below minItems {least}")
        each = self._value(schema["items"], f"{at}/items", within)
        some = f"{each}({comma}{each}){{{max(0, least - 1)},{'' if most is None else max(0, most - 1)}}}"
        return self._between("[", "" if most == 0 else some if least else f"({some})?", "]")

    def _string(self, schema: Schema, at: str) -> str:
        pattern, format = schema.get("pattern"), schema.get("format")
        lengths = schema.keys() & {"minLength", "maxLength"}
        if len(lengths) * (format is not None or pattern is not None) or (format is not None and pattern is not None):
            return self._fail(at, "of pattern, format and lengths one alone can be held to")
        if pattern is not None:
            self.patterns.append((at, bare(pattern)))
            return f"({bare(pattern)})"
        if format is not None and format not in FORMATS:
            return self._fail(at, f"format {format!r} is not one of {', '.join(FORMATS)}")
        if format is not None:
            return FORMATS[format]
        return f"{CHARACTER}{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}"

    def _between(self, left: str, body: str, right: str) -> str:
        return f"\\{left}{self.space}{body}{self.space}\\{right}" if body else f"\\{left}{self.space}\\{right}"


def bare(pattern: str) -> str:
    """A pattern without ^ and $ at its ends: what it is matched against is all of a text anyhow."""
    pattern = pattern.removeprefix("^")
    return pattern[:-1] if pattern.endswith("$") and not pattern.endswith("\\$") else pattern


def _either(choices: Iterable[str]) -> str:
    choices = list(choices)
    return choices[0] if len(choices) == 1 else f"({'|'.join(choices)})"


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (kind == "number" and isinstance(value, float))
        return whole and not isinstance(value, bool)
    return isinstance(value, KINDS[kind])
