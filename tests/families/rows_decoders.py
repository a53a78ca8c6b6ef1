"""LLaMA and the decoders after it in the battery."""

from dataclasses import replace


def _row(model_type, kind, **changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    lengths = {"vocab_size": 61, "intermediate_size": 45, "max_position_embeddings": 64}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {"model_type": model_type, "architectures": [kind]} | sizes | lengths | ids | changes


def _llama(kind="LlamaForCausalLM", **changes):
    return _row("llama", kind, **changes)


def _mistral(kind="MistralForCausalLM", **changes):
    return _row("mistral", kind, **({"sliding_window": 4} | changes))


def _qwen2(kind="Qwen2ForCausalLM", **changes):
    return _row("qwen2", kind, **changes)


def _qwen3(kind="Qwen3ForCausalLM", **changes):
    return _row("qwen3", kind, **({"head_dim": 10} | changes))


def _smollm3(kind="SmolLM3ForCausalLM", **changes):
    return _row("smollm3", kind, **changes)


def _gemma(kind="GemmaForCausalLM", **changes):
    return _row("gemma", kind, **({"head_dim": 12} | changes))


def _gemma2(kind="Gemma2ForCausalLM", **changes):
    usual = {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 9, "num_hidden_layers": 5}
    return _row("gemma2", kind, **(usual | changes))


def _gemma3(kind="Gemma3ForCausalLM", **changes):
    usual = {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 9, "num_hidden_layers": 8}
    return _row("gemma3_text", kind, **(usual | changes))


def _phi3(kind="Phi3ForCausalLM", **changes):
    return _row("phi3", kind, **changes)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"short_factor": [1.0, 1.1, 1.25, 1.5], "long_factor": [1.0, 2.5, 4.0, 6.0]}
