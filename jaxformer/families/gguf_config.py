"""GGUF metadata -> config.json: an architecture of llama.cpp as the model type whose checkpoints it is made of."""

import math
from collections.abc import Callable, Mapping
from typing import Any

LONG, SHORT, DIVISORS = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"
IGNORED = ("embedding_length_out", "rope.scaling.finetuned", "tensor_data_layout", "vocab_size")
"""Keys of an architecture that change nothing here."""
NEUTRAL = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "leading_dense_block_count": 0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "use_parallel_residual": False,
}
"""Keys that must be so."""
ORIGINAL = "rope.scaling.original_context_length"
YARN = {
    "attention_factor": "rope.scaling.yarn_attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
Json = dict[str, Any]


class Keys:
    """The metadata of one architecture: each key is asked for, neutral, or refused. Call `check` at the end."""

    def __init__(self, architecture: str, metadata: Mapping[str, Any]) -> None:
        start = f"{architecture}."
        self.architecture = architecture
        self.given = {name.removeprefix(start): value for name, value in metadata.items() if name.startswith(start)}
        self.asked = {*IGNORED, *NEUTRAL}
        self.wrong: list[str] = []
        for name, value in NEUTRAL.items():
            if self.given.get(name, value) != value:
                self.refuse(name)

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number above zero; zero too, where that is the default."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < (default != 0):
            self.refuse(name)
            return 1
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number above zero; zero too, where that is the default."""
        value = self._get(name, default)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (value == 0 != default):
            self.refuse(name)
            return 1.0
        return float(value)

    def word(self, name: str, default: str) -> str:
        """A text."""
        return str(self._get(name, default))

    def refuse(self, name: str) -> None:
        """Note that this key has a value that cannot be read, or none."""
        value = repr(self.given[name])[:40] if name in self.given else None
        self.wrong.append(f"{name}={value} is not supported" if value else f"{name} is missing")

    def check(self) -> None:
        """Raises a ValueError that lists every key that cannot be read."""
        for name in self.given.keys() - self.asked:
            self.refuse(name)
        if self.wrong:
            raise ValueError("\n".join(f"{self.architecture}.{line}" for line in sorted(set(self.wrong))))

    def _get(self, name: str, default: Any) -> Any:
        self.asked.add(name)
        return self.given.get(name, default)


def config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Json:
    """The config.json of a file. `tensors` are asked for shapes, and for the divisors of rotary frequencies.

    Raises a ValueError that lists every key which is missing, unknown or cannot be expressed.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"general.architecture {architecture!r} is not known; known are {known}")
    if "token_embd.weight" not in tensors:
        raise ValueError("token_embd.weight is missing")
    keys, (name, more) = Keys(architecture, metadata), ARCHITECTURES[architecture]
    heads, width = keys.size("attention.head_count"), keys.size("embedding_length")
    head_dim = keys.size("attention.key_length", width // heads or 1)
    if keys.size("attention.value_length", head_dim) != head_dim:
        keys.refuse("attention.value_length")
    hf: Json = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": architecture,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": keys.size("feed_forward_length"),
        "num_hidden_layers": keys.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": keys.size("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": "float32",
    }
    turned = keys.size("rope.dimension_count", head_dim)
    hf["rope_scaling"] = _scaling(keys, tensors, hf, turned)
    hf |= more(keys, tensors, hf)
    if hf["num_hidden_layers"] > len(tensors):
        keys.refuse("block_count")
    if turned != head_dim and "partial_rotary_factor" not in hf:
        keys.refuse("rope.dimension_count")
    keys.check()
    # Null too: else those of the checkpoint that a model type's defaults come from would stand for it.
    ids = {f"{role}_token_id": generation(metadata).get(f"{role}_token_id") for role in ("bos", "eos", "pad")}
    return {name: value for name, value in hf.items() if value is not None} | ids


def generation(metadata: Mapping[str, Any]) -> Json:
    """The generation_config.json: special ids; a text ends at the end of a turn as well."""
    special = {
        name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")
    }
    ends = list(dict.fromkeys(special[name] for name in ("eos", "eot", "eom") if special[name] is not None))
    ids = {"bos": special["bos"], "eos": ends[0] if len(ends) == 1 else ends or None, "pad": special["padding"]}
    return {f"{name}_token_id": value for name, value in ids.items() if value is not None}


