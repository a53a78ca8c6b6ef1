"""BERT: "BERT: Pre-training of Deep Bidirectional Transformers" (Devlin et al., 2018, arXiv:1810.04805)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import encoder_rows, heads
from jaxformer.families.attributes import Attributes
from jaxformer.families.encoder_rows import Extra, Kind, Names
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("bert",)
PREFIX = "bert."
"""Names of the encoder's tensors begin so; those of the encoder alone are published without it."""
TOKENIZER = encoder_rows.WORDPIECE
NAMES = Names(
    PREFIX,
    transform="cls.predictions.transform.dense",
    norm="cls.predictions.transform.LayerNorm",
    output="cls.predictions.decoder",
    bias="cls.predictions.bias",
)
_NEXT = Extra("next", "cls.seq_relationship", outputs=2, reads="pooled")
KINDS = {
    "lm": Kind("BertForMaskedLM", lm=True),
    "pretraining": Kind("BertForPreTraining", _NEXT, lm=True, pooler=True),
    "next": Kind("BertForNextSentencePrediction", _NEXT, pooler=True),
    "classify": Kind("BertForSequenceClassification", encoder_rows.POOLED, pooler=True),
    "tag": Kind("BertForTokenClassification", encoder_rows.TAG),
    "answer": Kind("BertForQuestionAnswering", encoder_rows.ANSWER),
    "embed": Kind("BertModel", pooler=True),
}
ARCHITECTURES = encoder_rows.architectures(KINDS)
IGNORED = encoder_rows.ignored(NAMES, "cls.*")
"""Tensors of a file that are no parameters: buffers, and the heads of pretraining under another head."""

READS = encoder_rows.READS | {"add_pooling_layer": True}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a, kind = Attributes(hf, READS, encoder_rows.MUST_BE, encoder_rows.MAY_BE), KINDS[heads.kind(hf, ARCHITECTURES)]
    encoder_rows.check(a, kind)
    return encoder_rows.model(a.values, kind, heads.labels(hf))


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return {"model_type": "bert"} | encoder_rows.attributes(config, KINDS)


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return encoder_rows.rows(config, KINDS, NAMES)


def _size(width: int, layers: int, vocab: int = 30522, **others: Any) -> ModelConfig:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    return config({"vocab_size": vocab, "intermediate_size": 4 * width, **sizes, **others})


SIZES = {
    "bert-tiny-uncased": _size(128, 2),
    "bert-mini-uncased": _size(256, 4),
    "bert-small-uncased": _size(512, 4),
    "bert-medium-uncased": _size(512, 8),
    "bert-base-uncased": _size(768, 12),
    "bert-large-uncased": _size(1024, 24),
    "bert-base-cased": _size(768, 12, vocab=28996),
    "bert-large-cased": _size(1024, 24, vocab=28996),
    "bert-base-multilingual-cased": _size(768, 12, vocab=119547),
    "minilm-l6": _size(384, 6, num_attention_heads=12, architectures=["BertModel"]),
}
