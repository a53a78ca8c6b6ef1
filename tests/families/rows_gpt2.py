"""GPT-2 in the battery."""

from dataclasses import replace

GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROWS = {
    "gpt2": GPT2,
    "gpt2 odd mlp, relu, unscaled": GPT2
    | {"n_inner": 45, "scale_attn_weights": False, "activation_function": "relu"},
    "gpt2 exact gelu, untied": GPT2 | {"activation_function": "gelu", "tie_word_embeddings": False},
    "gpt2 one layer": GPT2 | {"n_layer": 1},
    "gpt2 five layers, wide odd heads": GPT2 | {"n_layer": 5, "n_embd": 39, "n_head": 3},
    "gpt2 classifies": GPT2
    | {"architectures": ["GPT2ForSequenceClassification"], "num_labels": 3, "pad_token_id": 0},
    "gpt2 tags": GPT2 | {"architectures": ["GPT2ForTokenClassification"], "num_labels": 4},
    "gpt2 answers": GPT2 | {"architectures": ["GPT2ForQuestionAnswering"], "n_embd": 36},
    "gpt2 bare": GPT2 | {"architectures": ["GPT2Model"], "n_layer": 2},
}
REFUSED = [
    ("gpt2", "reorder_and_upcast_attn", True),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt2", "add_cross_attention", True),
    ("gpt2", "activation_function", "xielu"),
    ("gpt2", "n_head", 5),
    ("gpt2", "n_layer", "3"),
    ("gpt2", "n_layer", True),
    ("gpt2", "quantization_config", {"bits": 4}),
]


def _block(config, **changes):
    (block,) = config.decoder.pattern
    return replace(config, decoder=replace(config.decoder, pattern=(replace(block, **changes),)))


MUTATIONS = {
    "gpt2 with the exact gelu": (
        "gpt2",
        lambda c: _block(c, mlp=replace(c.decoder.pattern[0].mlp, activation="gelu")),
    ),
    "gpt2 with another eps": ("gpt2", lambda c: _block(c, norm=replace(c.decoder.pattern[0].norm, eps=1e-3))),
    "gpt2 with norms after": ("gpt2", lambda c: _block(c, norms="post")),
    "gpt2 with unscaled scores": (
        "gpt2",
        lambda c: _block(c, attention=replace(c.decoder.pattern[0].attention, scale=1.0)),
    ),
}
