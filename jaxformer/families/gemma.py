"""Gemma (Mesnard et al., 2024, arXiv:2403.08295): scaled embeddings, norms that learn their distance from one."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import decoder, decoder_rows, gguf_rows, heads, rope
from jaxformer.families.attributes import Attributes
from jaxformer.names import Row

MODEL_TYPES: tuple[str, ...] = ("gemma",)
ARCHITECTURES = heads.classes("Gemma", kinds=("classify", "tag"))
PREFIX = decoder_rows.PREFIX
IGNORED = decoder.IGNORED
TOKENIZER: dict[str, Any] = {
    "kind": "sentencepiece",
    "special": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"},
    "template": ("{bos} $A", "{bos} $A {bos}:1 $B:1"),
}

READS: dict[str, Any] = {
    **decoder.READS,
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
MUST_BE = {
    "hidden_activation": "gelu_pytorch_tanh",
    "partial_rotary_factor": 1.0,
    "use_bidirectional_attention": False,
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    a = Attributes(hf, READS, MUST_BE, decoder.MAY_BE)
    if a["hidden_act"] == "gelu":  # files of the first days say so, and mean the other
        a.values["hidden_act"] = "gelu_pytorch_tanh"
    layer = decoder.block(a, rope=rope.read(a), offset=1.0)
    return decoder.model(a, hf, ARCHITECTURES, [layer] * a["num_hidden_layers"], scale=a["hidden_size"] ** 0.5)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return decoder.written(config, "gemma", ARCHITECTURES, READS)


def names(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter is published."""
    return decoder_rows.decoder(config)


def gguf(config: ModelConfig) -> tuple[Row, ...]:
    """Where each parameter stands in a GGUF file."""
    return gguf_rows.decoder(config)


_SMALL = {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18}
SIZES = {
    "gemma-2b": config(_SMALL | {"num_attention_heads": 8, "num_key_value_heads": 1}),
    "gemma-7b": config({}),
}
