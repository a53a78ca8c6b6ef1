"""Encoders with learned positions in the battery: one of each published head, and the sizes that are easily wrong."""

from dataclasses import replace

BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": 61,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 45,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ROBERTA = BERT | {
    "model_type": "roberta",
    "architectures": ["RobertaForMaskedLM"],
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
DISTILBERT = {
    "model_type": "distilbert",
    "architectures": ["DistilBertForMaskedLM"],
    "vocab_size": 61,
    "dim": 40,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 45,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ALBERT = BERT | {"model_type": "albert", "architectures": ["AlbertForMaskedLM"], "embedding_size": 15}
ELECTRA = BERT | {"model_type": "electra", "architectures": ["ElectraForPreTraining"], "embedding_size": 15}
THREE = {"num_labels": 3}


def _of(hf, published, **others):
    return hf | {"architectures": [published]} | others


ROWS = {
    "bert": BERT,
    "bert one layer, one head, odd width, tanh gelu": BERT
    | {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 37, "hidden_act": "gelu_new"},
    "bert five layers, relu, large eps": BERT
    | {"num_hidden_layers": 5, "hidden_act": "relu", "layer_norm_eps": 1e-2},
    "bert pretraining, three segments": _of(BERT, "BertForPreTraining", type_vocab_size=3),
    "bert next sentence": _of(BERT, "BertForNextSentencePrediction"),
    "bert classify, silu": _of(BERT, "BertForSequenceClassification", hidden_act="silu", **THREE),
    "bert tag": _of(BERT, "BertForTokenClassification", **THREE),
    "bert answer": _of(BERT, "BertForQuestionAnswering"),
    "bert embed": _of(BERT, "BertModel"),
    "roberta": ROBERTA,
    "roberta padding 4, relu": ROBERTA
    | {"pad_token_id": 4, "hidden_act": "relu", "type_vocab_size": 2, "hidden_size": 36},
    "roberta classify": _of(ROBERTA, "RobertaForSequenceClassification", **THREE),
    "roberta tag": _of(ROBERTA, "RobertaForTokenClassification", **THREE),
    "roberta answer": _of(ROBERTA, "RobertaForQuestionAnswering"),
    "roberta embed": _of(ROBERTA, "RobertaModel"),
    "xlm-roberta": _of(ROBERTA, "XLMRobertaForMaskedLM", model_type="xlm-roberta"),
    "xlm-roberta classify": _of(ROBERTA, "XLMRobertaForSequenceClassification", model_type="xlm-roberta", **THREE),
    "camembert": _of(ROBERTA, "CamembertForMaskedLM", model_type="camembert"),
    "distilbert": DISTILBERT,
    "distilbert untied, relu, one layer": DISTILBERT
    | {"tie_word_embeddings": False, "activation": "relu", "n_layers": 1, "dim": 27, "n_heads": 3},
    "distilbert classify": _of(DISTILBERT, "DistilBertForSequenceClassification", **THREE),
    "distilbert tag": _of(DISTILBERT, "DistilBertForTokenClassification", **THREE),
    "distilbert answer": _of(DISTILBERT, "DistilBertForQuestionAnswering"),
    "distilbert embed": _of(DISTILBERT, "DistilBertModel"),
    "albert": ALBERT,
    "albert two groups of three, relu": ALBERT
    | {"num_hidden_groups": 2, "num_hidden_layers": 6, "hidden_act": "relu"},
    "albert each layer its own": ALBERT | {"num_hidden_groups": 3},
    "albert pretraining": _of(ALBERT, "AlbertForPreTraining"),
    "albert classify": _of(ALBERT, "AlbertForSequenceClassification", **THREE),
    "albert tag": _of(ALBERT, "AlbertForTokenClassification", **THREE),
    "albert answer": _of(ALBERT, "AlbertForQuestionAnswering"),
    "albert embed": _of(ALBERT, "AlbertModel"),
    "electra detect": ELECTRA,
    "electra detect, relu, no projection": ELECTRA | {"hidden_act": "relu", "embedding_size": 40},
    "electra": _of(ELECTRA, "ElectraForMaskedLM"),
    "electra untied, relu": _of(ELECTRA, "ElectraForMaskedLM", tie_word_embeddings=False, hidden_act="relu"),
    "electra classify": _of(ELECTRA, "ElectraForSequenceClassification", **THREE),
    "electra tag": _of(ELECTRA, "ElectraForTokenClassification", **THREE),
    "electra answer": _of(ELECTRA, "ElectraForQuestionAnswering"),
    "electra embed, wide embedding": _of(ELECTRA, "ElectraModel", embedding_size=50),
}
REFUSED = [
    ("bert", "is_decoder", True),
    ("bert", "add_cross_attention", True),
    ("bert", "position_embedding_type", "relative_key"),
    ("bert", "position_embedding_type", "relative_key_query"),
    ("bert", "hidden_act", "xielu"),
    ("bert", "num_attention_heads", 3),
    ("bert", "tie_word_embeddings", False),
    ("bert", "embedding_size", 15),
    ("roberta", "pad_token_id", None),
    ("roberta", "pad_token_id", 39),
    ("roberta", "is_decoder", True),
    ("xlm-roberta", "position_embedding_type", "relative_key"),
    ("camembert", "tie_word_embeddings", False),
    ("distilbert", "n_heads", 3),
    ("distilbert", "activation", "xielu"),
    ("distilbert", "type_vocab_size", 2),
    ("albert", "inner_group_num", 2),
    ("albert", "num_hidden_groups", 2),
    ("albert", "embedding_size", 40),
    ("electra detect", "is_decoder", True),
    ("electra detect", "hidden_size", 0),
]


def _block(config, **changes):
    (block,) = config.encoder.pattern
    return replace(config, encoder=replace(config.encoder, pattern=(replace(block, **changes),)))


def _input(config, **changes):
    return replace(config, encoder=replace(config.encoder, input=replace(config.encoder.input, **changes)))


def _mlp(config, activation):
    return _block(config, mlp=replace(config.encoder.pattern[0].mlp, activation=activation))


def _transform(config, **changes):
    return replace(config, head=replace(config.head, transform=replace(config.head.transform, **changes)))


def _hidden(config, activation):
    return replace(config, extra=(replace(config.extra[0], hidden=activation),))


def _scale(config):
    return _block(config, attention=replace(config.encoder.pattern[0].attention, scale=1.0))


def _loose_eps(config):
    return _block(config, norm=replace(config.encoder.pattern[0].norm, eps=1e-3))


def _offset(config, less):
    """Positions that begin `less` rows earlier in the same table."""
    positions = config.encoder.input.positions
    moved = replace(positions, length=positions.length + less, offset=positions.offset - less)
    return _input(config, positions=moved)


MUTATIONS = {
    "bert with the tanh gelu": ("bert", lambda c: _mlp(c, "gelu_tanh")),
    "bert with the tanh gelu in its head": ("bert", lambda c: _transform(c, activation="gelu_tanh")),
    "bert with another eps": ("bert", _loose_eps),
    "bert with norms before": ("bert", lambda c: _block(c, norms="pre")),
    "bert with unscaled scores": ("bert", _scale),
    "bert that sees the past alone": ("bert", lambda c: replace(c, encoder=replace(c.encoder, causal=True))),
    "bert with a linear pooler": ("bert next sentence", lambda c: replace(c, pooler="relu")),
    "bert that classifies the first token": (
        "bert classify, silu",
        lambda c: replace(c, extra=(replace(c.extra[0], reads="first"),)),
    ),
    "roberta with positions from the id of padding": ("roberta", lambda c: _offset(c, 1)),
    "roberta with positions from zero": ("roberta", lambda c: _offset(c, 2)),
    "roberta with the blocks' activation in its head": (
        "roberta padding 4, relu",
        lambda c: _transform(c, activation="relu"),
    ),
    "roberta with relu in its classifier": ("roberta classify", lambda c: _hidden(c, "relu")),
    "distilbert with tanh in its classifier": ("distilbert classify", lambda c: _hidden(c, "tanh")),
    "distilbert with another eps": ("distilbert", _loose_eps),
    "albert with the exact gelu": ("albert", lambda c: _mlp(c, "gelu")),
    "albert with scaled embeddings": ("albert", lambda c: _input(c, scale=2.0)),
    "albert with one more layer of a group": ("albert", lambda c: replace(c, encoder=replace(c.encoder, layers=4))),
    "electra with relu in its detector": ("electra detect", lambda c: _hidden(c, "relu")),
    "electra with the blocks' activation in its head": (
        "electra untied, relu",
        lambda c: _transform(c, activation="relu"),
    ),
    "electra with tanh in its classifier": ("electra classify", lambda c: _hidden(c, "tanh")),
}
