"""GPT-J (Wang & Komatsuzaki, 2021): attention and feed-forward side by side, a part of each head turned by rotary
positions whose pairs are neighbours.
"""

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
from jaxformer.families import attributes, gpt2, heads, plain
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("gptj",)
ARCHITECTURES = heads.classes("GPTJ", kinds=("classify", "answer"))
PREFIX = "transformer."
IGNORED: tuple[str, ...] = ("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias")
"""Tensors of a file that are no parameters: the causal mask."""
TOKENIZER = gpt2.TOKENIZER

READS: dict[str, Any] = {
    "vocab_size": 50400,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "n_inner": None,
    "rotary_dim": 64,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}
MUST_BE = {"rotary": True, "scale_attn_weights": True}
# n_positions is the length of a table of angles, which are computed here. See gpt2.py for the others.
MAY_BE = (*gpt2.MAY_BE, "n_positions")
BLOCKS, LAYER = "decoder/blocks", "transformer.h.{layer}"
NAMES = {
    "embed": "transformer.wte",
    f"{BLOCKS}/attention_norm": f"{LAYER}.ln_1",
    f"{BLOCKS}/attention/query": f"{LAYER}.attn.q_proj",
    f"{BLOCKS}/attention/key": f"{LAYER}.attn.k_proj",
    f"{BLOCKS}/attention/value": f"{LAYER}.attn.v_proj",
    f"{BLOCKS}/attention/out": f"{LAYER}.attn.out_proj",
    f"{BLOCKS}/mlp/up": f"{LAYER}.mlp.fc_in",
    f"{BLOCKS}/mlp/down": f"{LAYER}.mlp.fc_out",
    "decoder/norm": "transformer.ln_f",
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, MAY_BE)
    width, count, head_dim = a["n_embd"], a["n_head"], a.head_dim("n_embd", "n_head")
    activation, turned = a.activation("activation_function"), a["rotary_dim"]
    if turned > head_dim:
        a.refuse("rotary_dim", turned)
    a.check()
    rope = RopeConfig(dim=None if turned == head_dim else turned, interleaved=True)
    block = BlockConfig(
        AttentionConfig(count, count, head_dim, rope=rope),
        MlpConfig(a["n_inner"] or 4 * width, activation),
        NormConfig("layer", a["layer_norm_epsilon"]),
        parallel=True,
        dropout=a["resid_pdrop"],
    )
    return ModelConfig(
        vocab=a["vocab_size"],
        width=width,
        decoder=StackConfig(
            (block,),
            layers=a["n_layer"],
            causal=True,
            input=InputConfig(dropout=a["embd_pdrop"]),
            final_norm=block.norm,
        ),
        **heads.of_decoder(hf, ARCHITECTURES, HeadConfig(a["tie_word_embeddings"], bias=True)),
    ).validate()


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    stack = plain.stack_of(config)
    block = stack.pattern[0]
    if block.attention.rope is None:
        raise ValueError("it is one decoder with rotary positions")
    return heads.written(config, "gptj", ARCHITECTURES) | {
        "n_embd": config.width,
        "n_layer": stack.layers,
        "n_head": block.attention.heads,
        "n_inner": None if block.mlp.width == 4 * config.width else block.mlp.width,
        "rotary_dim": block.attention.rope.dim or block.attention.head_dim,
        "activation_function": attributes.PUBLISHED.get(block.mlp.activation),
        "resid_pdrop": block.dropout,
        "embd_pdrop": stack.input.dropout,
        "layer_norm_epsilon": block.norm.eps,
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return plain.rows(config, NAMES)


SIZES = {"gpt-j-6b": config({})}
