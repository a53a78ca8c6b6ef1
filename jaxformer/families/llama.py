"""LLaMA (Touvron et al., 2023, arXiv:2302.13971), with the grouped key heads of LLaMA 2 (2307.09288)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InputConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    StackConfig,
)
from jaxformer.families.attributes import PUBLISHED, Attributes
from jaxformer.names import Row, linear, norm, table

MODEL_TYPES: tuple[str, ...] = ("llama",)
PREFIX = "model."
"""Published names begin so, but for the head's; files of the model without its head lack it."""
IGNORED: tuple[str, ...] = ("model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
"""Tensors of a file that are no parameters: the rotary frequencies."""
TOKENIZER: dict[str, Any] = {
    "kind": "sentencepiece",
    "special": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
}

READS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "rope_scaling": {},
    "rope_parameters": {},
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    # GPT-2's and Phi-3's names for dropout: the reference has none in this model type, and passes over them.
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
}
MUST_BE = {"hidden_dropout": 0.0, "rope_interleaved": False}
# attention_dropout drops attention weights in training: there is no such dropout here, nor any at inference.
# pretraining_tp above 1 splits products without changing them.
MAY_BE = ("attention_dropout", "is_llama_config", "max_position_embeddings", "pretraining_tp")


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, MAY_BE)
    activation = a.activation("hidden_act")
    base = _rope_base(a)
    if a["head_dim"] is None and a["hidden_size"] % a["num_attention_heads"]:
        a.refuse("num_attention_heads", a["num_attention_heads"])
    a.check()
    heads = a["num_attention_heads"]
    block = BlockConfig(
        AttentionConfig(
            heads=heads,
            kv_heads=heads if a["num_key_value_heads"] is None else a["num_key_value_heads"],
            head_dim=a["hidden_size"] // heads if a["head_dim"] is None else a["head_dim"],
            bias=("query", "key", "value", "out") if a["attention_bias"] else (),
            rope=RopeConfig(base),
        ),
        MlpConfig(a["intermediate_size"], activation, gated=True, bias=a["mlp_bias"]),
        NormConfig("rms", a["rms_norm_eps"]),
        dropout=a["resid_pdrop"],
    )
    return ModelConfig(
        vocab=a["vocab_size"],
        width=a["hidden_size"],
        decoder=StackConfig(
            (block,),
            layers=a["num_hidden_layers"],
            causal=True,
            input=InputConfig(dropout=a["embd_pdrop"]),
            final_norm=block.norm,
        ),
        head=HeadConfig(tied=a["tie_word_embeddings"]),
    ).validate()


def _rope_base(a: Attributes) -> float:
    """From `rope_parameters`, or from the older `rope_theta` and `rope_scaling`; no scaling is read here."""
    spelling = "rope_parameters" if a["rope_parameters"] else "rope_scaling"
    given = dict(a[spelling] or {})
    base = given.pop("rope_theta", a["rope_theta"])
    kind = given.pop("rope_type", given.pop("type", "default"))
    if kind != "default" or {name: value for name, value in given.items() if value not in (None, 1.0)}:
        a.refuse(spelling, a[spelling])
    return float(base)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it.

    The rotary base is spelled as both versions 4 and 5 of the reference read it.
    """
    stack = config.decoder
    rope = None if stack is None else stack.pattern[0].attention.rope
    if stack is None or config.encoder is not None or rope is None:
        raise ValueError("it is one decoder with rotary positions")
    block, attention = stack.pattern[0], stack.pattern[0].attention
    if config.width % attention.heads:
        raise ValueError(f"its width is a multiple of its heads: {config.width} is none of {attention.heads}")
    dropouts = {"resid_pdrop": block.dropout, "embd_pdrop": stack.input.dropout}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": block.mlp.width,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": PUBLISHED.get(block.mlp.activation),
        "max_position_embeddings": 2048,
        "rms_norm_eps": block.norm.eps,
        "rope_theta": rope.base,
        "rope_scaling": None,
        "attention_bias": bool(attention.bias),
        "mlp_bias": block.mlp.bias,
        "tie_word_embeddings": config.head.tied,
    } | {name: value for name, value in dropouts.items() if value}


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    ours, theirs = "decoder/blocks", "model.layers.{layer}"
    assert config.decoder is not None
    block, tied = config.decoder.pattern[0], config.head.tied
    rows = table("embed", "model.embed_tokens", also=("lm_head.weight",) if tied else ())
    rows += norm(f"{ours}/attention_norm", f"{theirs}.input_layernorm")
    for name, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
        path, published = f"{ours}/attention/{name}", f"{theirs}.self_attn.{short}_proj"
        rows += linear(path, published, inputs=2 if name == "out" else 1, bias=name in block.attention.bias)
    rows += norm(f"{ours}/mlp_norm", f"{theirs}.post_attention_layernorm")
    for name in ("gate", "up", "down"):
        rows += linear(f"{ours}/mlp/{name}", f"{theirs}.mlp.{name}_proj", bias=block.mlp.bias)
    rows += norm("decoder/norm", "model.norm")
    return rows if tied else rows + linear("heads/lm", "lm_head")


def _size(width: int, mlp: int, layers: int, heads: int, kv_heads: int | None = None, **others: Any) -> ModelConfig:
    return config(
        {
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-5,
            **others,
        }
    )


_THIRD = {"vocab_size": 128256, "rope_theta": 500_000.0}
_SMOL = {"vocab_size": 49152, "rope_theta": 100_000.0, "tie_word_embeddings": True}

SIZES = {
    "llama-7b": _size(4096, 11008, 32, 32, rms_norm_eps=1e-6),
    "llama-13b": _size(5120, 13824, 40, 40, rms_norm_eps=1e-6),
    "llama-2-7b": _size(4096, 11008, 32, 32),
    "llama-2-13b": _size(5120, 13824, 40, 40),
    "llama-2-70b": _size(8192, 28672, 80, 64, 8),
    "llama-3-8b": _size(4096, 14336, 32, 32, 8, **_THIRD),
    "llama-3-70b": _size(8192, 28672, 80, 64, 8, **_THIRD),
    "tinyllama-1.1b": _size(2048, 5632, 22, 32, 4),
    "smollm2-135m": _size(576, 1536, 30, 9, 3, **_SMOL),
    "smollm2-360m": _size(960, 2560, 32, 15, 5, **_SMOL),
    "smollm2-1.7b": _size(2048, 8192, 24, 32, 32, **(_SMOL | {"rope_theta": 130_000.0})),
}
