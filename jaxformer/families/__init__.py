"""Published model types as data: how each family's config.json and tensors are read and written."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from jaxformer.config import BlockConfig, ModelConfig
from jaxformer.families import gpt2, llama
from jaxformer.names import Row


class Family(Protocol):
    """What a file of this folder holds."""

    MODEL_TYPES: tuple[str, ...]
    """The model_type of each config.json that it reads."""
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


FAMILIES: tuple[Family, ...] = (gpt2, llama)


def family(model_type: str) -> Family:
    """The family that reads this model_type. Raises a ValueError that lists what is known."""
    known = {name: each for each in FAMILIES for name in each.MODEL_TYPES}
    if model_type not in known:
        raise ValueError(f"model_type {model_type!r} is not known; known are {', '.join(sorted(known))}")
    return known[model_type]


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
