"""Marian (Junczys-Dowmunt et al., 2018, arXiv:1804.00344), as in OPUS-MT: nearly the Transformer of 2017."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import seq2seq_rows
from jaxformer.families.seq2seq_rows import PREFIX, SINUSOIDS, Kin, names

__all__ = ["ARCHITECTURES", "IGNORED", "MODEL_TYPES", "PREFIX", "SIZES", "TOKENIZER", "config", "hf_config", "names"]

MODEL_TYPES: tuple[str, ...] = ("marian",)
ARCHITECTURES = {"lm": "MarianMTModel", "embed": "MarianModel"}
IGNORED = (*seq2seq_rows.IGNORED, *SINUSOIDS)
TOKENIZER: dict[str, Any] = {
    "kind": "sentencepiece",
    "special": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    "template": ("$A {eos}", "$A $B {eos}"),
}
VOCAB = 58101
KIN = Kin(
    model_type="marian",
    architectures=ARCHITECTURES,
    special={"eos": 0, "pad": -1, "decoder_start": -1, "forced_eos": 0},
    norms="post",
    input_norm=False,
    learned=False,
    reads={"vocab_size": VOCAB},
)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    one_table = {"share_encoder_decoder_embeddings": True, "decoder_vocab_size": hf.get("vocab_size", VOCAB)}
    return seq2seq_rows.config(hf, replace(KIN, must_be=one_table))


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return seq2seq_rows.hf_config(config, KIN)


SIZES = {
    "opus-mt-en-de": config(
        {
            **{"d_model": 512, "activation_function": "swish", "scale_embedding": True},
            **{f"{stack}_layers": 6 for stack in seq2seq_rows.STACKS},
            **{f"{stack}_ffn_dim": 2048 for stack in seq2seq_rows.STACKS},
            **{f"{stack}_attention_heads": 8 for stack in seq2seq_rows.STACKS},
        }
    )
}
