"""LLaMA (Touvron et al., 2023, arXiv:2302.13971), with the grouped key heads of LLaMA 2 (2307.09288)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import decoder, decoder_rows, gguf_rows, heads, rope
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("llama",)
ARCHITECTURES = heads.classes("Llama")
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER: dict[str, Any] = {
    "kind": "sentencepiece",
    "special": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    "template": ("{bos} $A", "{bos} $A {bos}:1 $B:1"),
}

READS: dict[str, Any] = {
    **decoder.READS,
    "attention_bias": False,
    "mlp_bias": False,
    # GPT-2's and Phi-3's names for dropout: the reference has none in this model type, and passes over them.
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
}
MUST_BE = {"hidden_dropout": 0.0, "partial_rotary_factor": 1.0, "rope_interleaved": False}
MAY_BE = (*decoder.MAY_BE, "is_llama_config", "max_sequence_length")


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, MAY_BE)
    layer = decoder.block(a, rope=rope.read(a), dropout=a["resid_pdrop"])
    return decoder.model(a, hf, ARCHITECTURES, [layer] * a["num_hidden_layers"], dropout=a["embd_pdrop"])


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    written, layer = decoder.written(config, "llama", ARCHITECTURES, READS), decoder.layers_of(config)[0]
    decoder.divided(config)
    dropouts = {"resid_pdrop": layer.dropout, "embd_pdrop": getattr(config, config.main).input.dropout}
    return written | {name: value for name, value in dropouts.items() if value}


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return decoder_rows.decoder(config, answers="transformer.")


def gguf(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter stands in a GGUF file."""
    return gguf_rows.decoder(config, pairs=True)


def _size(*sizes: int, **others: Any) -> ModelConfig:
    return config(decoder.sizes(*sizes) | {"rms_norm_eps": 1e-5} | others)


_THIRD = {"vocab_size": 128256, "rope_theta": 500_000.0}
_SMOL = {"vocab_size": 49152, "rope_theta": 100_000.0, "tie_word_embeddings": True}


def _stretched(factor: float) -> dict[str, Any]:
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return _THIRD | {"rope_scaling": {"rope_type": "llama3", "factor": factor, **bands}}


SIZES = {
    "llama-7b": _size(4096, 11008, 32, 32, 32, rms_norm_eps=1e-6),
    "llama-13b": _size(5120, 13824, 40, 40, 40, rms_norm_eps=1e-6),
    "llama-2-7b": _size(4096, 11008, 32, 32, 32),
    "llama-2-13b": _size(5120, 13824, 40, 40, 40),
    "llama-2-70b": _size(8192, 28672, 80, 64, 8),
    "llama-3-8b": _size(4096, 14336, 32, 32, 8, **_THIRD),
    "llama-3-70b": _size(8192, 28672, 80, 64, 8, **_THIRD),
    "llama-3.1-8b": _size(4096, 14336, 32, 32, 8, **_stretched(8.0)),
    "llama-3.1-70b": _size(8192, 28672, 80, 64, 8, **_stretched(8.0)),
    "llama-3.2-1b": _size(2048, 8192, 16, 32, 8, **_stretched(32.0), tie_word_embeddings=True),
    "llama-3.2-3b": _size(3072, 8192, 28, 24, 8, **_stretched(32.0), tie_word_embeddings=True),
    "tinyllama-1.1b": _size(2048, 5632, 22, 32, 4),
    "smollm2-135m": _size(576, 1536, 30, 9, 3, **_SMOL),
    "smollm2-360m": _size(960, 2560, 32, 15, 5, **_SMOL),
    "smollm2-1.7b": _size(2048, 8192, 24, 32, 32, **(_SMOL | {"rope_theta": 130_000.0})),
}
