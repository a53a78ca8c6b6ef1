"""CamemBERT: "CamemBERT: a Tasty French Language Model" (Martin et al., 2019, arXiv:1911.03894)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import roberta
from jaxformer.families.roberta import IGNORED, PREFIX, names

__all__ = ["ARCHITECTURES", "IGNORED", "MODEL_TYPES", "PREFIX", "SIZES", "TOKENIZER", "config", "hf_config", "names"]

MODEL_TYPES: tuple[str, ...] = ("camembert",)
ARCHITECTURES = {kind: name.replace("Roberta", "Camembert") for kind, name in roberta.ARCHITECTURES.items()}
TOKENIZER = roberta.TOKENIZER | {
    "kind": "sentencepiece",
    "before": ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"),
    "skip": 1,
    "after": ("<mask>",),
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    named = [name.replace("Camembert", "Roberta") for name in hf.get("architectures") or ()]
    return roberta.config({"vocab_size": 30522, **hf, "architectures": named})


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    written = roberta.hf_config(config)
    named = [name.replace("Roberta", "Camembert") for name in written["architectures"]]
    return written | {"model_type": "camembert", "architectures": named}


SIZES = {"camembert-base": roberta.size(768, 12, vocab=32005)}