def _scaling(keys: Keys, tensors: Mapping[str, Any], hf: Json, turned: int) -> Json | None:
    """`rope_scaling`: what the metadata name, or what tensors of divisors amount to."""
    factor, attention = keys.number("rope.scaling.factor", 0.0), keys.number("rope.scaling.attn_factor", 1.0)
    kind = keys.word("rope.scaling.type", "linear" if factor else "none")
    length = keys.size(ORIGINAL, hf["max_position_embeddings"])
    if SHORT in tensors and LONG in tensors and kind in ("none", "longrope"):
        found = {"short_factor": _divisors(tensors, SHORT), "long_factor": _divisors(tensors, LONG)}
        scale = hf["max_position_embeddings"] / length
        usual = math.sqrt(1 + math.log(scale) / math.log(length)) if scale > 1 < length else 1.0
        more = {} if math.isclose(attention, usual, rel_tol=1e-5) else {"attention_factor": attention}
        return {"type": "longrope", **found, "original_max_position_embeddings": length, **more}
    if attention != 1.0:
        keys.refuse("rope.scaling.attn_factor")
    if DIVISORS in tensors and kind == "none":
        return _divided(_divisors(tensors, DIVISORS), hf, turned)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn") or not {SHORT, LONG, DIVISORS}.isdisjoint(tensors):
        keys.refuse("rope.scaling.type")
    if not factor:
        keys.refuse("rope.scaling.factor")
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    more = {name: keys.number(key) for name, key in YARN.items() if key in keys.given}
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": length, **more}


def _divisors(tensors: Mapping[str, Any], name: str) -> list[float]:
    found = tensors[name][:].reshape(-1).tolist()
    if not all(0 < each < math.inf for each in found):
        raise ValueError(f"{name}: expected numbers above zero")
    return found


def _divided(divisors: list[float], hf: Json, turned: int) -> Json:
    """The scaling of LLaMA 3 where it gives these divisors, else they themselves, at every length."""
    factor, low, high, length = max(divisors), 1.0, 4.0, 8192
    waves = [2 * math.pi * hf["rope_theta"] ** (2 * i / turned) for i in range(turned // 2)]
    kept = [min(max((length / wave - low) / (high - low), 0.0), 1.0) for wave in waves]
    expected = [1 / ((1 - share) / factor + share) for share in kept]
    if len(divisors) == len(expected) and all(map(_close, divisors, expected)):
        scaling = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": length}
        return {"rope_type": "llama3", "factor": round(factor, 5), **scaling}
    both = {"short_factor": divisors, "long_factor": divisors, "attention_factor": 1.0}
    return {"rope_type": "longrope", **both, "original_max_position_embeddings": hf["max_position_embeddings"]}


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4)


def _llama(keys: Keys, tensors: Mapping[str, Any], hf: Json) -> Json:
    return {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_up.bias" in tensors}


def _qwen2(keys: Keys, tensors: Mapping[str, Any], hf: Json) -> Json:
    return _derived_head_dim(keys, hf) | {"use_sliding_window": False}


def _qwen3(keys: Keys, tensors: Mapping[str, Any], hf: Json) -> Json:
    return {"attention_bias": "blk.0.attn_q.bias" in tensors, "use_sliding_window": False}


def _gemma(keys: Keys, tensors: Mapping[str, Any], hf: Json) -> Json:
    return {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(keys: Keys, tensors: Mapping[str, Any], hf: Json) -> Json:
    return {
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(hf, largest=46),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        "sliding_window": keys.size("attention.sliding_window", 4096),
    }


def _gemma3(keys: Keys, tensors: Mapping[str, Any], hf: Json) -> Json:
    window = keys.size("attention.sliding_window", 0)
    return {
        "model_type": "gemma3_text",
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(hf, largest=62),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "rope_theta": keys.number("rope.freq_base", 1e6),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10_000.0),
        "sliding_window": window or 4096,
        "sliding_window_pattern": keys.size("attention.sliding_window_pattern", 6) if window else 1,
    }


def _phi3(keys: Keys, tensors: Mapping[str, Any], hf: Json) -> Json:
    scaling = {name: value for name, value in (hf["rope_scaling"] or {}).items() if not name.startswith("original")}
    return _derived_head_dim(keys, hf) | {
        "rope_scaling": scaling or None,
        "original_max_position_embeddings": keys.size(ORIGINAL, hf["max_position_embeddings"]),
        "partial_rotary_factor": keys.size("rope.dimension_count", hf["head_dim"]) / hf["head_dim"],
        "sliding_window": keys.size("attention.sliding_window", 0) or None,
    }


def _derived_head_dim(keys: Keys, hf: Json) -> Json:
    """For a model type whose heads always share its width."""
    if hf["head_dim"] * hf["num_attention_heads"] != hf["hidden_size"]:
        keys.refuse("attention.key_length")
    return {"head_dim": None}


def _query_scalar(hf: Json, largest: int) -> int:
    """Scores are divided by its root: the head's size, but in the largest of a series, known by its layers."""
    return hf["hidden_size"] // hf["num_attention_heads"] if hf["num_hidden_layers"] == largest else hf["head_dim"]


ARCHITECTURES: dict[str, tuple[str, Callable[[Keys, Mapping[str, Any], Json], Json]]] = {
    "llama": ("Llama", _llama),
    "qwen2": ("Qwen2", _qwen2),
    "qwen3": ("Qwen3", _qwen3),
    "gemma": ("Gemma", _gemma),
    "gemma2": ("Gemma2", _gemma2),
    "gemma3": ("Gemma3", _gemma3),
    "phi3": ("Phi3", _phi3),
}
"""Architecture -> (how the reference's class begins, what its config.json has beside the common attributes)."""
