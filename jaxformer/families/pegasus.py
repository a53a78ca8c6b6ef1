"""PEGASUS: "Pre-training with Extracted Gap-sentences" (Zhang et al., 2019, arXiv:1912.08777)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.families import seq2seq_rows
from jaxformer.families.seq2seq_rows import PREFIX, SINUSOIDS, Kin, names

__all__ = ["ARCHITECTURES", "IGNORED", "MODEL_TYPES", "PREFIX", "SIZES", "TOKENIZER", "config", "hf_config", "names"]

MODEL_TYPES: tuple[str, ...] = ("pegasus",)
ARCHITECTURES = {"lm": "PegasusForConditionalGeneration", "embed": "PegasusModel"}
IGNORED = (*seq2seq_rows.IGNORED, *SINUSOIDS)
TOKENIZER: dict[str, Any] = {
    "kind": "sentencepiece",
    "special": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"},
    "before": ("<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 103))),
    "skip": 2,
    "template": ("$A {eos}", "$A $B {eos}"),
}
KIN = Kin(
    model_type="pegasus",
    architectures=ARCHITECTURES,
    special={"pad": 0, "eos": 1, "decoder_start": 0, "forced_eos": 1},
    norms="pre",
    input_norm=False,
    learned=False,
)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    return seq2seq_rows.config(hf, KIN)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return seq2seq_rows.hf_config(config, KIN)


def computed(hf: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tables of positions, which this class holds as if they were parameters."""
    return seq2seq_rows.sinusoids(hf)


SIZES = {
    "pegasus-large": config(
        {
            **{"vocab_size": 96103, "encoder_layers": 16, "decoder_layers": 16},
            **{"activation_function": "relu", "scale_embedding": True},
        }
    )
}
