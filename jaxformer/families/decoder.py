"""What decoders like LLaMA have in common: attributes of config.json, and the architecture that they describe."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InputConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    StackConfig,
)
from jaxformer.families import heads, rope
from jaxformer.families.attributes import EVERY, PUBLISHED, Attributes

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
    "tie_word_embeddings": False,
    **rope.READS,
}
# pretraining_tp above 1 splits products without changing them; cache_implementation is about decoding alone.
MAY_BE = ("cache_implementation", "pretraining_tp")
SLIDING, FULL = "sliding_attention", "full_attention"
IGNORED: tuple[str, ...] = ("model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
"""Tensors of a file that are no parameters: the rotary frequencies."""


def block(
    a: Attributes,
    *,
    norms: Any = "pre",
    offset: float = 0.0,
    activated_by: str = "hidden_act",
    dropout: float = 0.0,
    qk_norm: bool = False,
    **attention: Any,
) -> BlockConfig:
    """A layer; it has biases as `attention_bias` and `mlp_bias` say, where the family reads these.

    `offset` is that of all norms, `activated_by` the attribute that names the activation; `attention` are further
    fields of the attention.
    """
    count = a["num_attention_heads"]
    norm = NormConfig("rms", a["rms_norm_eps"], offset)
    fields = {
        "heads": count,
        "kv_heads": a["num_key_value_heads"] or count,
        "head_dim": a["head_dim"] or a.head_dim("hidden_size", "num_attention_heads"),
        "bias": EVERY if a.values.get("attention_bias") else (),
        "qk_norm": norm if qk_norm else None,
    }
    mlp_bias = a.values.get("mlp_bias", False)
    return BlockConfig(
        AttentionConfig(**(fields | attention)),
        MlpConfig(a["intermediate_size"], a.activation(activated_by), gated=True, bias=mlp_bias),
        norm,
        norms,
        dropout=dropout,
    )


def model(
    a: Attributes,
    hf: Mapping[str, Any],
    architectures: Mapping[str, str],
    layers: Sequence[BlockConfig],
    *,
    scale: float = 1.0,
    dropout: float = 0.0,
    softcap: float | None = None,
    causal: bool = True,
) -> ModelConfig:
    """The model of these layers, with the head that config.json asks for; all attributes are checked.

    `scale` and `dropout` are those of the input, `softcap` that of the logits.
    """
    a.check()
    stack = StackConfig(
        repeated(layers),
        layers=len(layers),
        causal=causal,
        input=InputConfig(dropout=dropout, scale=scale),
        final_norm=layers[0].norm,
    )
    return ModelConfig(
        vocab=a["vocab_size"],
        width=a["hidden_size"],
        encoder=None if causal else stack,
        decoder=stack if causal else None,
        **heads.of_decoder(hf, architectures, HeadConfig(tied=a["tie_word_embeddings"], softcap=softcap)),
    ).validate()


def repeated(layers: Sequence[BlockConfig]) -> tuple[BlockConfig, ...]:
    """The shortest pattern that, walked through again and again, gives these layers."""
    return next(
        tuple(layers[:period])
        for period in range(1, len(layers) + 1)
        if all(layers[i] == layers[i % period] for i in range(period, len(layers)))
    )


def slides(a: Attributes, usual: Callable[[int], bool]) -> list[bool]:
    """Whether each layer looks through a window: by `layer_types`, else as is `usual` for a layer of this number."""
    given, count = a["layer_types"], a["num_hidden_layers"]
    found = [each == SLIDING for each in given] if given else [usual(i) for i in range(count)]
    if given and (len(given) != count or any(each not in (SLIDING, FULL) for each in given)):
        a.refuse("layer_types", given)
    elif any(found) and a["sliding_window"] is None:
        a.refuse("sliding_window", None)
    return found


def layers_of(config: ModelConfig) -> list[BlockConfig]:
    """The block of each layer. Raises ValueError for a model that is none of these decoders."""
    stack = config.decoder if config.encoder is None else config.encoder
    if stack is None or (config.encoder is not None and config.decoder is not None):
        raise ValueError("it is one decoder with rotary positions")
    layers = [stack.pattern[i % len(stack.pattern)] for i in range(stack.layers)]
    if all(layer.attention.rope is None for layer in layers) or any(layer.cross for layer in layers):
        raise ValueError("it is one decoder with rotary positions")
    if not isinstance(layers[0].mlp, MlpConfig) or not layers[0].mlp.gated:
        raise ValueError("it is one decoder with a gated feed-forward")
    return layers


def written(
    config: ModelConfig, model_type: str, architectures: Mapping[str, str], reads: Collection[str]
) -> dict[str, Any]:
    """config.json, as far as those attributes of these decoders that the family `reads` express the model."""
    layers = layers_of(config)
    first, attention = layers[0], layers[0].attention
    assert isinstance(first.mlp, MlpConfig)
    activation, windows = PUBLISHED.get(first.mlp.activation), [layer.attention.window for layer in layers]
    found = {
        "hidden_size": config.width,
        "intermediate_size": first.mlp.width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": activation,
        "hidden_activation": activation,
        "rms_norm_eps": first.norm.eps,
        "attention_bias": bool(attention.bias),
        "mlp_bias": first.mlp.bias,
        "sliding_window": next((window for window in windows if window is not None), None),
        "layer_types": [FULL if window is None else SLIDING for window in windows],
    }
    positions = next(layer.attention.rope for layer in layers if layer.attention.rope is not None)
    found = {name: value for name, value in found.items() if name in reads}
    return heads.written(config, model_type, architectures) | found | rope.write(positions)


def divided(config: ModelConfig) -> None:
    """Raises a ValueError where the heads do not divide the width, as the reference asks of some of these."""
    count = layers_of(config)[0].attention.heads
    if config.width % count:
        raise ValueError(f"its width is a multiple of its heads: {config.width} is none of {count}")


def sizes(width: int, mlp: int, layers: int, count: int, kv_heads: int) -> dict[str, Any]:
    """The attributes in which the published sizes of a family differ; `count` is that of heads."""
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": count,
        "num_key_value_heads": kv_heads,
    }
