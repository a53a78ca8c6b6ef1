"""What the kin of BART (Lewis et al., 2019, arXiv:1910.13461) have in common, and a word for what they do not."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    SinusoidConfig,
    StackConfig,
)
from jaxformer.families import heads
from jaxformer.families.attributes import EVERY, PUBLISHED, Attributes
from jaxformer.names import Row, linear, norm, table

PREFIX = "model."
STACKS = ("encoder", "decoder")
IGNORED = tuple(f"{PREFIX}{stack}.version" for stack in STACKS)
"""A number that early versions wrote."""
SINUSOIDS = tuple(f"{PREFIX}{stack}.embed_positions.weight" for stack in STACKS)
"""Tables of sinusoids, which are computed."""
NORM = NormConfig("layer", 1e-5)
HEADS = heads.PUBLISHED | {"classify": "classification_head"}
"""Kind of head -> the name of its layer, or layers."""


def sizes(width: int, layers: int, mlp: int, count: int) -> dict[str, Any]:
    """The attributes of two stacks of one size, each of so many heads."""
    each = {"layers": layers, "ffn_dim": mlp, "attention_heads": count}
    return {"d_model": width} | {f"{stack}_{name}": value for stack in STACKS for name, value in each.items()}


READS = {
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    **sizes(1024, 12, 4096, 16),
    "activation_function": "gelu",
    "dropout": 0.1,
    "scale_embedding": False,
}
MUST_BE = {
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "add_bias_logits": False,
    "do_blenderbot_90_layernorm": False,
}
# The dropouts and layerdrop act in training alone, on places that have none here. num_hidden_layers repeats
# encoder_layers. force_bos_token_to_be_generated is forced_bos_token_id of early versions, which wrote the rest too.
MAY_BE = (
    *("activation_dropout", "classif_dropout", "encoder_layerdrop", "decoder_layerdrop", "num_hidden_layers"),
    *("extra_pos_embeddings", "force_bos_token_to_be_generated", "save_step"),
)


@dataclass(frozen=True)
class Kin:
    """In what one model type differs from another."""

    model_type: str
    architectures: Mapping[str, str]
    """{kind of head: published class}."""
    special: Mapping[str, int]
    """Special ids of a model from scratch; below zero they count from the vocabulary's end."""
    norms: Literal["pre", "post"]
    """Where norms stand; with "pre" one more ends each stack."""
    input_norm: bool
    learned: bool
    """Positions are learned, their table offset by two rows; else they are sinusoids."""
    labels: int = 2
    """Classes, where config.json does not say how many."""
    vocab: int = 50265
    """Pieces, where config.json does not say how many."""


def config(hf: Mapping[str, Any], kin: Kin, **must_be: Any) -> ModelConfig:
    """The architecture of a config.json; `must_be` are attributes of this model type which must have one value.

    Raises a ValueError that names each attribute it cannot express.
    """
    early = {
        "normalize_before": kin.norms == "pre",
        "add_final_layer_norm": kin.norms == "pre",
        "normalize_embedding": kin.input_norm,
        "static_position_embeddings": not kin.learned,
    }
    a = Attributes(hf, READS | {"vocab_size": kin.vocab}, MUST_BE | early | must_be, MAY_BE)
    encoder, decoder = (_stack(a, name, kin) for name in STACKS)
    a.check()
    head = HeadConfig(tied=True, bias=True)
    return ModelConfig(
        vocab=a["vocab_size"],
        width=a["d_model"],
        encoder=encoder,
        decoder=decoder,
        **heads.of_decoder(hf, kin.architectures, head, deep=True, usual=kin.labels),
    ).validate()


