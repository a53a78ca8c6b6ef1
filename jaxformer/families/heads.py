"""Heads of published models: which one a config.json asks for, how to ask for another, and those that decoders have.

A kind of head is "lm", "embed" (none), "classify", "tag", "answer", or one that a family adds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxformer.config import ExtraHeadConfig, HeadConfig, ModelConfig
from jaxformer.families.attributes import LARGEST
from jaxformer.names import Row, linear

COUNTED = ("classify", "tag")
"""The kinds of head that want a number of labels."""
PUBLISHED = {"lm": "lm_head", "classify": "score", "tag": "classifier", "answer": "qa_outputs"}
"""Kind of head -> the usual name of its layer on a decoder."""


def kind(hf: Mapping[str, Any], architectures: Mapping[str, str]) -> str:
    """The kind of head, by the class that config.json names first; a family's first, where it names none.

    `architectures`: {kind: published class}. Raises ValueError for a class that is not among them.
    """
    named = hf.get("architectures") or [next(iter(architectures.values()))]
    kinds = {name: kind for kind, name in architectures.items()}
    if not isinstance(named, list) or not isinstance(named[0], str) or named[0] not in kinds:
        raise ValueError(
            f"{hf.get('model_type', '')}: architectures={named!r} is not supported: of this model_type there are "
            f"{', '.join(kinds)}; head= takes one of {', '.join(architectures)}"
        )
    return kinds[named[0]]


def labels(hf: Mapping[str, Any], usual: int = 2) -> int:
    """The number of classes that config.json speaks of: as many as id2label names, else num_labels, else `usual`."""
    names, number = hf.get("id2label") or {}, hf.get("num_labels")
    number = usual if number is None else number
    if not isinstance(names, dict) or type(number) is not int or not 0 < number <= LARGEST:
        raise ValueError(
            f"{hf.get('model_type', '')}: id2label={names!r}, num_labels={number!r} is not supported: "
            "expected names by number, and how many there are"
        )
    return len(names) or number


def with_head(hf: Mapping[str, Any], architectures: Mapping[str, str], head: str) -> dict[str, Any]:
    """config.json with another head in place of its own: "classify:58" or "tag:9", any other kind without a number.

    Raises ValueError for a head that the family does not have.
    """
    name, _, number = head.partition(":")
    counts = name in COUNTED
    if name not in architectures or counts != bool(number) or (counts and not (number.isdecimal() and int(number))):
        known = ", ".join(f"{kind}:N" if kind in COUNTED else kind for kind in architectures)
        raise ValueError(f"head={head!r}: of {hf.get('model_type', '')} there are {known}, N the number of labels")
    asked: dict[str, Any] = {"architectures": [architectures[name]]}
    if counts and labels(hf) == int(number):
        return dict(hf) | asked
    if counts:
        names = {str(i): f"LABEL_{i}" for i in range(int(number))}
        asked |= {"id2label": names, "label2id": {label: int(i) for i, label in names.items()}}
    return {name: value for name, value in hf.items() if name not in ("id2label", "label2id", "num_labels")} | asked


def written(
    config: ModelConfig, model_type: str, architectures: Mapping[str, str], bare: str = "embed"
) -> dict[str, Any]:
    """The attributes that speak of the vocabulary and of the head; `bare` is the kind of a model that has none.

    Raises ValueError for a head that the family lacks.
    """
    name = config.extra[0].name if config.extra else "lm" if config.head else bare
    if name not in architectures:
        raise ValueError(f"it has no head {name!r}")
    return {
        "architectures": [architectures[name]],
        "model_type": model_type,
        "vocab_size": config.vocab,
        **({} if config.head is None else {"tie_word_embeddings": config.head.tied}),
        **({"num_labels": config.extra[0].outputs} if name in COUNTED else {}),
    }


# Heads on a decoder, alone or after an encoder.


def classes(begin: str, kinds: Sequence[str] = ("classify", "tag", "answer")) -> dict[str, str]:
    """{kind of head: published class} of decoders whose classes' names begin so."""
    ends = {"classify": "SequenceClassification", "tag": "TokenClassification", "answer": "QuestionAnswering"}
    others = {kind: f"{begin}For{ends[kind]}" for kind in kinds}
    return {"lm": f"{begin}ForCausalLM", **others, "embed": f"{begin}Model"}


def of_decoder(
    hf: Mapping[str, Any], architectures: Mapping[str, str], head: HeadConfig, *, deep: bool = False, usual: int = 2
) -> dict[str, Any]:
    """`head` and `extra` of the ModelConfig that config.json asks for; `head` is the one over the vocabulary.

    `deep`: what classifies has a hidden layer; else it is one product, without bias. `usual` is as in `labels`.
    """
    name = kind(hf, architectures)
    if name not in ("classify", "tag", "answer"):
        return {"head": head if name == "lm" else None}
    extra = ExtraHeadConfig(name, labels(hf, usual) if name in COUNTED else 2)
    if name == "classify":
        extra = replace(extra, reads="last", hidden="tanh" if deep else None, bias=deep)
    return {"head": None, "extra": (extra,)}


def rows(config: ModelConfig, published: Mapping[str, str] = PUBLISHED) -> tuple[Row, ...]:
    """Where the parameters of these heads are published; `published` is {kind: the name of its layer, or layers}."""
    found: tuple[Row, ...] = ()
    if config.head is not None and not config.head.tied:
        found += linear("heads/lm", published["lm"])
    if config.head is not None and config.head.bias:
        found += (Row("heads/lm/bias", f"{published['lm']}.bias"),)
    for extra in config.extra:
        path, name = f"heads/{extra.name}", published[extra.name]
        if extra.hidden is None:
            found += linear(f"{path}/output", name, bias=extra.bias)
        else:
            found += linear(f"{path}/dense", f"{name}.dense", bias=True)
            found += linear(f"{path}/output", f"{name}.out_proj", bias=True)
    return found
