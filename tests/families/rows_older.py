"""The older decoders, and those with experts, in the battery."""

from dataclasses import replace

from jaxformer.config import InputConfig, LearnedConfig

IDS = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _opt(kind="OPTForCausalLM", **changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 45}
    row = {"model_type": "opt", "architectures": [kind], "max_position_embeddings": 40, **IDS}
    return row | sizes | changes


def _bloom(kind="BloomForCausalLM", **changes):
    return (
        {"model_type": "bloom", "architectures": [kind], "hidden_size": 32, "n_layer": 3, "n_head": 4} | IDS | changes
    )


def _gptj(kind="GPTJForCausalLM", **changes):
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40, "rotary_dim": 4}
    return {"model_type": "gptj", "architectures": [kind]} | sizes | IDS | changes


def _gpt_neo(kind="GPTNeoForCausalLM", **changes):
    sizes = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 40, "window_size": 4}
    types = {"attention_types": [[["global", "local"], 2]]}
    return {"model_type": "gpt_neo", "architectures": [kind]} | sizes | types | IDS | changes


def _sparse(model_type, kind, **changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    lengths = {"max_position_embeddings": 64, "num_experts_per_tok": 2}
    return {"model_type": model_type, "architectures": [kind]} | sizes | lengths | IDS | changes


def _mixtral(kind="MixtralForCausalLM", **changes):
    return _sparse("mixtral", kind, **({"intermediate_size": 20, "num_local_experts": 5} | changes))


def _qwen3(kind="Qwen3MoeForCausalLM", **changes):
    own = {"moe_intermediate_size": 12, "num_experts": 6, "head_dim": 10, "num_experts_per_tok": 3}
    return _sparse("qwen3_moe", kind, **(own | changes))


ROWS = {
    "opt": _opt(),
    "opt exact gelu, untied, odd width, 5 layers": _opt(
        hidden_size=30,
        num_attention_heads=3,
        activation_function="gelu",
        tie_word_embeddings=False,
        num_hidden_layers=5,
    ),
    "opt narrow embedding, norms after": _opt(word_embed_proj_dim=18, do_layer_norm_before=False),
    "opt narrow embedding, untied, one layer": _opt(
        word_embed_proj_dim=18, tie_word_embeddings=False, num_hidden_layers=1
    ),
    "opt no biases, no last norm": _opt(enable_bias=False, _remove_final_layer_norm=True),
    "opt classifies, norms after": _opt("OPTForSequenceClassification", num_labels=3, do_layer_norm_before=False),
    "opt answers": _opt("OPTForQuestionAnswering"),
    "opt bare": _opt("OPTModel"),
    "bloom": _bloom(),
    "bloom six heads, untied, other eps": _bloom(
        hidden_size=30, n_head=6, tie_word_embeddings=False, layer_norm_epsilon=1e-3
    ),
    "bloom one head, 5 layers": _bloom(n_head=1, n_layer=5),
    "bloom classifies": _bloom("BloomForSequenceClassification", num_labels=3),
    "bloom tags": _bloom("BloomForTokenClassification", num_labels=4),
    "bloom bare, one layer": _bloom("BloomModel", n_layer=1),
    "gptj": _gptj(),
    "gptj whole heads, tied, relu, odd mlp": _gptj(
        rotary_dim=8, tie_word_embeddings=True, activation_function="relu", n_inner=45
    ),
    "gptj odd width, other eps, 5 layers": _gptj(
        n_embd=30, n_head=3, rotary_dim=6, n_layer=5, layer_norm_epsilon=1e-3
    ),
    "gptj classifies": _gptj("GPTJForSequenceClassification", num_labels=3),
    "gptj answers, one layer": _gptj("GPTJForQuestionAnswering", n_layer=1),
    "gpt_neo": _gpt_neo(),
    "gpt_neo five layers, odd mlp, exact gelu, untied": _gpt_neo(
        **{"num_layers": 5, "attention_types": [[["global", "local"], 2], [["global"], 1]], "intermediate_size": 45},
        **{"activation_function": "gelu", "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    ),
    "gpt_neo one near layer": _gpt_neo(num_layers=1, attention_types=[[["local"], 1]], hidden_size=36),
    "gpt_neo tags, all layers far": _gpt_neo(
        "GPTNeoForTokenClassification", num_labels=4, attention_types=[[["global"], 4]]
    ),
    "gpt_neo bare": _gpt_neo("GPTNeoModel"),
    "mixtral": _mixtral(),
    "mixtral window, tied, one key head, 5 layers": _mixtral(
        **{"sliding_window": 4, "tie_word_embeddings": True, "num_key_value_heads": 1, "num_hidden_layers": 5},
        num_experts_per_tok=1,
    ),
    "mixtral all experts, one layer, wide heads": _mixtral(
        num_experts_per_tok=3, num_local_experts=3, num_hidden_layers=1, head_dim=10
    ),
    "mixtral classifies": _mixtral("MixtralForSequenceClassification", num_labels=3),
    "mixtral answers": _mixtral("MixtralForQuestionAnswering"),
    "qwen3_moe": _qwen3(),
    "qwen3_moe weights that sum to one, biases, window, tied": _qwen3(
        **{"norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
        **{"use_sliding_window": True, "sliding_window": 3, "num_hidden_layers": 3},
    ),
    "qwen3_moe answers": _qwen3("Qwen3MoeForQuestionAnswering"),
    "qwen3_moe bare, yarn": _qwen3(
        "Qwen3MoeModel",
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
        rope_theta=100.0,
    ),
}
REFUSED = [
    ("opt", "layer_norm_elementwise_affine", False),
    ("opt", "num_attention_heads", 5),
    ("opt", "activation_function", "xielu"),
    ("opt", "add_cross_attention", True),
    ("opt answers", "word_embed_proj_dim", 18),
    ("opt bare", "word_embed_proj_dim", 18),
    ("bloom", "apply_residual_connection_post_layernorm", True),
    ("bloom", "slow_but_exact", True),
    ("bloom", "n_head", 5),
    ("bloom", "n_inner", 45),
    ("gptj", "rotary_dim", 10),
    ("gptj", "rotary_dim", None),
    ("gptj", "rotary", False),
    ("gptj", "scale_attn_weights", False),
    ("gpt_neo", "attention_types", [[["global", "local"], 3]]),
    ("gpt_neo", "attention_types", [[["global", "strided"], 2]]),
    ("gpt_neo", "attention_types", [["global", "local"]]),
    ("gpt_neo", "attention_layers", ["local", "global", "local", "global"]),
    ("gpt_neo", "num_heads", 5),
    ("mixtral", "num_local_experts", 0),
    ("mixtral", "attention_bias", True),
    ("mixtral", "hidden_act", "xielu"),
    ("qwen3_moe", "decoder_sparse_step", 2),
    ("qwen3_moe", "mlp_only_layers", [1]),
    ("qwen3_moe", "num_experts", 0),
    ("qwen3_moe", "partial_rotary_factor", 0.5),
]


def _blocks(change):
    """The same architecture with every block of the pattern changed."""

    def changed(config):
        pattern = tuple(change(block) for block in config.decoder.pattern)
        return replace(config, decoder=replace(config.decoder, pattern=pattern))

    return changed


def _attention(**changes):
    return _blocks(lambda block: replace(block, attention=replace(block.attention, **changes)))


def _mlp(**changes):
    return _blocks(lambda block: replace(block, mlp=replace(block.mlp, **changes)))


def _stack(**changes):
    return lambda c: replace(c, decoder=replace(c.decoder, **changes))


def _turned(config):
    """The pattern begun at its second block."""
    pattern = config.decoder.pattern
    return replace(config, decoder=replace(config.decoder, pattern=pattern[1:] + pattern[:1]))


def _window(by):
    def change(block):
        window = block.attention.window
        return replace(block, attention=replace(block.attention, window=window and window + by))

    return _blocks(change)


def _rope(**changes):
    return _blocks(
        lambda block: replace(
            block, attention=replace(block.attention, rope=replace(block.attention.rope, **changes))
        )
    )


MUTATIONS = {
    "opt with the tanh gelu": ("opt exact gelu, untied, odd width, 5 layers", _mlp(activation="gelu_tanh")),
    "opt with norms before": ("opt narrow embedding, norms after", _blocks(lambda b: replace(b, norms="pre"))),
    "opt with positions from the table's first row": (
        "opt",
        lambda c: _stack(input=replace(c.decoder.input, positions=LearnedConfig(42)))(c),
    ),
    "opt with another eps": ("opt", _blocks(lambda b: replace(b, norm=replace(b.norm, eps=1e-3)))),
    "opt that classifies with norms before": (
        "opt classifies, norms after",
        _blocks(lambda b: replace(b, norms="pre")),
    ),
    "bloom without ALiBi": ("bloom", _stack(bias=None)),
    "bloom with the exact gelu": ("bloom", _mlp(activation="gelu")),
    "bloom with another eps": (
        "bloom six heads, untied, other eps",
        _blocks(lambda b: replace(b, norm=replace(b.norm, eps=1e-5))),
    ),
    "bloom with another eps at its input": (
        "bloom six heads, untied, other eps",
        lambda c: _stack(input=InputConfig(norm=replace(c.decoder.input.norm, eps=1e-5)))(c),
    ),
    "gptj with pairs half a head apart": ("gptj", _rope(interleaved=False)),
    "gptj with whole heads that turn": ("gptj", _rope(dim=None)),
    "gptj with unscaled scores": ("gptj", _attention(scale=1.0)),
    "gpt_neo with a narrower window": ("gpt_neo", _window(-1)),
    "gpt_neo with a wider window": ("gpt_neo", _window(1)),
    "gpt_neo with windows in other layers": ("gpt_neo", _turned),
    "gpt_neo with scaled scores": ("gpt_neo", _attention(scale=None)),
    "gpt_neo with the tanh gelu": ("gpt_neo five layers, odd mlp, exact gelu, untied", _mlp(activation="gelu_tanh")),
    "mixtral with one expert a token": ("mixtral", _mlp(top_k=1)),
    "mixtral with the weights of all": ("mixtral", _mlp(normalize=False)),
    "mixtral with a narrower window": ("mixtral window, tied, one key head, 5 layers", _window(-1)),
    "qwen3_moe with weights that sum to one": ("qwen3_moe", _mlp(normalize=True)),
    "qwen3_moe with the weights of all": (
        "qwen3_moe weights that sum to one, biases, window, tied",
        _mlp(normalize=False),
    ),
    "qwen3_moe with another eps in queries and keys": (
        "qwen3_moe weights that sum to one, biases, window, tied",
        lambda c: _attention(qk_norm=replace(c.decoder.pattern[0].norm, eps=1e-6))(c),
    ),
}
