"""Mistral 7B (Jiang et al., 2023, arXiv:2310.06825): LLaMA where each layer looks through a window."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import decoder, decoder_rows, heads, llama, rope
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("mistral",)
ARCHITECTURES = heads.classes("Mistral")
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER = llama.TOKENIZER

READS: dict[str, Any] = {
    **decoder.READS,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
MUST_BE = {"attention_bias": False, "partial_rotary_factor": 1.0}
NULLABLE = ("num_key_value_heads", "sliding_window")


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, decoder.MAY_BE, NULLABLE)
    layer = decoder.block(a, rope=rope.read(a), window=a["sliding_window"])
    return decoder.model(a, hf, ARCHITECTURES, [layer] * a["num_hidden_layers"])


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return decoder.written(config, "mistral", ARCHITECTURES, READS)


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return decoder_rows.decoder(config)


SIZES = {"mistral-7b": config({"rms_norm_eps": 1e-5})}
