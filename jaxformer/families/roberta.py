"""RoBERTa: "A Robustly Optimized BERT Pretraining Approach" (Liu et al., 2019, arXiv:1907.11692)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import LearnedConfig, ModelConfig
from jaxformer.families import encoder_rows, heads
from jaxformer.families.attributes import Attributes
from jaxformer.families.encoder_rows import Extra, Kind, Names
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("roberta",)
PREFIX = "roberta."
"""Names of the encoder's tensors begin so; those of the encoder alone are published without it."""
TOKENIZER: dict[str, Any] = {
    "kind": "byte_bpe",
    "special": {
        **{"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>"},
        **{"pad": "<pad>", "cls": "<s>", "mask": "<mask>"},
    },
    "template": ("{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}"),
    "lstrip": ("mask",),
}
NAMES = Names(PREFIX, "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")
_CLASSIFY = Extra("classify", "classifier.out_proj", reads="first", dense="classifier.dense", hidden="tanh")
KINDS = {
    "lm": Kind("RobertaForMaskedLM", lm=True),
    "classify": Kind("RobertaForSequenceClassification", _CLASSIFY),
    "tag": Kind("RobertaForTokenClassification", encoder_rows.TAG),
    "answer": Kind("RobertaForQuestionAnswering", encoder_rows.ANSWER),
    "embed": Kind("RobertaModel", pooler=True),
}
ARCHITECTURES = encoder_rows.architectures(KINDS)
IGNORED = encoder_rows.ignored(NAMES, "lm_head.*")
"""Tensors of a file that are no parameters: buffers, and what pretraining had under another head."""

READS = encoder_rows.READS | {"vocab_size": 50265, "add_pooling_layer": True}


def config(hf: Mapping[str, Any], kinds: Mapping[str, Kind] = KINDS) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express.

    `kinds` are those of a model type that differs in the names of its classes.
    """
    a = Attributes(hf, READS, encoder_rows.MUST_BE, encoder_rows.MAY_BE)
    kind = kinds[heads.kind(hf, encoder_rows.architectures(kinds))]
    pad = hf.get("pad_token_id", 1)
    if type(pad) is not int or not 0 <= pad < a["max_position_embeddings"] - 1:
        a.refuse("pad_token_id", pad)
    encoder_rows.check(a, kind)
    # Positions are counted from the id of padding on, and the head's activation is no choice.
    return encoder_rows.model(a.values, kind, heads.labels(hf), offset=pad + 1, transform="gelu")


def hf_config(config: ModelConfig, kinds: Mapping[str, Kind] = KINDS) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    written = encoder_rows.attributes(config, kinds)
    assert config.encoder is not None
    assert isinstance(config.encoder.input.positions, LearnedConfig)
    return {"model_type": "roberta"} | written | {"pad_token_id": config.encoder.input.positions.offset - 1}


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return encoder_rows.rows(config, KINDS, NAMES)


def size(width: int, layers: int, vocab: int = 50265) -> ModelConfig:
    """A published size: heads of 64, texts of 512 tokens."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    rest = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return config({"vocab_size": vocab, "intermediate_size": 4 * width, **sizes, **rest})


SIZES = {
    "distilroberta-base": size(768, 6),
    "roberta-base": size(768, 12),
    "roberta-large": size(1024, 24),
}
