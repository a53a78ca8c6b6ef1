"""Phi-3 (Abdin et al., 2024, arXiv:2404.14219) and Phi-4: LLaMA with fused projections."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import LongScaling, ModelConfig
from jaxformer.families import decoder, decoder_rows, gguf_rows, heads, rope
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("phi3",)
ARCHITECTURES = heads.classes("Phi3", kinds=("classify", "tag"))
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER: dict[str, Any] = {
    "kind": "sentencepiece",
    "special": {"bos": "<s>", "eos": "<|endoftext|>", "unk": "<unk>", "pad": "<|endoftext|>"},
    "template": ("{bos} $A", "{bos} $A {bos}:1 $B:1"),
}

READS: dict[str, Any] = {
    **decoder.READS,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "resid_pdrop": 0.0,
}
MUST_BE = {
    **{"attention_bias": False, "mlp_bias": False, "lm_head_bias": False},
    **{"full_attn_mod": 1, "interpolate_factor": 1},
}
# embd_pdrop: the reference drops no embeddings; auto_map: code of its own, which says the same.
MAY_BE = (*decoder.MAY_BE, "auto_map", "embd_pdrop")
SCALINGS = {"su": "longrope", "yarn": "longrope"}
"""Names that LongRoPE had in older files."""


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, MAY_BE)
    turn = rope.read(a, SCALINGS)
    if not (turn.scaling is None or isinstance(turn.scaling, LongScaling)):
        a.refuse("rope_scaling", a["rope_scaling"] or a["rope_parameters"])
    layer = decoder.block(a, rope=turn, window=a["sliding_window"], dropout=a["resid_pdrop"])
    return decoder.model(a, hf, ARCHITECTURES, [layer] * a["num_hidden_layers"])


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    written, first = decoder.written(config, "phi3", ARCHITECTURES, READS), decoder.layers_of(config)[0]
    attention, scaling = first.attention, written["rope_scaling"]
    if scaling is not None:  # version 4 knows the older name of this entry, and the length outside
        written["original_max_position_embeddings"] = scaling.pop("original_max_position_embeddings", 4096)
        scaling["type"] = scaling.pop("rope_type")
    turned = attention.head_dim if attention.rope is None else attention.rope.dim or attention.head_dim
    return written | {
        "partial_rotary_factor": turned / attention.head_dim,
        "resid_pdrop": first.dropout,
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return decoder_rows.decoder(config, fused=True)


def gguf(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter stands in a GGUF file."""
    return gguf_rows.decoder(config, fused=True)


_MEDIUM = {"hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40, "num_attention_heads": 40}
SIZES = {
    "phi-3-mini-4k": config({"sliding_window": 2047}),
    "phi-3-medium-4k": config(_MEDIUM | {"num_key_value_heads": 10, "sliding_window": 2047}),
}
