"""BART: "Denoising Sequence-to-Sequence Pre-training" (Lewis et al., 2019, arXiv:1910.13461)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import roberta, seq2seq_rows
from jaxformer.families.seq2seq_rows import IGNORED, PREFIX, Kin, names

__all__ = ["ARCHITECTURES", "IGNORED", "MODEL_TYPES", "PREFIX", "SIZES", "TOKENIZER", "config", "hf_config", "names"]

MODEL_TYPES: tuple[str, ...] = ("bart",)
ARCHITECTURES = {
    "lm": "BartForConditionalGeneration",
    "classify": "BartForSequenceClassification",
    "answer": "BartForQuestionAnswering",
    "embed": "BartModel",
}
TOKENIZER = roberta.TOKENIZER
KIN = Kin(
    model_type="bart",
    architectures=ARCHITECTURES,
    special={"bos": 0, "pad": 1, "eos": 2, "decoder_start": 2, "forced_eos": 2},
    norms="post",
    input_norm=True,
    learned=True,
    labels=3,
)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    return seq2seq_rows.config(hf, KIN)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return seq2seq_rows.hf_config(config, KIN)


def _size(width: int, layers: int, heads: int, vocab: int = 50265) -> ModelConfig:
    return config(seq2seq_rows.sizes(width, layers, 4 * width, heads) | {"vocab_size": vocab})


SIZES = {
    "bart-base": _size(768, 6, 12),
    "bart-large": _size(1024, 12, 16),
    "bart-large-cnn": _size(1024, 12, 16, vocab=50264),
}
