"""Published model types as data: how each family's config.json and tensors are read and written."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from jaxformer.config import BlockConfig, ModelConfig
from jaxformer.families import (
    albert,
    bart,
    bert,
    bloom,
    camembert,
    distilbert,
    electra,
    gemma,
    gemma2,
    gemma3_text,
    gpt2,
    gpt_neo,
    gptj,
    heads,
    llama,
    marian,
    mbart,
    mistral,
    mixtral,
    mt5,
    opt,
    pegasus,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    smollm3,
    t5,
    xlm_roberta,
)
from jaxformer.names import Row


class Family(Protocol):
    """What a file of this folder holds."""

    MODEL_TYPES: tuple[str, ...]
    """The model_type of each config.json that it reads."""
    ARCHITECTURES: dict[str, str]
    """{kind of head: published class}, the default first (heads.py)."""
    PREFIX: str
    """How the published names begin; a file in which none does is read without it."""
    IGNORED: tuple[str, ...]
    """Patterns of published tensors that are no parameters."""
    SIZES: dict[str, ModelConfig]
    """Published sizes by name."""
    TOKENIZER: dict[str, Any]
    """The kind of tokenizer, and its special tokens by role."""

    def config(self, hf: Mapping[str, Any]) -> ModelConfig:
        """The architecture of a config.json; a ValueError names each attribute that cannot be expressed."""
        ...

    def hf_config(self, config: ModelConfig) -> dict[str, Any]:
        """A complete config.json, as far as one expresses this; ValueError where it cannot begin to."""
        ...

    def names(self, config: ModelConfig) -> tuple[Row, ...]:
        """Where each parameter is published."""
        ...

    # A family may also have gguf, of_tensors, computed and BARE: the functions below say what they are.


FAMILIES: tuple[Family, ...] = (
    gpt2,
    llama,
    mistral,
    qwen2,
    qwen3,
    gemma,
    gemma2,
    gemma3_text,
    phi3,
    smollm3,
    mixtral,
    qwen3_moe,
    opt,
    bloom,
    gptj,
    gpt_neo,
    bart,
    marian,
    mbart,
    pegasus,
    t5,
    mt5,
    bert,
    roberta,
    distilbert,
    albert,
    electra,
    camembert,
    xlm_roberta,
)


def family(model_type: str) -> Family:
    """The family that reads this model_type. Raises a ValueError that lists what is known."""
    known = {name: each for each in FAMILIES for name in each.MODEL_TYPES}
    if not isinstance(model_type, str) or model_type not in known:
        raise ValueError(f"model_type {model_type!r} is not known; known are {', '.join(sorted(known))}")
    return known[model_type]


def head_tensors(hf: Mapping[str, Any]) -> tuple[str, ...]:
    """Patterns of the published tensors that a model of this family may hold and this config.json's does not.

    They are those of other heads, of output matrices that are tied, of a stack that is not there. Raises a
    ValueError as the family's `config` does.
    """
    own, found = family(hf["model_type"]), set[str]()
    here = {row.path for row in own.names(own.config(hf))}
    for kind in own.ARCHITECTURES:
        asked = heads.with_head(hf, own.ARCHITECTURES, f"{kind}:2" if kind in heads.COUNTED else kind)
        try:
            rows = own.names(own.config(asked))
        except ValueError:  # no such head on this architecture
            continue
        for row in rows:
            if row.path == "embed/embedding":
                found.update(row.also)
            elif row.path not in here:
                found.update((row.published, *row.also))
    return tuple(sorted(name.replace("{layer}", "*") for name in found))


def of_tensors(hf: Mapping[str, Any], published: Collection[str]) -> dict[str, Any]:
    """config.json, which says so where the names of the tensors show that an encoder alone has no pooler.

    A family may have an `of_tensors` of its own.
    """
    own = family(hf["model_type"])
    if hasattr(own, "of_tensors"):
        return own.of_tensors(hf, published)
    if heads.kind(hf, own.ARCHITECTURES) != "embed":
        return dict(hf)
    poolers = [row.published for row in own.names(own.config(hf)) if row.path == "heads/pooler/kernel"]
    if all(name in published or name.removeprefix(own.PREFIX) in published for name in poolers):
        return dict(hf)
    return dict(hf) | {"add_pooling_layer": False}


def gguf(model_type: str, config: ModelConfig) -> tuple[Row, ...]:
    """Where a GGUF file holds each parameter. Raises ValueError for a family that has no such files."""
    own = family(model_type)
    if not hasattr(own, "gguf"):
        raise ValueError(f"GGUF files of {model_type} are not read")
    return own.gguf(config)


def as_published(hf: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file: with those that are computed, and without the prefix where the class has none.

    A family may say so: `computed(hf)` are tables by name, numpy float32; BARE the kinds of head whose names lack
    the prefix (else that of no head at all).
    """
    own, tensors = family(hf["model_type"]), dict(tensors)
    dtype = next(iter(tensors.values())).dtype
    if hasattr(own, "computed"):
        tensors |= {name: table.astype(dtype) for name, table in own.computed(hf).items()}
    if heads.kind(hf, own.ARCHITECTURES) not in getattr(own, "BARE", ("embed",)):
        return tensors
    return {name.removeprefix(own.PREFIX): tensor for name, tensor in tensors.items()}


def publish(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """(model_type, config.json) by the first family that expresses this architecture without loss.

    Raises a ValueError that says, family by family, what cannot be expressed.
    """
    reasons = []
    for each in FAMILIES:
        model_type = each.MODEL_TYPES[0]
        try:
            written = each.hf_config(config)
            read = each.config(written)
        except ValueError as error:
            reasons.append(f"{model_type}: {error}")
            continue
        if read == config:
            return model_type, written
        reasons.append(f"{model_type}: " + ", ".join(_differences(config, read)))
    raise ValueError(
        "no known model_type expresses this architecture:\n" + "\n".join(f"  - {line}" for line in reasons)
    )


def _differences(given: Any, read: Any, at: str = "") -> Iterator[str]:
    """Every field of a nest of dataclasses and tuples that did not come back."""
    if given == read:
        return
    if dataclasses.is_dataclass(given) and type(given) is type(read):
        for item in dataclasses.fields(given):
            inner = getattr(given, item.name), getattr(read, item.name)
            yield from _differences(*inner, f"{at}.{item.name}".lstrip("."))
    elif isinstance(given, tuple) and given and isinstance(given[0], BlockConfig) and len(given) == len(read):
        for i, inner in enumerate(zip(given, read, strict=True)):
            yield from _differences(*inner, f"{at}[{i}]")
    else:
        yield f"{at} is {given!r}, would come back as {read!r}"
