"""Models of two stacks in the battery: T5 and mT5, BART, mBART, PEGASUS, Marian, the Transformer of 2017."""

from dataclasses import replace

from jaxformer.config import LearnedConfig, SinusoidConfig

T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 35,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
# Larger, and with parameters at random, the reference itself is further from its own numbers in float64 than allowed.
GATED = {"feed_forward_proj": "gated-gelu", "num_layers": 2, "num_heads": 3, "d_kv": 3}
NEW = T5 | GATED | {"tie_word_embeddings": False}
MT5 = T5 | GATED | {"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}
BART = {
    "model_type": "bart",
    "architectures": ["BartForConditionalGeneration"],
    "vocab_size": 61,
    "max_position_embeddings": 40,
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_ffn_dim": 35,
    "decoder_ffn_dim": 35,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "activation_function": "gelu",
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
UNEVEN = {
    **{"encoder_layers": 5, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 21},
    **{"encoder_attention_heads": 6, "decoder_attention_heads": 1},
}
MBART = BART | {"model_type": "mbart", "architectures": ["MBartForConditionalGeneration"]}
PEGASUS = BART | {
    **{"model_type": "pegasus", "architectures": ["PegasusForConditionalGeneration"]},
    **{"activation_function": "relu", "scale_embedding": True},
    **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "forced_eos_token_id": 1},
}
MARIAN = BART | {
    **{"model_type": "marian", "architectures": ["MarianMTModel"], "decoder_vocab_size": 61},
    **{"activation_function": "swish", "scale_embedding": True, "bos_token_id": None},
    **{"pad_token_id": 60, "eos_token_id": 0, "decoder_start_token_id": 60, "forced_eos_token_id": 0},
}
SEVEN = {
    "id2label": {str(i): f"LABEL_{i}" for i in range(7)},
    "label2id": {f"LABEL_{i}": i for i in range(7)},
}
TWO = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}


def _of(config, name):
    return config | {"architectures": [name]}


ROWS = {
    "t5": T5,
    "t5 1.1": NEW,
    "t5 1.1 one layer, one head": NEW | {"num_layers": 1, "num_heads": 1},
    "t5 uneven stacks, gated silu": T5
    | {"num_layers": 5, "num_decoder_layers": 1, "d_kv": 5, "feed_forward_proj": "gated-silu"},
    "t5 exact gelu, other eps": T5 | {"feed_forward_proj": "gelu", "layer_norm_epsilon": 1e-3},
    "t5 gated exact gelu, tied, unscaled": T5 | GATED | {"dense_act_fn": "gelu", "scale_decoder_outputs": False},
    "t5 encoder": _of(T5, "T5EncoderModel") | {"is_encoder_decoder": False},
    "t5 without head": _of(T5, "T5Model"),
    "t5 classify": _of(T5, "T5ForSequenceClassification") | SEVEN,
    "t5 tag": _of(T5, "T5ForTokenClassification") | SEVEN | {"is_encoder_decoder": False},
    "t5 answer": _of(T5, "T5ForQuestionAnswering"),
    "mt5": MT5,
    "mt5 untied": MT5 | {"tie_word_embeddings": False},
    "mt5 encoder": _of(MT5, "MT5EncoderModel"),
    "bart": BART,
    "bart uneven stacks, relu, scaled": BART | UNEVEN | {"activation_function": "relu", "scale_embedding": True},
    "bart one layer, forced bos": BART | {"encoder_layers": 1, "decoder_layers": 1, "forced_bos_token_id": 0},
    "bart classify": _of(BART, "BartForSequenceClassification") | SEVEN,
    "bart classify two": _of(BART, "BartForSequenceClassification") | TWO,
    "bart answer": _of(BART, "BartForQuestionAnswering"),
    "bart without head": _of(BART, "BartModel"),
    "mbart": MBART,
    "mbart uneven stacks, gelu by tanh, scaled": MBART
    | UNEVEN
    | {"activation_function": "gelu_new", "scale_embedding": True, "forced_bos_token_id": 7},
    "mbart classify": _of(MBART, "MBartForSequenceClassification") | SEVEN,
    "pegasus": PEGASUS,
    "pegasus uneven stacks, unscaled": PEGASUS | UNEVEN | {"activation_function": "gelu", "scale_embedding": False},
    # The reference gives the embedding of padding no gradient.
    "pegasus without head": _of(PEGASUS, "PegasusModel") | {"decoder_start_token_id": 3},
    "marian": MARIAN,
    "marian uneven stacks, unscaled": MARIAN | UNEVEN | {"activation_function": "gelu", "scale_embedding": False},
    "transformer": MARIAN | {"activation_function": "relu"},
}

