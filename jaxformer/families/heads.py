"""Which head a config.json asks for, and how to ask for another: "lm", "embed", "classify:58", "tag:9", "answer"."""

from collections.abc import Mapping
from typing import Any

COUNTED = ("classify", "tag")
"""The kinds of head that want a number of labels."""


def kind(hf: Mapping[str, Any], architectures: Mapping[str, str]) -> str:
    """The kind of head, by the class that config.json names first; "lm", or a family's first, where it names none.

    `architectures`: {kind: published class}. Raises ValueError for a class that is not among them.
    """
    named = hf.get("architectures") or [next(iter(architectures.values()))]
    kinds = {name: kind for kind, name in architectures.items()}
    if not isinstance(named, list) or not isinstance(named[0], str) or named[0] not in kinds:
        model_type = hf.get("model_type", "")
        raise ValueError(
            f"{model_type}: architectures={named!r} is not supported: of this model_type there are "
            f"{', '.join(kinds)}; head= takes one of {', '.join(architectures)}"
        )
    return kinds[named[0]]


def labels(hf: Mapping[str, Any]) -> int:
    """The number of classes that config.json speaks of: id2label, else num_labels, else 2."""
    names, number = hf.get("id2label") or {}, hf.get("num_labels") or 2
    if not isinstance(names, dict) or not isinstance(number, int) or not 0 < number < 2**31:
        raise ValueError(
            f"id2label={names!r}, num_labels={number!r}: expected names by number, and how many there are"
        )
    return len(names) or number


def with_head(hf: Mapping[str, Any], architectures: Mapping[str, str], head: str) -> dict[str, Any]:
    """config.json with another head in place of its own. Raises ValueError for one that the family does not have."""
    name, _, number = head.partition(":")
    counts = name in COUNTED
    if name not in architectures or counts != bool(number) or (counts and not (number.isdecimal() and int(number))):
        known = ", ".join(f"{kind}:N" if kind in COUNTED else kind for kind in architectures)
        raise ValueError(f"head={head!r}: of {hf.get('model_type', '')} there are {known}, N the number of labels")
    changed = {name: value for name, value in hf.items() if name not in ("id2label", "label2id", "num_labels")}
    changed["architectures"] = [architectures[name]]
    if counts and labels(hf) == int(number):
        return dict(hf) | {"architectures": [architectures[name]]}
    if counts:
        names = {str(i): f"LABEL_{i}" for i in range(int(number))}
        changed |= {"id2label": names, "label2id": {label: int(i) for i, label in names.items()}}
    return changed
