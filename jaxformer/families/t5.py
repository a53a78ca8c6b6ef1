"""T5: "Exploring the Limits of Transfer Learning" (Raffel et al., 2019, arXiv:1910.10683), its version 1.1, UL2."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InputConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RelativeConfig,
    StackConfig,
)
from jaxformer.families import heads
from jaxformer.families.attributes import PUBLISHED, Attributes
from jaxformer.names import Row, linear, norm, table

MODEL_TYPES: tuple[str, ...] = ("t5",)
ARCHITECTURES = {
    "lm": "T5ForConditionalGeneration",
    "classify": "T5ForSequenceClassification",
    "tag": "T5ForTokenClassification",
    "answer": "T5ForQuestionAnswering",
    "embed": "T5EncoderModel",
    "hidden": "T5Model",
}
ENCODERS = ("tag", "embed")
"""The kinds that are an encoder alone."""
PREFIX = "transformer."
"""Published names begin so in two classes with a head, but for the head's."""
BARE = ("lm", "answer", "embed", "hidden")
"""The kinds whose files lack it."""
IGNORED: tuple[str, ...] = ("transformer.decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
"""A table of early files that nothing reads."""
TOKENIZER: dict[str, Any] = {
    "kind": "sentencepiece",
    "special": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    "template": ("$A {eos}", "$A {eos} $B {eos}"),
    "sentinels": 100,
}

READS: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "dense_act_fn": "",
    "is_gated_act": False,
    "tie_word_embeddings": True,
    "scale_decoder_outputs": True,
    "is_encoder_decoder": True,  # the class decides
}
MAY_BE = ("n_positions",)  # it binds nothing here


