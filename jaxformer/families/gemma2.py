"""Gemma 2 (Riviere et al., 2024, arXiv:2408.00118): four norms a layer, soft-caps, windows in every other layer."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import decoder, decoder_rows, gemma, gguf_rows, heads, rope
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("gemma2",)
ARCHITECTURES = heads.classes("Gemma2", kinds=("classify", "tag"))
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER = gemma.TOKENIZER

READS: dict[str, Any] = {
    **gemma.READS,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": [],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
del READS["hidden_act"]
MUST_BE = {"partial_rotary_factor": 1.0, "use_bidirectional_attention": False}
# The reference passes over these two in this model type.
MAY_BE = (*decoder.MAY_BE, "hidden_act", "sliding_window_size")
NULLABLE = ("sliding_window", "layer_types", "attn_logit_softcapping", "final_logit_softcapping")


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, MAY_BE, NULLABLE)
    turn, softcap, sliding = rope.read(a), a["attn_logit_softcapping"], decoder.slides(a, lambda i: i % 2 == 0)
    layers = [
        decoder.block(a, rope=turn, window=a["sliding_window"] if slides else None, softcap=softcap, **shared(a))
        for slides in sliding
    ]
    scale, cap = a["hidden_size"] ** 0.5, a["final_logit_softcapping"]
    return decoder.model(a, hf, ARCHITECTURES, layers, scale=scale, softcap=cap)


def shared(a: Attributes) -> dict[str, Any]:
    """What every layer has, whatever it sees."""
    scalar = a["query_pre_attn_scalar"]
    return {
        "norms": "sandwich",
        "offset": 1.0,
        "activated_by": "hidden_activation",
        "scale": None if scalar == a["head_dim"] else scalar**-0.5,
    }


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    attention = decoder.layers_of(config)[0].attention
    return written(config, "gemma2", ARCHITECTURES) | {"attn_logit_softcapping": attention.softcap}


def written(config: ModelConfig, model_type: str, architectures: Mapping[str, str]) -> dict[str, Any]:
    """The attributes that are those of Gemma 3 as well."""
    attention = decoder.layers_of(config)[0].attention
    decoder.divided(config)
    return decoder.written(config, model_type, architectures, READS) | {
        "query_pre_attn_scalar": attention.head_dim if attention.scale is None else round(attention.scale**-2),
        "final_logit_softcapping": None if config.head is None else config.head.softcap,
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return decoder_rows.decoder(config)


def gguf(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter stands in a GGUF file."""
    return gguf_rows.decoder(config)


def _size(*sizes: int, **others: Any) -> ModelConfig:
    return config(decoder.sizes(*sizes) | others)


SIZES = {
    "gemma-2-2b": _size(2304, 9216, 26, 8, 4),
    "gemma-2-9b": _size(3584, 14336, 42, 16, 8),
    "gemma-2-27b": _size(4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144),
}
