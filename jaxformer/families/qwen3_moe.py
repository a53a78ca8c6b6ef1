"""Qwen3 with experts (Yang et al., 2025, arXiv:2505.09388): each token takes 8 of 128."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import decoder, decoder_rows, heads, qwen2, rope, sparse
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("qwen3_moe",)
ARCHITECTURES = heads.classes("Qwen3Moe")
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER = qwen2.TOKENIZER

READS: dict[str, Any] = {
    **decoder.READS,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "attention_bias": False,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "norm_topk_prob": False,
}
# With the first two some layers have a feed-forward of another shape.
MUST_BE = {"decoder_sparse_step": 1, "mlp_only_layers": [], "partial_rotary_factor": 1.0, "use_mrope": False}
# max_window_layers: the reference's layers look through a window all or none.
MAY_BE = (*decoder.MAY_BE, *sparse.MAY_BE, "max_window_layers", "num_local_experts")
NULLABLE = ("num_key_value_heads", "sliding_window")
NAMES = {
    "router": "mlp.gate",
    "experts/gate": "mlp.experts.{expert}.gate_proj",
    "experts/up": "mlp.experts.{expert}.up_proj",
    "experts/down": "mlp.experts.{expert}.down_proj",
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    if hf.get("num_local_experts") is not None:  # another name, which version 5 of the reference writes
        hf = {"num_experts": hf["num_local_experts"], **hf}
    a = Attributes(hf, READS, MUST_BE, MAY_BE, NULLABLE)
    window = a["sliding_window"] if a["use_sliding_window"] else None
    dense = decoder.block(a, rope=rope.read(a), window=window, qk_norm=True)
    counts = a["num_experts"], a["num_experts_per_tok"]
    layer = sparse.layer(dense, a["moe_intermediate_size"], *counts, normalize=a["norm_topk_prob"])
    return decoder.model(a, hf, ARCHITECTURES, [layer] * a["num_hidden_layers"])


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    dense, experts = sparse.dense(config)
    written = decoder.written(dense, "qwen3_moe", ARCHITECTURES, READS)
    return written | {
        "use_sliding_window": written["sliding_window"] is not None,
        "moe_intermediate_size": experts.width,
        "num_experts_per_tok": experts.top_k,
        "num_experts": experts.experts,
        "norm_topk_prob": experts.normalize,
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published: one tensor an expert."""
    return sparse.decoder(config, NAMES, answers="transformer.")


def _size(width: int, mlp: int, layers: int, heads: int) -> ModelConfig:
    sizes = {"hidden_size": width, "moe_intermediate_size": mlp, "num_hidden_layers": layers, "head_dim": 128}
    shared = {"num_attention_heads": heads, "rope_theta": 1_000_000.0, "norm_topk_prob": True}
    return config(sizes | shared)


SIZES = {"qwen3-30b-a3b": _size(2048, 768, 48, 32), "qwen3-235b-a22b": _size(4096, 1536, 94, 64)}
