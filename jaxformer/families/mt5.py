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
DEFAULTS: dict[str, Any] = {
    **{"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    **{"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False},
}
"""Other defaults than T5's. Its head is never scaled, tied or not."""


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    if hf.get("scale_decoder_outputs"):
        raise ValueError("mt5: scale_decoder_outputs=True is not supported")
    return t5.config(DEFAULTS | dict(hf), ARCHITECTURES)


def of_tensors(hf: Mapping[str, Any], published: Collection[str]) -> dict[str, Any]:
    """config.json, which says so where the names of the tensors show that the head is not tied."""
    return t5.of_tensors(hf, published, scaled=False)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return t5.hf_config(config, "mt5", ARCHITECTURES)


def _size(width: int, mlp: int, layers: int, heads: int) -> ModelConfig:
    sizes = {"d_model": width, "d_ff": mlp, "num_layers": layers, "num_heads": heads}
    return config(sizes | {"tie_word_embeddings": False})


SIZES = {
    "mt5-small": _size(512, 1024, 8, 6),
    "mt5-base": _size(768, 2048, 12, 12),
    "mt5-large": _size(1024, 2816, 24, 16),
}
