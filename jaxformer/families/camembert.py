"""CamemBERT: "CamemBERT: a Tasty French Language Model" (Martin et al., 2019, arXiv:1911.03894)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import encoder_rows, roberta
from jaxformer.families.roberta import IGNORED, PREFIX, names

__all__ = ["ARCHITECTURES", "IGNORED", "MODEL_TYPES", "PREFIX", "SIZES", "TOKENIZER", "config", "hf_config", "names"]

MODEL_TYPES: tuple[str, ...] = ("camembert",)
KINDS = encoder_rows.renamed(roberta.KINDS, "Roberta", "Camembert")
ARCHITECTURES = encoder_rows.architectures(KINDS)
TOKENIZER = roberta.TOKENIZER | {
    "kind": "sentencepiece",
    "before": ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"),
    "skip": 1,
    "after": ("<mask>",),
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    return roberta.config({"vocab_size": 30522, **hf}, KINDS)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return roberta.hf_config(config, KINDS) | {"model_type": "camembert"}


SIZES = {"camembert-base": roberta.size(768, 12, vocab=32005)}
