"""BLOOM: "A 176B-Parameter Open-Access Multilingual Language Model" (Scao et al., 2022, arXiv:2211.05100)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import (
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InputConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    StackConfig,
)
from jaxformer.families import heads, plain
from jaxformer.families.attributes import EVERY, Attributes
from jaxformer.names import Row, linear

MODEL_TYPES: tuple[str, ...] = ("bloom",)
ARCHITECTURES = heads.classes("Bloom")
PREFIX = "transformer."
IGNORED: tuple[str, ...] = ()
TOKENIZER: dict[str, Any] = {
    "kind": "byte_bpe",
    "special": {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
}

READS: dict[str, Any] = {
    "vocab_size": 250880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-5,
    "hidden_dropout": 0.0,
    "tie_word_embeddings": True,
}
OTHERS = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
"""Other names of sizes; where both are there, these hold."""
# slow_but_exact forgets the biases of a product that it splits.
MUST_BE = {"apply_residual_connection_post_layernorm": False, "slow_but_exact": False}
# pretraining_tp splits nothing without slow_but_exact. The reference passes over the others: fusions of its trainer.
MAY_BE = (
    *("pretraining_tp", "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion"),
    *("offset_alibi", "seq_length", "skip_bias_add", "skip_bias_add_qkv", *OTHERS),
)
BLOCKS, LAYER = "decoder/blocks", "transformer.h.{layer}"
NAMES = {
    "embed": "transformer.word_embeddings",
    "decoder/input_norm": "transformer.word_embeddings_layernorm",
    f"{BLOCKS}/attention_norm": f"{LAYER}.input_layernorm",
    f"{BLOCKS}/attention/out": f"{LAYER}.self_attention.dense",
    f"{BLOCKS}/mlp_norm": f"{LAYER}.post_attention_layernorm",
    f"{BLOCKS}/mlp/up": f"{LAYER}.mlp.dense_h_to_4h",
    f"{BLOCKS}/mlp/down": f"{LAYER}.mlp.dense_4h_to_h",
    "decoder/norm": "transformer.ln_f",
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    hf = {**hf, **{name: hf[other] for other, name in OTHERS.items() if hf.get(other) is not None}}
    a = Attributes(hf, READS, MUST_BE, MAY_BE)
    width, count, head_dim = a["hidden_size"], a["n_head"], a.head_dim("hidden_size", "n_head")
    a.check()
    norm = NormConfig("layer", a["layer_norm_epsilon"])
    block = BlockConfig(
        AttentionConfig(count, count, head_dim, bias=EVERY),
        MlpConfig(4 * width, "gelu_tanh"),
        norm,
        dropout=a["hidden_dropout"],
    )
    return ModelConfig(
        vocab=a["vocab_size"],
        width=width,
        decoder=StackConfig(
            (block,),
            layers=a["n_layer"],
            causal=True,
            input=InputConfig(norm=norm),
            final_norm=norm,
            bias=AlibiConfig(),
        ),
        **heads.of_decoder(hf, ARCHITECTURES, HeadConfig(a["tie_word_embeddings"])),
    ).validate()


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    stack = plain.stack_of(config)
    if not isinstance(stack.bias, AlibiConfig):
        raise ValueError("it is one decoder with ALiBi")
    block = stack.pattern[0]
    return heads.written(config, "bloom", ARCHITECTURES) | {
        "hidden_size": config.width,
        "n_layer": stack.layers,
        "n_head": block.attention.heads,
        "layer_norm_epsilon": block.norm.eps,
        "hidden_dropout": block.dropout,
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published: query, key and value side by side within each head."""
    rows = plain.rows(config, NAMES)
    for i, name in enumerate(("query", "key", "value")):
        path, published = f"{BLOCKS}/attention/{name}", f"{LAYER}.self_attention.query_key_value"
        rows += linear(path, published, bias=True, part=(i, i + 1, 3), within_heads=True)
    return rows


def _size(width: int, layers: int, count: int) -> ModelConfig:
    return config({"hidden_size": width, "n_layer": layers, "n_head": count})


SIZES = {
    "bloom-560m": _size(1024, 24, 16),
    "bloom-1b1": _size(1536, 24, 16),
    "bloom-1b7": _size(2048, 24, 16),
    "bloom-3b": _size(2560, 30, 32),
    "bloom-7b1": _size(4096, 30, 32),
    "bloom": _size(14336, 70, 112),
}
