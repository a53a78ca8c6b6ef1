"""XLM-RoBERTa: "Unsupervised Cross-lingual Representation Learning at Scale" (Conneau et al., 2019, 1911.02116)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import encoder_rows, roberta
from jaxformer.families.roberta import IGNORED, PREFIX, names

__all__ = ["ARCHITECTURES", "IGNORED", "MODEL_TYPES", "PREFIX", "SIZES", "TOKENIZER", "config", "hf_config", "names"]

MODEL_TYPES: tuple[str, ...] = ("xlm-roberta",)
KINDS = encoder_rows.renamed(roberta.KINDS, "Roberta", "XLMRoberta")
ARCHITECTURES = encoder_rows.architectures(KINDS)
TOKENIZER = roberta.TOKENIZER | {
    "kind": "sentencepiece",
    "before": ("<s>", "<pad>", "</s>", "<unk>"),
    "skip": 3,
    "after": ("<mask>",),
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    return roberta.config({"vocab_size": 30522, **hf}, KINDS)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return roberta.hf_config(config, KINDS) | {"model_type": "xlm-roberta"}


SIZES = {
    "xlm-roberta-base": roberta.size(768, 12, vocab=250002),
    "xlm-roberta-large": roberta.size(1024, 24, vocab=250002),
}