def _stack(a: Attributes, name: str, kin: Kin) -> StackConfig:
    count, head_dim = a[f"{name}_attention_heads"], a.head_dim("d_model", f"{name}_attention_heads")
    attention = AttentionConfig(count, count, head_dim, bias=EVERY)
    return StackConfig(
        pattern=(
            BlockConfig(
                attention,
                MlpConfig(a[f"{name}_ffn_dim"], a.activation("activation_function")),
                NORM,
                norms=kin.norms,
                cross=attention if name == "decoder" else None,
                dropout=a["dropout"],
            ),
        ),
        layers=a[f"{name}_layers"],
        causal=name == "decoder",
        input=InputConfig(
            LearnedConfig(a["max_position_embeddings"], offset=2) if kin.learned else SinusoidConfig(),
            norm=NORM if kin.input_norm else None,
            dropout=a["dropout"],
            scale=a["d_model"] ** 0.5 if a["scale_embedding"] else 1.0,
        ),
        final_norm=NORM if kin.norms == "pre" else None,
    )


def hf_config(config: ModelConfig, kin: Kin) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    encoder, decoder = config.encoder, config.decoder
    positions = LearnedConfig if kin.learned else SinusoidConfig
    if encoder is None or decoder is None or not isinstance(decoder.input.positions, positions):
        raise ValueError(f"it is an encoder and a decoder with {'learned' if kin.learned else 'sinusoid'} positions")
    block = decoder.pattern[0]
    counts: dict[str, Any] = {}
    for name, stack in zip(STACKS, (encoder, decoder), strict=True):
        counts[f"{name}_layers"] = stack.layers
        counts[f"{name}_ffn_dim"] = stack.pattern[0].mlp.width
        counts[f"{name}_attention_heads"] = stack.pattern[0].attention.heads
    return heads.written(config, kin.model_type, kin.architectures) | {
        "is_encoder_decoder": True,
        "max_position_embeddings": getattr(decoder.input.positions, "length", 1024),
        "d_model": config.width,
        **counts,
        "activation_function": PUBLISHED.get(block.mlp.activation),
        "dropout": block.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": decoder.input.scale != 1.0,
        **{f"{name}_token_id": id % config.vocab for name, id in kin.special.items()},
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    also = (
        *(f"{PREFIX}{stack}.embed_tokens.weight" for stack in STACKS),
        *(["lm_head.weight"] if config.head else ()),
    )
    rows = table("embed", f"{PREFIX}shared", also=also)
    for name, stack in zip(STACKS, (config.encoder, config.decoder), strict=True):
        assert stack is not None
        rows += _stack_names(stack, name, f"{PREFIX}{name}")
    if config.head:
        rows += (Row("heads/lm/bias", "final_logits_bias", "row"),)
    return rows + heads.rows(replace(config, head=None), HEADS)


def _stack_names(stack: StackConfig, ours: str, theirs: str) -> tuple[Row, ...]:
    blocks, layer = f"{ours}/blocks", f"{theirs}.layers.{{layer}}"
    rows: tuple[Row, ...] = ()
    if isinstance(stack.input.positions, LearnedConfig):
        rows += table(f"{ours}/position", f"{theirs}.embed_positions")
    if stack.input.norm is not None:
        rows += norm(f"{ours}/input_norm", f"{theirs}.layernorm_embedding", bias=True)
    for name, published in (("attention", "self_attn"), ("cross", "encoder_attn"))[: 2 if ours == "decoder" else 1]:
        for part, short in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
            path, inputs = f"{blocks}/{name}/{part}", 2 if part == "out" else 1
            rows += linear(path, f"{layer}.{published}.{short}", inputs=inputs, bias=True)
        rows += norm(f"{blocks}/{name}_norm", f"{layer}.{published}_layer_norm", bias=True)
    rows += linear(f"{blocks}/mlp/up", f"{layer}.fc1", bias=True)
    rows += linear(f"{blocks}/mlp/down", f"{layer}.fc2", bias=True)
    rows += norm(f"{blocks}/mlp_norm", f"{layer}.final_layer_norm", bias=True)
    return rows if stack.final_norm is None else rows + norm(f"{ours}/norm", f"{theirs}.layer_norm", bias=True)


def sinusoids(hf: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tables of positions, float32 (Vaswani et al., 2017, section 3.5), sines in the first half."""
    length, width = hf.get("max_position_embeddings", 1024), hf["d_model"]
    angles = np.arange(length)[:, None] / 10_000.0 ** (np.arange(0, width, 2) / width)
    rows = np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
    return dict.fromkeys(SINUSOIDS, rows)
