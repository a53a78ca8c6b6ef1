"""mBART: "Multilingual Denoising Pre-training" (Liu et al., 2020, arXiv:2001.08210), and mBART-50 (2008.00401)."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.families import seq2seq_rows, xlm_roberta
from jaxformer.families.seq2seq_rows import IGNORED, PREFIX, Kin, names

__all__ = ["ARCHITECTURES", "IGNORED", "MODEL_TYPES", "PREFIX", "SIZES", "TOKENIZER", "config", "hf_config", "names"]

MODEL_TYPES: tuple[str, ...] = ("mbart",)
ARCHITECTURES = {
    "lm": "MBartForConditionalGeneration",
    "classify": "MBartForSequenceClassification",
    "answer": "MBartForQuestionAnswering",
    "embed": "MBartModel",
}
_LANGUAGES = """
    ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ
    ko_KR lt_LT lv_LV my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
"""
_MORE = """
    af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN
    pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
"""
TOKENIZER: dict[str, Any] = xlm_roberta.TOKENIZER | {
    "after": (*_LANGUAGES.split(), "<mask>"),
    "src_lang": "en_XX",
    "template": ("$A {eos} {src_lang}", "$A $B {eos} {src_lang}"),
    "variants": {
        "MBart50Tokenizer": {
            "after": (*_LANGUAGES.split(), *_MORE.split(), "<mask>"),
            "template": ("{src_lang} $A {eos}", "{src_lang} $A $B {eos}"),
        }
    },
}
KIN = Kin(
    model_type="mbart",
    architectures=ARCHITECTURES,
    special={"bos": 0, "pad": 1, "eos": 2, "decoder_start": 2, "forced_eos": 2},
    norms="pre",
    input_norm=True,
    learned=True,
)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a config.json. Raises a ValueError that names each attribute it cannot express."""
    return seq2seq_rows.config(hf, KIN)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json of this architecture, as far as that can express it."""
    return seq2seq_rows.hf_config(config, KIN)


SIZES = {
    "mbart-large-cc25": config({"vocab_size": 250027, "scale_embedding": True}),
    "mbart-large-50": config({"vocab_size": 250054, "scale_embedding": True, "activation_function": "relu"}),
}
