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
from jaxformer.families import plain
from jaxformer.families.attributes import PUBLISHED, Attributes
from jaxformer.names import Row, linear, norm, table

MODEL_TYPES: tuple[str, ...] = ("gpt2",)
ARCHITECTURES = {
    "lm": "GPT2LMHeadModel",
    "classify": "GPT2ForSequenceClassification",
    "tag": "GPT2ForTokenClassification",
    "answer": "GPT2ForQuestionAnswering",
    "embed": "GPT2Model",
}
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
# attn_pdrop drops attention weights, classifier_dropout and hidden_dropout a head's input, all in training alone:
# there is no such dropout here.
# summary_* configure a head that reads one token; early versions of the reference wrote the others.
MAY_BE = (
    "attn_pdrop",
    "classifier_dropout",
    "hidden_dropout",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "n_ctx",
    "n_special",
    "output_past",
    "predict_special_tokens",
)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, MAY_BE)
    activation = a.activation("activation_function")
    if a["n_embd"] % a["n_head"]:
        a.refuse("n_head", a["n_head"])
    a.check()
    head_dim = a["n_embd"] // a["n_head"]
    block = BlockConfig(
        AttentionConfig(
            heads=a["n_head"],
            kv_heads=a["n_head"],
            head_dim=head_dim,
            scale=None if a["scale_attn_weights"] else 1.0,
            bias=("query", "key", "value", "out"),
        ),
        MlpConfig(4 * a["n_embd"] if a["n_inner"] is None else a["n_inner"], activation),
        NormConfig("layer", a["layer_norm_epsilon"]),
        dropout=a["resid_pdrop"],
    )
    return ModelConfig(
        vocab=a["vocab_size"],
        width=a["n_embd"],
        decoder=StackConfig(
            (block,),
            layers=a["n_layer"],
            causal=True,
            input=InputConfig(LearnedConfig(a["n_positions"]), dropout=a["embd_pdrop"]),
            final_norm=block.norm,
        ),
        **plain.heads(hf, ARCHITECTURES, HeadConfig(tied=a["tie_word_embeddings"])),
    ).validate()


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    stack = plain.stack_of(config)
    block = stack.pattern[0]
    if not isinstance(stack.input.positions, LearnedConfig):
        raise ValueError("it is one decoder with learned positions")
    return plain.written(config, "gpt2", ARCHITECTURES) | {
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
    ours, theirs = "decoder/blocks", "transformer.h.{layer}"
    tied = config.head is not None and config.head.tied
    rows = table("embed", "transformer.wte", also=("lm_head.weight",) if tied else ())
    rows += table("decoder/position", "transformer.wpe")
    rows += norm(f"{ours}/attention_norm", f"{theirs}.ln_1", bias=True)
    for i, name in enumerate(("query", "key", "value")):
        path = f"{ours}/attention/{name}"
        rows += linear(path, f"{theirs}.attn.c_attn", bias=True, layout="in_out", part=(i, i + 1, 3))
    rows += linear(f"{ours}/attention/out", f"{theirs}.attn.c_proj", inputs=2, bias=True, layout="in_out")
    rows += norm(f"{ours}/mlp_norm", f"{theirs}.ln_2", bias=True)
    rows += linear(f"{ours}/mlp/up", f"{theirs}.mlp.c_fc", bias=True, layout="in_out")
    rows += linear(f"{ours}/mlp/down", f"{theirs}.mlp.c_proj", bias=True, layout="in_out")
    rows += norm("decoder/norm", "transformer.ln_f", bias=True)
    if config.head is not None and not tied:
        rows += linear("heads/lm", "lm_head")
    for extra in config.extra:
        rows += linear(f"heads/{extra.name}/output", plain.PUBLISHED[extra.name], bias=extra.bias)
    return rows


def _size(width: int, layers: int, heads: int) -> ModelConfig:
    return config({"n_embd": width, "n_layer": layers, "n_head": heads})


SIZES = {
    "distilgpt2": _size(768, 6, 12),
    "gpt2": _size(768, 12, 12),
    "gpt2-medium": _size(1024, 24, 16),
    "gpt2-large": _size(1280, 36, 20),
    "gpt2-xl": _size(1600, 48, 25),
}
