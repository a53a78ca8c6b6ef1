"""Rotary positions in a config.json: `rope_parameters`, or the older `rope_theta` beside `rope_scaling`."""

import math
from collections.abc import Mapping
from typing import Any

from jaxformer.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeConfig,
    Scaling,
    YarnScaling,
)
from jaxformer.families.attributes import Attributes, is_number

ORIGINAL, LONGEST = "original_max_position_embeddings", "max_position_embeddings"
READS: dict[str, Any] = {
    "rope_theta": 10_000.0,
    "rope_scaling": {},
    "rope_parameters": {},
    LONGEST: 2048,
    ORIGINAL: None,
}
"""Of these a family reads; one that can turn a part of each head reads `partial_rotary_factor` as well."""
COMMON = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
NEEDED = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": set(),
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "longrope": {"short_factor", "long_factor"},
}
"""What each kind of scaling must have."""
FURTHER = {
    "yarn": {
        *("factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        *("truncate", "finetuned"),  # the second says where the weights come from, and changes nothing
    },
    "llama3": {ORIGINAL},
    "longrope": {"factor", ORIGINAL, "attention_factor"},
}
"""What it may have."""


LISTS, FLAGS = ("short_factor", "long_factor"), ("truncate", "finetuned")
"""Which of them are lists of numbers, and which true or false; the others are numbers."""


def read(a: Attributes, also: Mapping[str, str] | None = None) -> RopeConfig:
    """The rotary positions of all layers. `also`: names of kinds of scaling that this family has besides."""
    spelling = "rope_scaling" if a["rope_scaling"] else "rope_parameters"
    return parsed(a, spelling, a[spelling] or {}, a["rope_theta"], a[ORIGINAL], also or {})


def parsed(
    a: Attributes,
    spelling: str,
    given: Mapping[str, Any],
    base: float,
    original: int | None = None,
    also: Mapping[str, str] | None = None,
) -> RopeConfig:
    """What one object says of rotary positions; what cannot be read is refused as the attribute `spelling`.

    `base` is theirs where the object names none; `original` goes before its own original_max_position_embeddings.
    """
    partial = {name: a[name] for name in ("partial_rotary_factor",) if name in a.values}
    given = {"rope_theta": base, **partial, **{name: value for name, value in given.items() if value is not None}}
    kind, share = given.get("rope_type", given.get("type", "default")), given.get("partial_rotary_factor", 1.0)
    if isinstance(kind, str) and also:
        kind = also.get(kind, kind)
    if not _readable(given, kind) or (share != 1.0 and not partial):
        a.refuse(spelling, a[spelling])
        return RopeConfig()
    length = original or given.get(ORIGINAL) or a[LONGEST]
    if kind == "longrope" and length < 2:  # its usual factor divides by the logarithm
        a.refuse(spelling, a[spelling])
        return RopeConfig()
    head_dim = a["head_dim"] or a.head_dim("hidden_size", "num_attention_heads")
    dim = int(head_dim * share)
    return RopeConfig(
        float(given["rope_theta"]),
        dim=None if dim == head_dim else dim,
        scaling=_scaling(kind, given, length, a[LONGEST]),
    )


def _readable(given: Mapping[str, Any], kind: Any) -> bool:
    """Whether everything that this kind of scaling needs is there, nothing else is, and each has its form."""
    if not isinstance(kind, str) or kind not in NEEDED:
        return False
    own = given.keys() - COMMON
    if not NEEDED[kind] <= own <= NEEDED[kind] | FURTHER.get(kind, set()):
        return False
    common = [given[name] for name in ("rope_theta", "partial_rotary_factor") if name in given]
    return all(map(is_number, common)) and all(_has_form(name, given[name]) for name in own)


def _has_form(name: str, value: Any) -> bool:
    if name in FLAGS:
        return isinstance(value, bool)
    if name in LISTS:
        return isinstance(value, list) and value != [] and all(map(is_number, value))
    return is_number(value) and value >= 0


def _scaling(kind: str, given: Mapping[str, Any], length: int, longest: int) -> Scaling | None:
    """`length` is that of texts before they were stretched, `longest` that which the model is to read."""
    number = {name: float(value) for name, value in given.items() if is_number(value)}
    if kind == "linear":
        return LinearScaling(number["factor"])
    if kind == "dynamic":
        return DynamicScaling(number["factor"], longest)
    if kind == "llama3":
        return Llama3Scaling(number["factor"], number["low_freq_factor"], number["high_freq_factor"], length)
    factor = number.get("factor", longest / length)
    if kind == "longrope":
        short, long = (tuple(map(float, given[name])) for name in ("short_factor", "long_factor"))
        return LongScaling(short, long, length, number.get("attention_factor", _long_attention(factor, length)))
    if kind == "yarn":
        return YarnScaling(
            factor,
            length,
            number.get("beta_fast") or 32.0,
            number.get("beta_slow") or 1.0,
            number.get("attention_factor", _yarn_attention(factor, number)),
            given.get("truncate", True),
        )
    return None


def _long_attention(factor: float, length: int) -> float:
    """The usual factor on cosines and sines (Ding et al., 2024, section 3.3 of arXiv:2402.13753)."""
    return math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0


def _yarn_attention(factor: float, number: Mapping[str, float]) -> float:
    """The usual factor on cosines and sines (Peng et al., 2023, equation 22), or the ratio of two such."""

    def strength(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    above, below = number.get("mscale"), number.get("mscale_all_dim")
    return strength(above) / strength(below) if above and below else strength(1.0)


def write(rope: RopeConfig) -> dict[str, Any]:
    """The attributes that say so, as versions 4 and 5 of the reference read them."""
    longest: dict[str, Any] = {}
    scaling: dict[str, Any] | None = None
    match rope.scaling:
        case LinearScaling(factor):
            scaling = {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor, length):
            scaling, longest = {"rope_type": "dynamic", "factor": factor}, {LONGEST: length}
        case Llama3Scaling(factor, low, high, length):
            bands = {"low_freq_factor": low, "high_freq_factor": high}
            scaling = {"rope_type": "llama3", "factor": factor, **bands, ORIGINAL: length}
            longest = {LONGEST: round(length * factor)}
        case YarnScaling(factor, length, fast, slow, attention, truncate):
            ramp = {"beta_fast": fast, "beta_slow": slow, "truncate": truncate}
            scaling = {"rope_type": "yarn", "factor": factor, ORIGINAL: length, "attention_factor": attention, **ramp}
            longest = {LONGEST: round(length * factor)}
        case LongScaling(short, long, length, attention):
            scaling = {"rope_type": "longrope", "short_factor": list(short), "long_factor": list(long)}
            # The length for which the usual factor is this one, where there is such a length.
            longest = {LONGEST: round(length**attention**2) if 1 <= attention < 2 else length}
            if _long_attention(longest[LONGEST] / length, length) != attention:
                scaling["attention_factor"] = attention
            scaling[ORIGINAL] = length
    return {"rope_theta": rope.base, "rope_scaling": scaling, **longest}