HALF = {name: divisors[:2] for name, divisors in LONG.items()}
EVERY_OTHER = ["full_attention", "sliding_attention"] * 2
ROWS = {
    "llama": _llama(),
    "llama tied, all heads": _llama(tie_word_embeddings=True, num_key_value_heads=None),
    "llama one key head, 5 layers, other eps": _llama(num_key_value_heads=1, num_hidden_layers=5, rms_norm_eps=1e-3),
    "llama odd width, one layer, relu": _llama(hidden_size=36, head_dim=6, num_hidden_layers=1, hidden_act="relu"),
    "llama biases, gelu, other base": _llama(
        attention_bias=True, mlp_bias=True, hidden_act="gelu", rope_theta=500_000.0
    ),
    "llama linear": _llama(rope_scaling={"type": "linear", "factor": 2.5}),
    "llama dynamic": _llama(rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
    "llama dynamic beyond its length": _llama(
        "LlamaModel", max_position_embeddings=6, rope_scaling={"rope_type": "dynamic", "factor": 4.0}
    ),
    "llama yarn": _llama(rope_theta=100.0, rope_scaling=YARN),
    "llama yarn, ends not rounded, scales": _llama(
        rope_parameters=YARN
        | {"rope_theta": 100.0, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False}
        | {"mscale": 2.0, "mscale_all_dim": 0.5, "original_max_position_embeddings": 64},
        max_position_embeddings=256,
    ),
    "llama yarn, attention factor": _llama(rope_theta=100.0, rope_scaling=YARN | {"attention_factor": 0.7}),
    "llama bands": _llama(rope_theta=100.0, rope_scaling=LLAMA3 | {"original_max_position_embeddings": 16}),
    "llama long": _llama(rope_scaling=LONG | {"rope_type": "longrope", "factor": 2.0}),
    "llama long, beyond its length": _llama(
        rope_scaling=LONG | {"rope_type": "longrope", "original_max_position_embeddings": 6}
    ),
    "llama classifies": _llama("LlamaForSequenceClassification", num_labels=5),
    "llama tags": _llama("LlamaForTokenClassification", num_labels=3),
    "llama answers": _llama("LlamaForQuestionAnswering"),
    "mistral": _mistral(),
    "mistral no window, odd width, tied": _mistral(
        sliding_window=None, hidden_size=30, head_dim=8, tie_word_embeddings=True
    ),
    "mistral answers": _mistral("MistralForQuestionAnswering"),
    "qwen2": _qwen2(),
    "qwen2 windows in the last layers, tied": _qwen2(
        use_sliding_window=True, sliding_window=3, max_window_layers=1, tie_word_embeddings=True
    ),
    "qwen2 windows by layer, one key head": _qwen2(
        **{"use_sliding_window": True, "sliding_window": 3, "layer_types": EVERY_OTHER, "num_hidden_layers": 4},
        num_key_value_heads=1,
    ),
    "qwen2 scores": _qwen2("Qwen2ForSequenceClassification", num_labels=1),
    "qwen3": _qwen3(),
    "qwen3 biases, windows, other eps, tied": _qwen3(
        **{"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0, "attention_bias": True},
        **{"rms_norm_eps": 1e-3, "tie_word_embeddings": True},
    ),
    "qwen3 bare": _qwen3("Qwen3Model"),
    "smollm3": _smollm3(num_hidden_layers=5),
    "smollm3 listed layers, windows, biases": _smollm3(
        **{
            "no_rope_layers": [0, 1, 1],
            "use_sliding_window": True,
            "sliding_window": 3,
            "tie_word_embeddings": False,
        },
        **{"attention_bias": True, "mlp_bias": True},
    ),
    "gemma": _gemma(),
    "gemma of the first days, one key head, untied": _gemma(
        hidden_act="gelu", num_key_value_heads=1, tie_word_embeddings=False, attention_bias=True
    ),
    "gemma tags": _gemma("GemmaForTokenClassification", num_labels=3, hidden_size=30),
    "gemma2": _gemma2(),
    "gemma2 no caps, windows by layer": _gemma2(
        **{"attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 12},
        **{"layer_types": EVERY_OTHER, "num_hidden_layers": 4, "hidden_activation": "silu"},
    ),
    "gemma2 classifies, one layer": _gemma2("Gemma2ForSequenceClassification", num_labels=4, num_hidden_layers=1),
    "gemma3": _gemma3(),
    "gemma3 linear, every third layer whole, cap": _gemma3(
        **{
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_theta": 1000.0,
            "rope_local_base_freq": 50.0,
        },
        **{"sliding_window_pattern": 3, "num_hidden_layers": 5, "final_logit_softcapping": 20.0},
    ),
    "gemma3 two scalings": _gemma3(
        rope_parameters={
            "full_attention": YARN | {"rope_theta": 1000.0},
            "sliding_attention": {"rope_theta": 50.0, "rope_type": "linear", "factor": 2.0},
        },
        sliding_window_pattern=2,
        num_hidden_layers=4,
    ),
    "gemma3 reads both ways": _gemma3("Gemma3TextModel", use_bidirectional_attention=True, num_hidden_layers=6),
    "gemma3 classifies": _gemma3("Gemma3TextForSequenceClassification", num_labels=3, num_hidden_layers=2),
    "phi3": _phi3(),
    "phi3 all heads, window, part of a head turns": _phi3(
        num_key_value_heads=4, sliding_window=4, partial_rotary_factor=0.5, tie_word_embeddings=True
    ),
    "phi3 long": _phi3(
        rope_scaling=LONG | {"type": "su", "original_max_position_embeddings": 48},
        original_max_position_embeddings=48,
    ),
    "phi3 long, beyond its length, part of a head": _phi3(
        **{"rope_scaling": HALF | {"type": "longrope"}, "original_max_position_embeddings": 6},
        partial_rotary_factor=0.5,
    ),
    "phi3 tags": _phi3("Phi3ForTokenClassification", num_labels=3),
}
REFUSED = [
    ("llama", "rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
    ("llama", "rope_scaling", {"type": "linear", "factor": "2"}),
    ("llama", "rope_scaling", {"type": "linear", "factor": 2.0, "mystery": 1}),
    ("llama", "rope_scaling", {"rope_type": "longrope", "short_factor": [1.0]}),
    ("llama", "rope_parameters", {"rope_theta": 1e4, "rope_type": "proportional"}),
    ("llama", "rope_parameters", {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}),
    ("llama", "rope_parameters", {"full_attention": {"rope_theta": 1e4, "rope_type": "default"}}),
    ("llama", "partial_rotary_factor", 0.5),
    ("llama", "rope_interleaved", True),
    ("llama", "hidden_act", "xielu"),
    ("llama", "hidden_size", 0),
    ("llama", "num_attention_heads", 5),
    ("llama", "sliding_window", 128),
    ("mistral", "layer_types", ["full_attention"] * 3),
    ("mistral", "sliding_window", 0),
    ("qwen2", "layer_types", ["full_attention"] * 2),
    ("qwen2", "layer_types", ["chunked_attention"] * 3),
    ("qwen2", "rope_scaling", {"type": "mrope", "mrope_section": [2, 1, 1]}),
    ("qwen3", "head_dim", 1.5),
    ("smollm3", "no_rope_layers", [0, 1]),
    ("gemma", "hidden_activation", "relu"),
    ("gemma", "use_bidirectional_attention", True),
    ("gemma2", "sliding_window", None),
    ("gemma2", "hidden_activation", "xielu"),
    ("gemma3", "attn_logit_softcapping", 50.0),
    ("gemma3", "rope_parameters", {"rope_theta": 1e4, "rope_type": "default"}),
    ("phi3", "rope_scaling", {"type": "linear", "factor": 2.0}),
    ("phi3", "attention_bias", True),
]


def _layers(config, change):
    """The same architecture with every layer of the pattern changed."""
    side = config.main
    stack = getattr(config, side)
    return replace(config, **{side: replace(stack, pattern=tuple(map(change, stack.pattern)))})


def _attention(**changes):
    return lambda c: _layers(c, lambda layer: replace(layer, attention=replace(layer.attention, **changes)))


def _rope(**changes):
    return lambda c: _layers(
        c,
        lambda layer: replace(
            layer, attention=replace(layer.attention, rope=replace(layer.attention.rope, **changes))
        ),
    )


def _scaling(**changes):
    return lambda c: _rope(scaling=replace(c.decoder.pattern[0].attention.rope.scaling, **changes))(c)


def _norm(**changes):
    return lambda c: _layers(c, lambda layer: replace(layer, norm=replace(layer.norm, **changes)))


def _mlp(**changes):
    return lambda c: _layers(c, lambda layer: replace(layer, mlp=replace(layer.mlp, **changes)))


def _turned(c, by=1):
    """The pattern begun at another place."""
    pattern = c.decoder.pattern
    return replace(c, decoder=replace(c.decoder, pattern=pattern[by:] + pattern[:by]))


def _narrower(c):
    def change(layer):
        window = layer.attention.window
        return replace(layer, attention=replace(layer.attention, window=window and window - 1))

    return _layers(c, change)


def _input(**changes):
    return lambda c: replace(c, decoder=replace(c.decoder, input=replace(c.decoder.input, **changes)))


MUTATIONS = {
    "llama with another eps": ("llama one key head, 5 layers, other eps", _norm(eps=1e-5)),
    "llama with the tanh gelu": ("llama biases, gelu, other base", _mlp(activation="gelu_tanh")),
    "llama with another base": ("llama biases, gelu, other base", _rope(base=10_000.0)),
    "llama with interleaved pairs": ("llama", _rope(interleaved=True)),
    "llama with other norms": ("llama", _norm(kind="rms", offset=1.0)),
    "llama without linear scaling": ("llama linear", _rope(scaling=None)),
    "llama with dynamic scaling from another length": ("llama dynamic beyond its length", _scaling(length=7)),
    "llama with a yarn that rounds": ("llama yarn, ends not rounded, scales", _scaling(truncate=True)),
    "llama with a yarn of another strength": ("llama yarn, attention factor", _scaling(attention_factor=1.0)),
    "llama with bands of another length": ("llama bands", _scaling(length=32)),
    "llama with short divisors for long texts": ("llama long, beyond its length", _scaling(length=64)),
    "llama reading the first token": (
        "llama classifies",
        lambda c: replace(c, extra=(replace(c.extra[0], reads="first"),)),
    ),
    "mistral with a narrower window": ("mistral", _narrower),
    "qwen2 with windows in other layers": ("qwen2 windows by layer, one key head", _turned),
    "qwen3 with another eps in queries and keys": (
        "qwen3 biases, windows, other eps, tied",
        lambda c: _attention(qk_norm=replace(c.decoder.pattern[0].norm, eps=1e-5))(c),
    ),
    "smollm3 with positions in other layers": ("smollm3", _turned),
    "gemma with norms that begin at one": ("gemma", _norm(offset=0.0)),
    "gemma with unscaled embeddings": ("gemma", _input(scale=1.0)),
    "gemma with the exact gelu": ("gemma of the first days, one key head, untied", _mlp(activation="gelu")),
    "gemma2 without the cap on scores": ("gemma2", _attention(softcap=None)),
    "gemma2 without the cap on logits": ("gemma2", lambda c: replace(c, head=replace(c.head, softcap=None))),
    "gemma2 with the usual scale": ("gemma2", _attention(scale=None)),
    "gemma2 with norms on the branch alone": ("gemma2", lambda c: _layers(c, lambda b: replace(b, norms="branch"))),
    "gemma2 with windows in other layers": ("gemma2", _turned),
    "gemma3 with one base": ("gemma3", _rope(base=10_000.0)),
    "gemma3 with whole layers elsewhere": ("gemma3", _turned),
    "gemma3 with a narrower window": ("gemma3 linear, every third layer whole, cap", _narrower),
    "phi3 with whole heads that turn": ("phi3 all heads, window, part of a head turns", _rope(dim=None)),
}
