"""Gemma 3's text model (Kamath et al., 2025, arXiv:2503.19786): normalised queries and keys, two rotary bases."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig, RopeConfig
from jaxformer.families import decoder, decoder_rows, gemma2, gguf_rows, rope
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("gemma3_text",)
ARCHITECTURES = {
    "lm": "Gemma3ForCausalLM",
    "classify": "Gemma3TextForSequenceClassification",
    "embed": "Gemma3TextModel",
}
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER = gemma2.TOKENIZER

BASES = {False: 1_000_000.0, True: 10_000.0}
"""Whether a layer has a window -> its rotary base."""
READS: dict[str, Any] = {
    **gemma2.READS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": BASES[False],
    "rope_local_base_freq": BASES[True],
    "sliding_window_pattern": 6,
    "final_logit_softcapping": 0.0,  # none
    "use_bidirectional_attention": False,
}
del READS["attn_logit_softcapping"]
# The reference has an attribute for a soft-cap on scores, but applies none in this model type.
MUST_BE = {"attn_logit_softcapping": None, "partial_rotary_factor": 1.0}
MAY_BE = (*gemma2.MAY_BE, "_sliding_window_pattern")
NULLABLE = ("sliding_window", "layer_types", "final_logit_softcapping", "use_bidirectional_attention")


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express.

    With `use_bidirectional_attention` it is an encoder.
    """
    a = Attributes(hf, READS, MUST_BE, MAY_BE, NULLABLE)
    causal, window = not a["use_bidirectional_attention"], a["sliding_window"]
    if not causal and window is not None:
        window = window // 2 + 1  # published is the width to both sides
    sliding = decoder.slides(a, lambda i: (i + 1) % a["sliding_window_pattern"] != 0)
    turns, common = _turns(a), gemma2.shared(a)
    layers = [
        decoder.block(a, rope=turns[slides], window=window if slides else None, qk_norm=True, **common)
        for slides in sliding
    ]
    scale, cap = a["hidden_size"] ** 0.5, a["final_logit_softcapping"] or None
    return decoder.model(a, hf, ARCHITECTURES, layers, scale=scale, softcap=cap, causal=causal)


def _turns(a: Attributes) -> dict[bool, Any]:
    """{whether a layer has a window: its rotary positions}; `rope_scaling` speaks of those without."""
    kinds, nested = (decoder.SLIDING, decoder.FULL), a["rope_parameters"] or {}
    if any(kind not in kinds or not isinstance(each, dict | None) for kind, each in nested.items()):
        a.refuse("rope_parameters", nested)
        nested = {}
    sliding, full = (nested.get(kind) or {} for kind in kinds)
    spelling = "rope_scaling" if a["rope_scaling"] else "rope_parameters"
    return {
        True: rope.parsed(a, "rope_parameters", sliding, a["rope_local_base_freq"]),
        False: rope.parsed(a, spelling, full | (a["rope_scaling"] or {}), a["rope_theta"]),
    }


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    written, layers = gemma2.written(config, "gemma3_text", ARCHITECTURES), decoder.layers_of(config)
    found = {layer.attention.window is not None: layer.attention.rope for layer in reversed(layers)}
    full, sliding = (rope.write(found.get(narrow) or RopeConfig(base)) for narrow, base in BASES.items())
    local = {"rope_local_base_freq": sliding["rope_theta"]}
    if sliding["rope_scaling"] is not None:  # version 4 has no words for it
        kinds = {decoder.FULL: full, decoder.SLIDING: sliding}
        bases = {kind: {"rope_theta": turn.pop("rope_theta")} for kind, turn in kinds.items()}
        scalings = {kind: turn.pop("rope_scaling") or {"rope_type": "default"} for kind, turn in kinds.items()}
        local = {"rope_parameters": {kind: bases[kind] | scalings[kind] for kind in kinds}}
        for name in ("rope_theta", "rope_scaling"):
            del written[name]
    both_sides = config.encoder is not None
    if both_sides and written["sliding_window"] is not None:
        written["sliding_window"] = 2 * (written["sliding_window"] - 1)
    return written | sliding | full | local | {"use_bidirectional_attention": both_sides}


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return decoder_rows.decoder(config)


def gguf(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter stands in a GGUF file."""
    return gguf_rows.decoder(config)


def _size(*sizes: int, window: int, **others: Any) -> ModelConfig:
    return config(decoder.sizes(*sizes) | {"sliding_window": window} | others)


_LONG: dict[str, Any] = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
SIZES = {
    "gemma-3-270m": _size(640, 2048, 18, 4, 1, window=512, vocab_size=262144),
    "gemma-3-1b": _size(1152, 6912, 26, 4, 1, window=512, vocab_size=262144),
    "gemma-3-4b": _size(2560, 10240, 34, 8, 4, window=1024, **_LONG),
    "gemma-3-12b": _size(3840, 15360, 48, 16, 8, window=1024, **_LONG),
    "gemma-3-27b": _size(5376, 21504, 62, 32, 16, window=1024, head_dim=128, query_pre_attn_scalar=168, **_LONG),
}
