"""Parameter trees by path: patterns that give every path its value, exactly once."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

V = TypeVar("V")
Rules = Sequence[tuple[str, V]]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nest of dicts as {"a/b/c": leaf}, in the nest's order."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}/")
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nest of dicts that `flatten` took apart."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A path pattern as a regular expression.

    `*` stands for anything within one part of a path, `**` for any number of parts, `{a,b}` for a or b.
    """
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "{": "(?:", "}": ")", ",": "|"}
    parts = re.split(r"(\*\*/|\*\*|\*|\{|\}|,)", pattern)
    return re.compile("".join(tokens.get(part) or re.escape(part) for part in parts))


def matches(pattern: str, path: str) -> bool:
    """Whether the pattern describes the whole path."""
    return compiled(pattern).fullmatch(path) is not None


def match(rules: Rules[V], paths: Iterable[str], what: str) -> dict[str, V]:
    """Each path's value by the one rule whose pattern describes it.

    Raises a ValueError that lists every path that no rule, or more than one, describes; `what` names the rules.
    """
    values: dict[str, V] = {}
    wrong: list[str] = []
    for path in paths:
        found = [(pattern, value) for pattern, value in rules if matches(pattern, path)]
        if len(found) == 1:
            values[path] = found[0][1]
        else:
            wrong.append(f"{path}: " + (" and ".join(pattern for pattern, _ in found) or "no rule"))
    if wrong:
        raise ValueError(
            f"the {what} rules must describe each parameter exactly once; these are not:\n"
            + "\n".join(f"  - {line}" for line in sorted(wrong))
        )
    return values


def split(tree: Mapping[str, Any], patterns: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the leaves whose path a pattern describes, all the others), each a nest of dicts.

    Raises a ValueError for a pattern that describes nothing: a freeze that freezes nothing is a mistake.
    """
    flat = flatten(tree)
    idle = [pattern for pattern in patterns if not any(matches(pattern, path) for path in flat)]
    if idle:
        raise ValueError(f"no parameter's path matches {', '.join(idle)}; the paths are {', '.join(flat)}")
    taken = {path for path in flat if any(matches(pattern, path) for pattern in patterns)}
    inside = {path: leaf for path, leaf in flat.items() if path in taken}
    outside = {path: leaf for path, leaf in flat.items() if path not in taken}
    return unflatten(inside), unflatten(outside)


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """One nest out of nests that share no leaf: the way back from `split`."""
    flat: dict[str, Any] = {}
    for tree in trees:
        part = flatten(tree)
        twice = flat.keys() & part.keys()
        if twice:
            raise ValueError(f"these parameters stand in two trees: {', '.join(sorted(twice))}")
        flat |= part
    return unflatten(flat)
