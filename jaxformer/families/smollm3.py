"""SmolLM3 (Bakouch et al., 2025): LLaMA with layers that know no positions (Yang et al., 2025, arXiv:2501.18795)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import decoder, decoder_rows, heads, rope
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("smollm3",)
ARCHITECTURES = heads.classes("SmolLM3")
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER: dict[str, Any] = {
    "kind": "byte_bpe",
    "special": {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "pad": "<|finetune_right_pad_id|>"},
    "pattern": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}

READS: dict[str, Any] = {
    **decoder.READS,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "rope_theta": 2_000_000.0,
    "max_position_embeddings": 32768,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "no_rope_layers": [],
    "no_rope_layer_interval": 4,
    "use_sliding_window": False,
    "sliding_window": None,
    "layer_types": [],
}
MUST_BE = {"partial_rotary_factor": 1.0}
# max_window_layers: the reference passes over it in this model type.
MAY_BE = (*decoder.MAY_BE, "max_window_layers")
NULLABLE = ("num_key_value_heads", "no_rope_layers", "layer_types")


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, MAY_BE, NULLABLE)
    count, turn = a["num_hidden_layers"], rope.read(a)
    turns = a["no_rope_layers"] or [int((i + 1) % a["no_rope_layer_interval"] != 0) for i in range(count)]
    if len(turns) < count or any(each not in (0, 1) for each in turns):
        a.refuse("no_rope_layers", turns)
        turns = [1] * count
    narrow = a["use_sliding_window"] and a["sliding_window"] is not None
    sliding = decoder.slides(a, lambda i: narrow and not turns[i])
    if any(sliding) and not narrow:
        a.refuse("use_sliding_window", a["use_sliding_window"])
    layers = [
        decoder.block(a, rope=turn if turned else None, window=a["sliding_window"] if slides else None)
        for turned, slides in zip(turns, sliding, strict=False)
    ]
    return decoder.model(a, hf, ARCHITECTURES, layers)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    written, layers = decoder.written(config, "smollm3", ARCHITECTURES, READS), decoder.layers_of(config)
    return written | {
        "no_rope_layers": [int(layer.attention.rope is not None) for layer in layers],
        "use_sliding_window": written["sliding_window"] is not None,
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return decoder_rows.decoder(config, answers="transformer.")


SIZES = {"smollm3-3b": config({"rope_theta": 5_000_000.0})}
