"""DistilBERT: "DistilBERT, a distilled version of BERT" (Sanh et al., 2019, arXiv:1910.01108)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import encoder_rows, heads
from jaxformer.families.attributes import Attributes
from jaxformer.families.encoder_rows import Extra, Kind, Names
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("distilbert",)
PREFIX = "distilbert."
"""Names of the encoder's tensors begin so; those of the encoder alone are published without it."""
TOKENIZER = encoder_rows.WORDPIECE
NAMES = Names(
    PREFIX,
    transform="vocab_transform",
    norm="vocab_layer_norm",
    output="vocab_projector",
    layer="transformer.layer.{layer}",
    block={
        "attention/query": "attention.q_lin",
        "attention/key": "attention.k_lin",
        "attention/value": "attention.v_lin",
        "attention/out": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "mlp/up": "ffn.lin1",
        "mlp/down": "ffn.lin2",
        "mlp_norm": "output_layer_norm",
    },
)
_CLASSIFY = Extra("classify", "classifier", reads="first", dense="pre_classifier", hidden="relu")
KINDS = {
    "lm": Kind("DistilBertForMaskedLM", lm=True),
    "classify": Kind("DistilBertForSequenceClassification", _CLASSIFY),
    "tag": Kind("DistilBertForTokenClassification", encoder_rows.TAG),
    "answer": Kind("DistilBertForQuestionAnswering", encoder_rows.ANSWER),
    "embed": Kind("DistilBertModel"),
}
ARCHITECTURES = encoder_rows.architectures(KINDS)
IGNORED = encoder_rows.ignored(NAMES, "vocab_*")
"""Tensors of a file that are no parameters: buffers, and the head of pretraining under another head."""

ATTRIBUTES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "max_position_embeddings": "max_position_embeddings",
    "tie_word_embeddings": "tie_word_embeddings",
}
"""Name of an attribute in `encoder_rows.READS` -> the name here."""
FIXED = {"layer_norm_eps": 1e-12, "type_vocab_size": 0}
READS = {ATTRIBUTES[name]: value for name, value in encoder_rows.READS.items() if name in ATTRIBUTES} | {
    "n_layers": 6
}
# The dropouts are of heads, in training alone: there is no such here. Sinusoidal positions are so in their first
# values only: the file holds the table. tie_weights_ is not read by the reference.
MAY_BE = ("qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds", "tie_weights_")


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a, kind = Attributes(hf, READS, {}, MAY_BE), KINDS[heads.kind(hf, ARCHITECTURES)]
    encoder_rows.check(a, kind, "dim", "n_heads", "activation", untied=True)
    given = {name: a[own] for name, own in ATTRIBUTES.items() if own in READS}
    return encoder_rows.model(given | FIXED, kind, heads.labels(hf))


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    written = encoder_rows.attributes(config, KINDS)
    if config.encoder is None or config.encoder.input.segments:
        raise ValueError("its tokens are all of one kind")
    others = {name: written[name] for name in ("architectures", "num_labels") if name in written}
    return {"model_type": "distilbert"} | others | {own: written[name] for name, own in ATTRIBUTES.items()}


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return encoder_rows.rows(config, KINDS, NAMES)


SIZES = {
    "distilbert-base-uncased": config({}),
    "distilbert-base-cased": config({"vocab_size": 28996}),
    "distilbert-base-multilingual-cased": config({"vocab_size": 119547}),
}