def config(hf: Mapping[str, Any], architectures: Mapping[str, str] = ARCHITECTURES) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express.

    A tied head is scaled, unless `scale_decoder_outputs` says otherwise. `architectures` are those of a model type
    that differs in the names of its classes.
    """
    a = Attributes(hf, READS, {}, MAY_BE)
    alone, mlp = heads.kind(hf, architectures) in ENCODERS, _mlp(a, hf)
    a.check()
    tied = a["tie_word_embeddings"]
    scaled = a["scale_decoder_outputs"] if "scale_decoder_outputs" in hf else tied
    head = HeadConfig(tied, scale=a["d_model"] ** -0.5 if scaled else 1.0)
    layers = a["num_decoder_layers"] or a["num_layers"]
    return ModelConfig(
        vocab=a["vocab_size"],
        width=a["d_model"],
        encoder=_stack(a, mlp, a["num_layers"], causal=False),
        decoder=None if alone else _stack(a, mlp, layers, causal=True),
        **heads.of_decoder(hf, architectures, head, deep=True),
    ).validate()


def of_tensors(hf: Mapping[str, Any], published: Collection[str], scaled: bool = True) -> dict[str, Any]:
    """config.json, which says so where the names of the tensors show that a head without scale is not tied.

    Version 5 of the reference writes `tie_word_embeddings` as true in any case. `scaled`: whether a head is, where
    config.json does not say.
    """
    tied, scaled = hf.get("tie_word_embeddings", True), hf.get("scale_decoder_outputs", scaled)
    wrong = tied and not scaled and "lm_head.weight" in published
    return dict(hf) | ({"tie_word_embeddings": False} if wrong else {})


def _mlp(a: Attributes, hf: Mapping[str, Any]) -> MlpConfig:
    """By `feed_forward_proj`: an activation, "gated-" before it where gated; "gated-gelu" is the one by tanh.

    `dense_act_fn` goes before it.
    """
    form = a["feed_forward_proj"]
    gated = form.startswith("gated-")
    if a["dense_act_fn"]:
        activation = a.activation("dense_act_fn")
    else:
        called = "gelu_new" if form == "gated-gelu" else form.removeprefix("gated-")
        activation = a.activation("feed_forward_proj", called)
    if "is_gated_act" in hf and a["is_gated_act"] != gated:
        a.refuse("is_gated_act", a["is_gated_act"])
    return MlpConfig(a["d_ff"], activation, gated, bias=False)


def _stack(a: Attributes, mlp: MlpConfig, layers: int, causal: bool) -> StackConfig:
    attention = AttentionConfig(a["num_heads"], a["num_heads"], a["d_kv"], scale=1.0)
    norm = NormConfig("rms", a["layer_norm_epsilon"])
    dropout = a["dropout_rate"]
    return StackConfig(
        (BlockConfig(attention, mlp, norm, cross=attention if causal else None, dropout=dropout),),
        layers,
        causal,
        InputConfig(dropout=dropout),
        final_norm=norm,
        bias=RelativeConfig(a["relative_attention_num_buckets"], a["relative_attention_max_distance"]),
    )


def hf_config(
    config: ModelConfig, model_type: str = "t5", architectures: Mapping[str, str] = ARCHITECTURES
) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    encoder, decoder, head = config.encoder, config.decoder, config.head
    if encoder is None or not isinstance(encoder.bias, RelativeConfig):
        raise ValueError("it is an encoder, alone or with a decoder, with relative positions")
    block = encoder.pattern[0]
    form = PUBLISHED.get(block.mlp.activation)
    gated = getattr(block.mlp, "gated", False)
    return heads.written(config, model_type, architectures, bare="hidden" if decoder else "embed") | {
        "is_encoder_decoder": decoder is not None,
        "d_model": config.width,
        "d_kv": block.attention.head_dim,
        "d_ff": block.mlp.width,
        "num_layers": encoder.layers,
        "num_decoder_layers": encoder.layers if decoder is None else decoder.layers,
        "num_heads": block.attention.heads,
        "relative_attention_num_buckets": encoder.bias.buckets,
        "relative_attention_max_distance": encoder.bias.distance,
        "dropout_rate": block.dropout,
        "layer_norm_epsilon": block.norm.eps,
        "feed_forward_proj": f"gated-{form}" if gated else form,
        **({"dense_act_fn": form} if gated and form == "gelu" else {}),
        **({} if head is None else {"scale_decoder_outputs": head.scale != 1.0}),
        **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    stacks = [(name, stack) for name in ("encoder", "decoder") if (stack := getattr(config, name)) is not None]
    tied = config.head is not None and config.head.tied
    also = [f"{PREFIX}{name}.embed_tokens.weight" for name, _ in stacks] + ["lm_head.weight"] * tied
    rows = table("embed", f"{PREFIX}shared", also=tuple(also))
    for name, stack in stacks:
        rows += _stack_names(stack, name, f"{PREFIX}{name}")
    return rows + heads.rows(config, heads.PUBLISHED | {"classify": "classification_head"})


def _stack_names(stack: StackConfig, ours: str, theirs: str) -> tuple[Row, ...]:
    """A block's sublayers are numbered; the table of relative positions lies in the first block."""
    blocks, theirs_block = f"{ours}/blocks", f"{theirs}.block.{{layer}}.layer"
    rows = table(f"{ours}/relative", f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias")
    attentions = [("attention", "SelfAttention"), ("cross", "EncDecAttention")][: 1 if ours == "encoder" else 2]
    for place, (name, published) in enumerate(attentions):
        for part in ("query", "key", "value", "out"):
            inputs = 2 if part == "out" else 1
            rows += linear(f"{blocks}/{name}/{part}", f"{theirs_block}.{place}.{published}.{part[0]}", inputs=inputs)
        rows += norm(f"{blocks}/{name}_norm", f"{theirs_block}.{place}.layer_norm")
    last = f"{theirs_block}.{len(attentions)}"
    wide = (("gate", "wi_0"), ("up", "wi_1")) if getattr(stack.pattern[0].mlp, "gated", False) else (("up", "wi"),)
    for part, published in (*wide, ("down", "wo")):
        rows += linear(f"{blocks}/mlp/{part}", f"{last}.DenseReluDense.{published}")
    rows += norm(f"{blocks}/mlp_norm", f"{last}.layer_norm")
    return rows + norm(f"{ours}/norm", f"{theirs}.final_layer_norm")


def _size(width: int, mlp: int, layers: int, heads: int, head_dim: int = 64, **others: Any) -> ModelConfig:
    sizes = {"d_model": width, "d_ff": mlp, "num_layers": layers, "num_heads": heads, "d_kv": head_dim}
    return config(sizes | others)


_NEW: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

SIZES = {
    "t5-small": _size(512, 2048, 6, 8),
    "t5-base": _size(768, 3072, 12, 12),
    "t5-large": _size(1024, 4096, 24, 16),
    "t5-3b": _size(1024, 16384, 24, 32, 128),
    "t5-11b": _size(1024, 65536, 24, 128, 128),
    "t5-v1_1-small": _size(512, 1024, 8, 6, **_NEW),
    "t5-v1_1-base": _size(768, 2048, 12, 12, **_NEW),
    "t5-v1_1-large": _size(1024, 2816, 24, 16, **_NEW),
    "t5-v1_1-xl": _size(2048, 5120, 24, 32, **_NEW),
    "t5-v1_1-xxl": _size(4096, 10240, 24, 64, **_NEW),
    "ul2": _size(4096, 16384, 32, 16, 256, **(_NEW | {"feed_forward_proj": "gated-silu"})),
}
