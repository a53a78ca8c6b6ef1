"""Qwen2 (Yang et al., 2024, arXiv:2407.10671) and Qwen2.5: LLaMA with biases on query, key and value."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import decoder, decoder_rows, gguf_rows, heads, rope
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("qwen2",)
ARCHITECTURES = heads.classes("Qwen2")
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER: dict[str, Any] = {
    "kind": "byte_bpe",
    "special": {"eos": "<|endoftext|>", "pad": "<|endoftext|>", "unk": "<|endoftext|>"},
    "normalizer": "NFC",
    "pattern": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}

READS: dict[str, Any] = {
    **decoder.READS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28.0,  # a number that may be zero
    "layer_types": [],
}
MUST_BE = {"partial_rotary_factor": 1.0, "use_mrope": False}
NULLABLE = ("num_key_value_heads", "sliding_window", "layer_types")


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, decoder.MAY_BE, NULLABLE)
    turn, bias = rope.read(a), ("query", "key", "value")
    layers = [decoder.block(a, rope=turn, window=window, bias=bias) for window in windows(a)]
    return decoder.model(a, hf, ARCHITECTURES, layers)


def windows(a: Attributes) -> list[int | None]:
    """The window of each layer: from `max_window_layers` on, where none says otherwise."""
    window = a.values["sliding_window"] = a["sliding_window"] if a["use_sliding_window"] else None
    sliding = decoder.slides(a, lambda i: window is not None and i >= a["max_window_layers"])
    return [window if slides else None for slides in sliding]


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return decoder.written(config, "qwen2", ARCHITECTURES, READS) | windows_of(config)


def windows_of(config: ModelConfig) -> dict[str, Any]:
    """The attributes that say in the older spelling which layers have a window."""
    full = [layer.attention.window is None for layer in decoder.layers_of(config)]
    return {"use_sliding_window": not all(full), "max_window_layers": [*full, False].index(False)}


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return decoder_rows.decoder(config, answers="transformer.")


def gguf(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter stands in a GGUF file."""
    return gguf_rows.decoder(config)


def _size(*sizes: int, **others: Any) -> ModelConfig:
    return config(decoder.sizes(*sizes) | {"rope_theta": 1_000_000.0} | others)


SIZES = {
    "qwen2-0.5b": _size(896, 4864, 24, 14, 2, tie_word_embeddings=True),
    "qwen2-1.5b": _size(1536, 8960, 28, 12, 2, tie_word_embeddings=True),
    "qwen2-7b": _size(3584, 18944, 28, 28, 4, vocab_size=152064),
    "qwen2-72b": _size(8192, 29568, 80, 64, 8, vocab_size=152064, rms_norm_eps=1e-5),
    "qwen2.5-3b": _size(2048, 11008, 36, 16, 2, tie_word_embeddings=True),
    "qwen2.5-14b": _size(5120, 13824, 48, 40, 8, vocab_size=152064, rms_norm_eps=1e-5),
    "qwen2.5-32b": _size(5120, 27648, 64, 40, 8, vocab_size=152064, rms_norm_eps=1e-5),
}
