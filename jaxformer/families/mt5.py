"""mT5: "A massively multilingual pre-trained text-to-text transformer" (Xue et al., 2020, arXiv:2010.11934)."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import t5
from jaxformer.families.t5 import BARE, IGNORED, PREFIX, TOKENIZER, names

__all__ = [
    "ARCHITECTURES",
    "BARE",
    "IGNORED",
    "MODEL_TYPES",
    "PREFIX",
    "SIZES",
    "TOKENIZER",
    "config",
    "hf_config",
    "names",
    "of_tensors",
]

MODEL_TYPES: tuple[str, ...] = ("mt5",)
ARCHITECTURES = {kind: f"M{name}" for kind, name in t5.ARCHITECTURES.items()}
READS = {
    **{"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    **{"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False},
}
"""Other defaults than T5's. Its head is never scaled, tied or not."""


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    if hf.get("scale_decoder_outputs"):
        raise ValueError("mt5: scale_decoder_outputs=True is not supported")
    named = [name.removeprefix("M") for name in hf.get("architectures") or ()]
    return t5.config(READS | dict(hf) | {"architectures": named})


def of_tensors(hf: Mapping[str, Any], published: Collection[str]) -> dict[str, Any]:
    """config.json, which says so where the names of the tensors show that the head is not tied."""
    changed = t5.of_tensors(READS | dict(hf), published)
    return dict(hf) | {name: changed[name] for name in ("tie_word_embeddings",) if name in changed}


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    written = t5.hf_config(config)
    return written | {"model_type": "mt5", "architectures": [f"M{name}" for name in written["architectures"]]}


SIZES = {
    "mt5-small": config({"tie_word_embeddings": False}),
    "mt5-base": config(
        {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "tie_word_embeddings": False}
    ),
    "mt5-large": config(
        {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16, "tie_word_embeddings": False}
    ),
}
