"""Qwen3 (Yang et al., 2025, arXiv:2505.09388): queries and keys are normalised, and no projection has a bias."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import decoder, decoder_rows, gguf_rows, heads, qwen2, rope
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("qwen3",)
ARCHITECTURES = heads.classes("Qwen3")
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER = qwen2.TOKENIZER

READS = qwen2.READS | {"head_dim": 128, "attention_bias": False}
MUST_BE = qwen2.MUST_BE
NULLABLE = qwen2.NULLABLE


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, decoder.MAY_BE, NULLABLE)
    turn = rope.read(a)
    layers = [decoder.block(a, rope=turn, window=window, qk_norm=True) for window in qwen2.windows(a)]
    return decoder.model(a, hf, ARCHITECTURES, layers)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return decoder.written(config, "qwen3", ARCHITECTURES, READS) | qwen2.windows_of(config)


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return decoder_rows.decoder(config, answers="transformer.")


def gguf(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter stands in a GGUF file."""
    return gguf_rows.decoder(config)


def _size(width: int, mlp: int, layers: int, heads: int, tied: bool = False) -> ModelConfig:
    others = {"rope_theta": 1_000_000.0, "tie_word_embeddings": tied}
    return config(decoder.sizes(width, mlp, layers, heads, 8) | others)


SIZES = {
    "qwen3-0.6b": _size(1024, 3072, 28, 16, tied=True),
    "qwen3-1.7b": _size(2048, 6144, 28, 16, tied=True),
    "qwen3-4b": _size(2560, 9728, 36, 32, tied=True),
    "qwen3-8b": _size(4096, 12288, 36, 32),
    "qwen3-14b": _size(5120, 17408, 40, 40),
    "qwen3-32b": _size(5120, 25600, 64, 64),
}
