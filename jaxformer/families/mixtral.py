"""Mixtral (Jiang et al., 2024, arXiv:2401.04088): Mistral with eight experts, of which each token takes two."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import decoder, decoder_rows, heads, mistral, rope, sparse
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("mixtral",)
ARCHITECTURES = heads.classes("Mixtral")
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER = mistral.TOKENIZER

READS: dict[str, Any] = {
    **mistral.READS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}
MUST_BE = mistral.MUST_BE
MAY_BE = (*decoder.MAY_BE, *sparse.MAY_BE)
NULLABLE = ("num_key_value_heads",)
NAMES = {
    "router": "block_sparse_moe.gate",
    "experts/gate": "block_sparse_moe.experts.{expert}.w1",
    "experts/up": "block_sparse_moe.experts.{expert}.w3",
    "experts/down": "block_sparse_moe.experts.{expert}.w2",
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, MAY_BE, NULLABLE)
    dense = decoder.block(a, rope=rope.read(a), window=a["sliding_window"])
    layer = sparse.layer(dense, a["intermediate_size"], a["num_local_experts"], a["num_experts_per_tok"])
    return decoder.model(a, hf, ARCHITECTURES, [layer] * a["num_hidden_layers"])


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    dense, experts = sparse.dense(config)
    counts = {"num_experts_per_tok": experts.top_k, "num_local_experts": experts.experts}
    return decoder.written(dense, "mixtral", ARCHITECTURES, READS) | counts


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published: one tensor an expert."""
    return sparse.decoder(config, NAMES)


_LARGER = {"hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56, "num_attention_heads": 48}
SIZES = {"mixtral-8x7b": config({}), "mixtral-8x22b": config(_LARGER)}
