"""Frozen dataclasses as JSON and back: tagged by type, complete in its complaints, running nothing."""

import dataclasses
import reprlib
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A nest of dataclasses, tuples and plain values as JSON values; a dataclass carries its name as "type"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")


def from_json(value: Any, hint: type[T]) -> T:
    """Read what `to_json` wrote, as a `hint`.

    Raises one ValueError that names every unknown key, unknown type and value of a wrong kind with its path.
    """
    errors: list[str] = []
    try:
        result = _read(value, hint, "", errors)
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:  # of a type that checks its fields
        errors.append(str(error))
    if errors:
        raise ValueError(f"cannot read this as {hint.__name__}:\n" + "\n".join(f"  - {line}" for line in errors))
    return typing.cast(T, result)


def _read(value: Any, hint: Any, at: str, errors: list[str]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _read_union(value, args, at, errors)
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(value, hint, at, errors)
    if origin is typing.Literal:
        return value if value in args else _complain(errors, at, f"one of {', '.join(map(repr, args))}", value)
    if origin in (tuple, list) and isinstance(value, list):
        inner = args if origin is tuple and Ellipsis not in args else (args[0],) * len(value)
        if len(inner) != len(value):
            return _complain(errors, at, f"{len(inner)} values", value)
        items = [
            _read(item, kind, f"{at}[{i}]", errors) for i, (item, kind) in enumerate(zip(value, inner, strict=True))
        ]
        return origin(items)
    if origin is dict and isinstance(value, dict):
        return {key: _read(item, args[1], f"{at}.{key}", errors) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023:
        return float(value)
    kind = type(None) if hint is None else origin or hint
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    return _complain(errors, at, f"a {kind.__name__}", value)


def _read_union(value: Any, kinds: tuple[Any, ...], at: str, errors: list[str]) -> Any:
    """Dataclasses are told apart by their tag; of the others the first that takes the value is it."""
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, dict) and "type" in value:
        tagged = {kind.__name__: kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)}
        if not isinstance(value["type"], str) or value["type"] not in tagged:
            return _complain(errors, f"{at}.type", f"one of {', '.join(tagged) or 'no type'}", value["type"])
        return _read(value, tagged[value["type"]], at, errors)
    if len(kinds) == 2 and type(None) in kinds:
        return _read(value, next(kind for kind in kinds if kind is not type(None)), at, errors)
    for kind in kinds:
        tried: list[str] = []
        result = _read(value, kind, at, tried)
        if not tried:
            return result
    return _complain(errors, at, " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds), value)


def _read_dataclass(value: Any, kind: Any, at: str, errors: list[str]) -> Any:
    if not isinstance(value, dict):
        return _complain(errors, at, f"an object of type {kind.__name__}", value)
    if value.get("type", kind.__name__) != kind.__name__:
        return _complain(errors, f"{at}.type", kind.__name__, value["type"])
    hints = typing.get_type_hints(kind)
    known = {item.name: hints[item.name] for item in dataclasses.fields(kind)}
    given = {key: item for key, item in value.items() if key != "type"}
    required = [
        item.name
        for item in dataclasses.fields(kind)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    wrong = [f"{at}.{key}: unknown; {kind.__name__} has {', '.join(known)}" for key in given.keys() - known.keys()]
    wrong += [f"{at}.{key}: missing from {kind.__name__}" for key in required if key not in given]
    errors += sorted(line.lstrip(".") for line in wrong)
    fields = {key: _read(item, known[key], f"{at}.{key}", errors) for key, item in given.items() if key in known}
    return None if errors else kind(**fields)


def _complain(errors: list[str], at: str, expected: str, value: Any) -> None:
    errors.append(f"{at.lstrip('.') or 'the top'}: expected {expected}, got {reprlib.repr(value)}")
