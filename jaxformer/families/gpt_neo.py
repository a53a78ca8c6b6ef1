"""GPT-Neo (Black et al., 2021): GPT-2 where some layers look through a window, and scores are not scaled."""

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
from jaxformer.families import attributes, decoder, gpt2, heads, plain
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("gpt_neo",)
ARCHITECTURES = heads.classes("GPTNeo")
PREFIX = "transformer."
IGNORED: tuple[str, ...] = ("transformer.h.*.attn.attention.bias", "transformer.h.*.attn.attention.masked_bias")
"""Tensors of a file that are no parameters: the causal mask."""
TOKENIZER = gpt2.TOKENIZER

READS: dict[str, Any] = {
    "vocab_size": 50257,
    "max_position_embeddings": 2048,
    "hidden_size": 2048,
    "num_layers": 24,
    "attention_types": [[["global", "local"], 12]],
    "attention_layers": [],
    "num_heads": 16,
    "intermediate_size": None,
    "window_size": 256,
    "activation_function": "gelu_new",
    "resid_dropout": 0.0,
    "embed_dropout": 0.0,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
MAY_BE = gpt2.MAY_BE
BLOCKS, LAYER = "decoder/blocks", "transformer.h.{layer}"
NAMES = {
    "embed": "transformer.wte",
    "decoder/position": "transformer.wpe",
    f"{BLOCKS}/attention_norm": f"{LAYER}.ln_1",
    f"{BLOCKS}/attention/query": f"{LAYER}.attn.attention.q_proj",
    f"{BLOCKS}/attention/key": f"{LAYER}.attn.attention.k_proj",
    f"{BLOCKS}/attention/value": f"{LAYER}.attn.attention.v_proj",
    f"{BLOCKS}/attention/out": f"{LAYER}.attn.attention.out_proj",
    f"{BLOCKS}/mlp_norm": f"{LAYER}.ln_2",
    f"{BLOCKS}/mlp/up": f"{LAYER}.mlp.c_fc",
    f"{BLOCKS}/mlp/down": f"{LAYER}.mlp.c_proj",
    "decoder/norm": "transformer.ln_f",
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, {}, MAY_BE)
    width, count, head_dim = a["hidden_size"], a["num_heads"], a.head_dim("hidden_size", "num_heads")
    activation, near = a.activation("activation_function"), _near(a)
    a.check()
    norm = NormConfig("layer", a["layer_norm_epsilon"])
    mlp = MlpConfig(a["intermediate_size"] or 4 * width, activation)

    def layer(window: int | None) -> BlockConfig:
        attention = AttentionConfig(count, count, head_dim, scale=1.0, bias=("out",), window=window)
        return BlockConfig(attention, mlp, norm, dropout=a["resid_dropout"])

    return ModelConfig(
        vocab=a["vocab_size"],
        width=width,
        decoder=StackConfig(
            decoder.repeated([layer(a["window_size"] if each else None) for each in near]),
            layers=a["num_layers"],
            causal=True,
            input=InputConfig(LearnedConfig(a["max_position_embeddings"]), dropout=a["embed_dropout"]),
            final_norm=norm,
        ),
        **heads.of_decoder(hf, ARCHITECTURES, HeadConfig(a["tie_word_embeddings"])),
    ).validate()


def _near(a: Attributes) -> list[bool]:
    """Whether each layer looks through a window: by `attention_types`, pairs of kinds and how often they follow."""
    layers = a["num_layers"]
    try:  # what a damaged file repeats without end is cut at one layer too many
        kinds = [kind for each, times in a["attention_types"] for _ in range(min(times, layers + 1)) for kind in each]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != layers or any(kind not in ("global", "local") for kind in kinds):
        a.refuse("attention_types", a["attention_types"])
    elif a["attention_layers"] not in ([], kinds):
        a.refuse("attention_layers", a["attention_layers"])
    return [kind == "local" for kind in kinds]


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    stack = plain.stack_of(config)
    block, positions = stack.pattern[0], stack.input.positions
    if not isinstance(positions, LearnedConfig):
        raise ValueError("it is one decoder with learned positions")
    windows = [each.attention.window for each in stack.pattern]
    kinds = ["global" if window is None else "local" for window in windows]
    whole, rest = divmod(stack.layers, len(kinds))
    return heads.written(config, "gpt_neo", ARCHITECTURES) | {
        "max_position_embeddings": positions.length,
        "hidden_size": config.width,
        "num_layers": stack.layers,
        "attention_types": [[kinds, whole], *([[kinds[:rest], 1]] if rest else [])],
        "num_heads": block.attention.heads,
        "intermediate_size": block.mlp.width,
        "window_size": next((window for window in windows if window is not None), 256),
        "activation_function": attributes.PUBLISHED.get(block.mlp.activation),
        "resid_dropout": block.dropout,
        "embed_dropout": stack.input.dropout,
        "layer_norm_epsilon": block.norm.eps,
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return plain.rows(config, NAMES)


def _size(width: int, layers: int, count: int) -> ModelConfig:
    types = [[["global", "local"], layers // 2]]
    return config({"hidden_size": width, "num_layers": layers, "num_heads": count, "attention_types": types})


SIZES = {
    "gpt-neo-125m": _size(768, 12, 12),
    "gpt-neo-1.3b": _size(2048, 24, 16),
    "gpt-neo-2.7b": _size(2560, 32, 20),
}
