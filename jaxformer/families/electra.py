"""ELECTRA: "Pre-training Text Encoders as Discriminators" (Clark et al., 2020, arXiv:2003.10555)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import encoder_rows, heads
from jaxformer.families.attributes import Attributes
from jaxformer.families.encoder_rows import Extra, Kind, Names
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("electra",)
PREFIX = "electra."
"""Names of the encoder's tensors begin so; those of the encoder alone are published without it."""
TOKENIZER = encoder_rows.WORDPIECE
NAMES = Names(
    PREFIX,
    transform="generator_predictions.dense",
    norm="generator_predictions.LayerNorm",
    output="generator_lm_head",
)
_DETECT = Extra(
    "detect",
    "discriminator_predictions.dense_prediction",
    outputs=1,
    dense="discriminator_predictions.dense",
    hidden="own",
)
_CLASSIFY = Extra("classify", "classifier.out_proj", reads="first", dense="classifier.dense", hidden="gelu")
KINDS = {
    "detect": Kind("ElectraForPreTraining", _DETECT),
    "lm": Kind("ElectraForMaskedLM", lm=True),
    "classify": Kind("ElectraForSequenceClassification", _CLASSIFY),
    "tag": Kind("ElectraForTokenClassification", encoder_rows.TAG),
    "answer": Kind("ElectraForQuestionAnswering", encoder_rows.ANSWER),
    "embed": Kind("ElectraModel"),
}
ARCHITECTURES = encoder_rows.architectures(KINDS)
IGNORED = encoder_rows.ignored(NAMES, "generator_*", "discriminator_predictions.*")
"""Tensors of a file that are no parameters: buffers, and the heads of pretraining under another head."""

READS = encoder_rows.READS | {
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
# summary_* configure the head of multiple choice.
MAY_BE = (
    *encoder_rows.MAY_BE,
    *("summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj"),
)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a, kind = Attributes(hf, READS, encoder_rows.MUST_BE, MAY_BE), KINDS[heads.kind(hf, ARCHITECTURES)]
    encoder_rows.check(a, kind, untied=True)
    return encoder_rows.model(a.values, kind, heads.labels(hf), transform="gelu")


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    written = encoder_rows.attributes(config, KINDS)
    return {"model_type": "electra"} | written | {"embedding_size": config.embedding_width or config.width}


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return encoder_rows.rows(config, KINDS, NAMES)


def _size(width: int, layers: int, count: int, embedding: int, kind: str = "detect") -> ModelConfig:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": count}
    others = {"intermediate_size": 4 * width, "architectures": [ARCHITECTURES[kind]]}
    return config({"embedding_size": embedding, **sizes, **others})


SIZES = {
    "electra-small-discriminator": _size(256, 12, 4, 128),
    "electra-base-discriminator": _size(768, 12, 12, 768),
    "electra-large-discriminator": _size(1024, 24, 16, 1024),
    "electra-small-generator": _size(256, 12, 4, 128, "lm"),
    "electra-base-generator": _size(256, 12, 4, 768, "lm"),
    "electra-large-generator": _size(256, 24, 4, 1024, "lm"),
}
