"""What decoders like LLaMA have in common: attributes of config.json, and the architecture that they describe."""

from collections.abc import Callable, Mapping, Sequence
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
from jaxformer.families import plain, rope
from jaxformer.families.attributes import PUBLISHED, Attributes

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
# attention_dropout drops attention weights, classifier_dropout a head's input, both in training alone: there is no
# such dropout here. pretraining_tp above 1 splits products without changing them; cache_implementation is about
# decoding alone.
MAY_BE = ("attention_dropout", "cache_implementation", "classifier_dropout", "pretraining_tp")
SLIDING, FULL = "sliding_attention", "full_attention"
IGNORED: tuple[str, ...] = ("model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
"""Tensors of a file that are no parameters: the rotary frequencies."""


def architectures(begin: str, kinds: Sequence[str] = ("classify", "tag", "answer")) -> dict[str, str]:
    """{kind of head: class} where the classes' names begin so."""
    ends = {"classify": "SequenceClassification", "tag": "TokenClassification", "answer": "QuestionAnswering"}
    others = {kind: f"{begin}For{ends[kind]}" for kind in kinds}
    return {"lm": f"{begin}ForCausalLM", **others, "embed": f"{begin}Model"}


def block(
    a: Attributes,
    *,
    norms: Any = "pre",
    offset: float = 0.0,
    activated_by: str = "hidden_act",
    mlp_bias: bool = False,
    dropout: float = 0.0,
    qk_norm: bool = False,
    **attention: Any,
) -> BlockConfig:
    """A layer. `offset` is that of all norms, `activated_by` the attribute that names the activation; `attention`
    are further fields of the attention.
    """
    heads, width = a["num_attention_heads"], a["hidden_size"]
    if a["head_dim"] is None and width % heads:
        a.refuse("num_attention_heads", heads)
    norm = NormConfig("rms", a["rms_norm_eps"], offset)
    return BlockConfig(
        AttentionConfig(
            heads=heads,
            kv_heads=a["num_key_value_heads"] or heads,
            head_dim=a["head_dim"] or width // heads,
            qk_norm=norm if qk_norm else None,
            **attention,
        ),
        MlpConfig(a["intermediate_size"], a.activation(activated_by), gated=True, bias=mlp_bias),
        norm,
        norms,
        dropout=dropout,
    )


def model(
    a: Attributes,
    hf: Mapping[str, Any],
    classes: Mapping[str, str],
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
        **plain.heads(hf, classes, HeadConfig(tied=a["tie_word_embeddings"], softcap=softcap)),
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
    if given and (len(given) != count or not set(given) <= {SLIDING, FULL}):
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


def written(config: ModelConfig, model_type: str, classes: Mapping[str, str]) -> dict[str, Any]:
    """The attributes that all these decoders have, as far as they express the model."""
    layers = layers_of(config)
    first, attention = layers[0], layers[0].attention
    positions = next(layer.attention.rope for layer in layers if layer.attention.rope is not None)
    return plain.written(config, model_type, classes) | {
        "hidden_size": config.width,
        "intermediate_size": first.mlp.width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": PUBLISHED.get(first.mlp.activation),
        "rms_norm_eps": first.norm.eps,
        **rope.write(positions),
    }


def biases(config: ModelConfig) -> dict[str, bool]:
    """`attention_bias` and `mlp_bias`."""
    first = layers_of(config)[0]
    assert isinstance(first.mlp, MlpConfig)
    return {"attention_bias": bool(first.attention.bias), "mlp_bias": first.mlp.bias}


def divided(config: ModelConfig) -> None:
    """Raises a ValueError where the heads do not divide the width, as the reference asks of some of these."""
    heads = layers_of(config)[0].attention.heads
    if config.width % heads:
        raise ValueError(f"its width is a multiple of its heads: {config.width} is none of {heads}")


def windows(config: ModelConfig) -> dict[str, Any]:
    """`sliding_window` and `layer_types` of these layers."""
    found = [layer.attention.window for layer in layers_of(config)]
    return {
        "sliding_window": next((window for window in found if window is not None), None),
        "layer_types": [FULL if window is None else SLIDING for window in found],
    }
