"""OPT: "Open Pre-trained Transformer Language Models" (Zhang et al., 2022, arXiv:2205.01068)."""

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
    TransformConfig,
)
from jaxformer.families import attributes, heads, plain
from jaxformer.families.attributes import EVERY, Attributes
from jaxformer.names import Row, linear

MODEL_TYPES: tuple[str, ...] = ("opt",)
ARCHITECTURES = heads.classes("OPT", kinds=("classify", "answer"))
PREFIX = "model."
IGNORED: tuple[str, ...] = ()
TOKENIZER: dict[str, Any] = {
    "kind": "byte_bpe",
    "special": {"bos": "</s>", "eos": "</s>", "unk": "</s>", "pad": "<pad>"},
    "template": ("{bos} $A", "{bos} $A {bos}:1 $B:1"),
}

READS: dict[str, Any] = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None,
    "dropout": 0.1,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "enable_bias": True,
    "tie_word_embeddings": True,
}
MUST_BE = {"layer_norm_elementwise_affine": True}
# layerdrop drops whole layers, in training alone; activation_dropout the reference passes over.
MAY_BE = ("activation_dropout", "layerdrop")
NORM, OFFSET = NormConfig("layer", 1e-5), 2
NAMES = {
    "embed": "embed_tokens",
    "decoder/position": "embed_positions",
    "decoder/blocks/attention_norm": "layers.{layer}.self_attn_layer_norm",
    "decoder/blocks/attention/query": "layers.{layer}.self_attn.q_proj",
    "decoder/blocks/attention/key": "layers.{layer}.self_attn.k_proj",
    "decoder/blocks/attention/value": "layers.{layer}.self_attn.v_proj",
    "decoder/blocks/attention/out": "layers.{layer}.self_attn.out_proj",
    "decoder/blocks/mlp_norm": "layers.{layer}.final_layer_norm",
    "decoder/blocks/mlp/up": "layers.{layer}.fc1",
    "decoder/blocks/mlp/down": "layers.{layer}.fc2",
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, MAY_BE)
    width, count = a["hidden_size"], a["num_attention_heads"]
    head_dim, activation = a.head_dim("hidden_size", "num_attention_heads"), a.activation("activation_function")
    narrow = a["word_embed_proj_dim"] not in (None, width)
    if narrow and heads.kind(hf, ARCHITECTURES) != "lm":  # any other head reads vectors of the embedding's width
        a.refuse("word_embed_proj_dim", a["word_embed_proj_dim"])
    a.check()
    before, bias = a["do_layer_norm_before"], a["enable_bias"]
    block = BlockConfig(
        AttentionConfig(count, count, head_dim, bias=EVERY if bias else ()),
        MlpConfig(a["ffn_dim"], activation, bias=bias),
        NORM,
        norms="pre" if before else "post",
        dropout=a["dropout"],
    )
    positions = LearnedConfig(a["max_position_embeddings"], OFFSET)
    head = HeadConfig(a["tie_word_embeddings"], transform=TransformConfig(bias=False) if narrow else None)
    return ModelConfig(
        vocab=a["vocab_size"],
        width=width,
        decoder=StackConfig(
            (block,),
            layers=a["num_hidden_layers"],
            causal=True,
            input=InputConfig(positions, projection_bias=not narrow, projection_first=narrow),
            final_norm=NORM if before and not a["_remove_final_layer_norm"] else None,
        ),
        embedding_width=a["word_embed_proj_dim"] if narrow else None,
        **heads.of_decoder(hf, ARCHITECTURES, head),
    ).validate()


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    stack = plain.stack_of(config)
    block, positions = stack.pattern[0], stack.input.positions
    if not isinstance(positions, LearnedConfig):
        raise ValueError("it is one decoder with learned positions")
    return heads.written(config, "opt", ARCHITECTURES) | {
        "hidden_size": config.width,
        "num_hidden_layers": stack.layers,
        "ffn_dim": block.mlp.width,
        "max_position_embeddings": positions.length,
        "do_layer_norm_before": block.norms == "pre",
        "_remove_final_layer_norm": block.norms == "pre" and stack.final_norm is None,
        "word_embed_proj_dim": config.embedding_width or config.width,
        "dropout": block.dropout,
        "num_attention_heads": block.attention.heads,
        "activation_function": attributes.PUBLISHED.get(block.mlp.activation),
        "enable_bias": bool(block.attention.bias),
    }


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    own = NAMES | ({} if plain.stack_of(config).final_norm is None else {"decoder/norm": "final_layer_norm"})
    rows = plain.rows(config, {ours: f"{PREFIX}decoder.{theirs}" for ours, theirs in own.items()})
    if config.embedding_width is not None:
        rows += linear("decoder/input_projection", f"{PREFIX}decoder.project_in")
        rows += linear("heads/lm/transform", f"{PREFIX}decoder.project_out")
    return rows


def _size(width: int, layers: int, count: int, **others: Any) -> ModelConfig:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": count, "ffn_dim": 4 * width}
    return config(sizes | others)


SIZES = {
    "opt-125m": _size(768, 12, 12),
    "opt-350m": _size(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": _size(2048, 24, 32),
    "opt-2.7b": _size(2560, 32, 32),
    "opt-6.7b": _size(4096, 32, 32),
    "opt-13b": _size(5120, 40, 40),
    "opt-30b": _size(7168, 48, 56),
    "opt-66b": _size(9216, 64, 72),
}
