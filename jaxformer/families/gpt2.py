"""GPT-2: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    StackConfig,
)
from jaxformer.families import heads, plain
from jaxformer.families.attributes import EVERY, PUBLISHED, Attributes
from jaxformer.names import Row, linear

MODEL_TYPES: tuple[str, ...] = ("gpt2",)
ARCHITECTURES = heads.classes("GPT2") | {"lm": "GPT2LMHeadModel"}
PREFIX = "transformer."
"""Published names begin so, but files of the model without its head lack it."""
IGNORED: tuple[str, ...] = ("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias")
"""Tensors of a file that are no parameters: the causal mask."""
TOKENIZER: dict[str, Any] = {
    "kind": "byte_bpe",
    "special": {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"},
}

READS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}
MUST_BE = {"reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False}
# The first two drop attention weights and a head's input, in training alone: there is no such dropout here.
# summary_* configure a head that reads one token; early versions of the reference wrote the others.
MAY_BE = (
    *("attn_pdrop", "hidden_dropout", "n_ctx", "n_special", "predict_special_tokens"),
    *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
)
BLOCKS, LAYER = "decoder/blocks", "transformer.h.{layer}"
NAMES = {
    "embed": "transformer.wte",
    "decoder/position": "transformer.wpe",
    f"{BLOCKS}/attention_norm": f"{LAYER}.ln_1",
    f"{BLOCKS}/attention/out": f"{LAYER}.attn.c_proj",
    f"{BLOCKS}/mlp_norm": f"{LAYER}.ln_2",
    f"{BLOCKS}/mlp/up": f"{LAYER}.mlp.c_fc",
    f"{BLOCKS}/mlp/down": f"{LAYER}.mlp.c_proj",
    "decoder/norm": "transformer.ln_f",
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, MAY_BE)
    width, count, head_dim = a["n_embd"], a["n_head"], a.head_dim("n_embd", "n_head")
    activation, scale = a.activation("activation_function"), None if a["scale_attn_weights"] else 1.0
    a.check()
    block = BlockConfig(
        AttentionConfig(count, count, head_dim, scale, bias=EVERY),
        MlpConfig(a["n_inner"] or 4 * width, activation),
        NormConfig("layer", a["layer_norm_epsilon"]),
        dropout=a["resid_pdrop"],
    )
    return ModelConfig(
        vocab=a["vocab_size"],
        width=width,
        decoder=StackConfig(
            (block,),
            layers=a["n_layer"],
            causal=True,
            input=InputConfig(LearnedConfig(a["n_positions"]), dropout=a["embd_pdrop"]),
            final_norm=block.norm,
        ),
        **heads.of_decoder(hf, ARCHITECTURES, HeadConfig(a["tie_word_embeddings"])),
    ).validate()


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    stack = plain.stack_of(config)
    block = stack.pattern[0]
    if not isinstance(stack.input.positions, LearnedConfig):
        raise ValueError("it is one decoder with learned positions")
    return heads.written(config, "gpt2", ARCHITECTURES) | {
        "n_positions": stack.input.positions.length,
        "n_embd": config.width,
        "n_layer": stack.layers,
        "n_head": block.attention.heads,
        "n_inner": None if block.mlp.width == 4 * config.width else block.mlp.width,
        "activation_function": PUBLISHED.get(block.mlp.activation),
        "resid_pdrop": block.dropout,
        "embd_pdrop": stack.input.dropout,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": block.norm.eps,
        "scale_attn_weights": block.attention.scale is None,
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published: projections as [in, out], query, key and value fused."""
    rows = plain.rows(config, NAMES, layout="in_out")
    for i, name in enumerate(("query", "key", "value")):
        path, published = f"{BLOCKS}/attention/{name}", f"{LAYER}.attn.c_attn"
        rows += linear(path, published, bias=True, layout="in_out", part=(i, i + 1, 3))
    return rows


def _size(width: int, layers: int, count: int) -> ModelConfig:
    return config({"n_embd": width, "n_layer": layers, "n_head": count})


SIZES = {
    "distilgpt2": _size(768, 6, 12),
    "gpt2": _size(768, 12, 12),
    "gpt2-medium": _size(1024, 24, 16),
    "gpt2-large": _size(1280, 36, 20),
    "gpt2-xl": _size(1600, 48, 25),
}
