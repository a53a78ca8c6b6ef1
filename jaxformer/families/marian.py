"""Marian (Junczys-Dowmunt et al., 2018, arXiv:1804.00344), as in OPUS-MT: nearly the Transformer of 2017."""

from collections.abc import Mapping
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
KIN = Kin(
    model_type="marian",
    architectures=ARCHITECTURES,
    special={"eos": 0, "pad": -1, "decoder_start": -1, "forced_eos": 0},
    norms="post",
    input_norm=False,
    learned=False,
    vocab=58101,
)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    vocab = hf.get("vocab_size", KIN.vocab)
    return seq2seq_rows.config(hf, KIN, share_encoder_decoder_embeddings=True, decoder_vocab_size=vocab)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return seq2seq_rows.hf_config(config, KIN)


_BASE = seq2seq_rows.sizes(512, 6, 2048, 8)
SIZES = {"opus-mt-en-de": config(_BASE | {"activation_function": "swish", "scale_embedding": True})}
