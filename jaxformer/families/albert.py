"""ALBERT: "ALBERT: A Lite BERT" (Lan et al., 2019, arXiv:1909.11942)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import encoder_rows, heads
from jaxformer.families.attributes import Attributes
from jaxformer.families.encoder_rows import Extra, Kind, Names
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("albert",)
PREFIX = "albert."
"""Names of the encoder's tensors begin so; those of the encoder alone are published without it."""
TOKENIZER: dict[str, Any] = {
    "kind": "sentencepiece",
    "special": {
        **{"bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "sep": "[SEP]"},
        **{"pad": "<pad>", "cls": "[CLS]", "mask": "[MASK]"},
    },
    "template": encoder_rows.WORDPIECE["template"],
    "lstrip": ("mask",),
    "clean": ("spaces", "quotes", "accents", "lowercase"),
    "split_commas": True,
}
NAMES = Names(
    PREFIX,
    transform="predictions.dense",
    norm="predictions.LayerNorm",
    output="predictions.decoder",
    bias="predictions.bias",
    layer="encoder.albert_layer_groups.{layer}.albert_layers.0",
    block={
        "attention/query": "attention.query",
        "attention/key": "attention.key",
        "attention/value": "attention.value",
        "attention/out": "attention.dense",
        "attention_norm": "attention.LayerNorm",
        "mlp/up": "ffn",
        "mlp/down": "ffn_output",
        "mlp_norm": "full_layer_layer_norm",
    },
    pooler="pooler",
    projection="encoder.embedding_hidden_mapping_in",
)
_ORDER = Extra("order", "sop_classifier.classifier", reads="pooled")
KINDS = {
    "lm": Kind("AlbertForMaskedLM", lm=True),
    "pretraining": Kind("AlbertForPreTraining", _ORDER, lm=True, pooler=True),
    "classify": Kind("AlbertForSequenceClassification", encoder_rows.POOLED, pooler=True),
    "tag": Kind("AlbertForTokenClassification", encoder_rows.TAG),
    "answer": Kind("AlbertForQuestionAnswering", encoder_rows.ANSWER),
    "embed": Kind("AlbertModel", pooler=True),
}
ARCHITECTURES = encoder_rows.architectures(KINDS)
IGNORED = encoder_rows.ignored(NAMES, "predictions.*", "sop_classifier.*")
"""Tensors of a file that are no parameters: buffers, and the heads of pretraining under another head."""

READS = encoder_rows.READS | {
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_groups": 1,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "add_pooling_layer": True,
}
MUST_BE = encoder_rows.MUST_BE | {"inner_group_num": 1}
# hidden_dropout_prob is of both sublayers here, in the reference of attention alone; version 2 has 0.
# The reference reads none of the first four, and the last in training alone.
MAY_BE = (
    *encoder_rows.MAY_BE,
    *("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks", "classifier_dropout_prob"),
)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a, kind = Attributes(hf, READS, MUST_BE, MAY_BE), KINDS[heads.kind(hf, ARCHITECTURES)]
    if a["num_hidden_layers"] % a["num_hidden_groups"]:
        a.refuse("num_hidden_groups", a["num_hidden_groups"])
    if a["embedding_size"] == a["hidden_size"]:  # it projects all the same
        a.refuse("embedding_size", a["embedding_size"])
    encoder_rows.check(a, kind)
    return encoder_rows.model(a.values, kind, heads.labels(hf), groups=a["num_hidden_groups"])


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    written = encoder_rows.attributes(config, KINDS)
    if config.encoder is None or config.encoder.groups is None or config.embedding_width is None:
        raise ValueError("its layers share parameters, and its embedding has a width of its own")
    groups = {"embedding_size": config.embedding_width, "num_hidden_groups": config.encoder.groups}
    return {"model_type": "albert"} | written | groups


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published: each layer's once for the group that shares it."""
    return encoder_rows.rows(config, KINDS, NAMES)


def _size(width: int, layers: int, count: int) -> ModelConfig:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": count}
    return config(sizes | {"intermediate_size": 4 * width})


SIZES = {
    "albert-base": _size(768, 12, 12),
    "albert-large": _size(1024, 24, 16),
    "albert-xlarge": _size(2048, 24, 16),
    "albert-xxlarge": _size(4096, 12, 64),
}