REFUSED = [
    ("t5", "feed_forward_proj", "gated-xielu"),
    ("t5", "dense_act_fn", "xielu"),
    ("t5", "is_gated_act", True),
    ("t5", "num_layers", 0),
    ("t5", "tie_encoder_decoder", True),
    ("mt5", "scale_decoder_outputs", True),
    ("bart", "tie_word_embeddings", False),
    ("bart", "encoder_attention_heads", 5),
    ("bart", "activation_function", "xielu"),
    ("bart", "normalize_before", True),
    ("bart", "static_position_embeddings", True),
    ("bart", "add_bias_logits", True),
    ("mbart", "normalize_embedding", False),
    ("pegasus", "add_final_layer_norm", False),
    ("marian", "share_encoder_decoder_embeddings", False),
    ("marian", "decoder_vocab_size", 60),
    ("marian", "normalize_before", True),
]


def _stacks(config, change):
    stacks = {name: getattr(config, name) for name in ("encoder", "decoder")}
    return replace(config, **{name: stack and change(stack) for name, stack in stacks.items()})


def _blocks(config, change):
    return _stacks(config, lambda stack: replace(stack, pattern=tuple(change(block) for block in stack.pattern)))


def _activation(name):
    return lambda config: _blocks(config, lambda block: replace(block, mlp=replace(block.mlp, activation=name)))


def _norms(place):
    return lambda config: _blocks(config, lambda block: replace(block, norms=place))


def _eps(eps):
    return lambda config: _blocks(config, lambda block: replace(block, norm=replace(block.norm, eps=eps)))


def _input(**changes):
    return lambda config: _stacks(config, lambda stack: replace(stack, input=replace(stack.input, **changes)))


def _relative(**changes):
    return lambda config: _stacks(config, lambda stack: replace(stack, bias=replace(stack.bias, **changes)))


def _scores(scale):
    return lambda config: _blocks(
        config,
        lambda block: replace(
            block,
            attention=replace(block.attention, scale=scale),
            cross=block.cross and replace(block.cross, scale=scale),
        ),
    )


def _head(**changes):
    return lambda config: replace(config, head=replace(config.head, **changes))


MUTATIONS = {
    "t5 with a head that is not scaled": ("t5", _head(scale=1.0)),
    "t5 with scaled scores": ("t5", _scores(None)),
    "t5 with farther buckets": ("t5", _relative(distance=24)),
    "t5 with one-sided buckets in the encoder": (
        "t5 encoder",
        lambda config: replace(config, encoder=replace(config.encoder, causal=True)),
    ),
    "t5 with another eps": ("t5 exact gelu, other eps", _eps(1e-6)),
    "t5 with norms after": ("t5", _norms("post")),
    "t5 with the gelu by tanh": ("t5 exact gelu, other eps", _activation("gelu_tanh")),
    "t5 1.1 with the exact gelu": ("t5 1.1", _activation("gelu")),
    "t5 1.1 with a scaled head": ("t5 1.1", _head(scale=24**-0.5)),
    "t5 that classifies by the first token": (
        "t5 classify",
        lambda config: replace(config, extra=(replace(config.extra[0], reads="first"),)),
    ),
    "bart with positions from the first row on": ("bart", _input(positions=LearnedConfig(42))),
    "bart with a scaled embedding": ("bart", _input(scale=24**0.5)),
    "bart with an unscaled embedding": ("bart uneven stacks, relu, scaled", _input(scale=1.0)),
    "bart with norms before": ("bart", _norms("pre")),
    "bart with the gelu by tanh": ("bart", _activation("gelu_tanh")),
    "bart with another eps": ("bart", _eps(1e-3)),
    "mbart with norms after": ("mbart", _norms("post")),
    "pegasus with other sinusoids": ("pegasus", _input(positions=SinusoidConfig(1000.0))),
    "marian with norms before": ("marian", _norms("pre")),
    "marian with other sinusoids": ("marian", _input(positions=SinusoidConfig(1000.0))),
    "transformer with an unscaled embedding": ("transformer", _input(scale=1.0)),
}
