"""What is particular to published models of two stacks: early config.json files, heads that are not as they say."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer import families, sharding, source, testing, tree
from jaxformer.config import Card
from jaxformer.families import transformer
from jaxformer.nn.model import Model

ROWS = runpy.run_path(str(Path(__file__).with_name("rows_seq2seq.py")))["ROWS"]

SUMMARY = {"summarization": {"early_stopping": True, "length_penalty": 2.0, "num_beams": 4, "prefix": "summarize: "}}
LABELS = {"id2label": {"0": "A", "1": "B", "2": "C"}, "label2id": {"A": 0, "B": 1, "C": 2}}
BARTS = {
    **{"activation_dropout": 0.0, "add_bias_logits": False, "attention_dropout": 0.0, "bos_token_id": 0},
    **{"classif_dropout": 0.0, "classifier_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},
    **{"dropout": 0.1, "init_std": 0.02, "is_encoder_decoder": True, "num_beams": 4, "max_length": 142},
    **{"force_bos_token_to_be_generated": True, "forced_eos_token_id": 2, "output_past": True, "save_step": 58},
    **{"task_specific_params": SUMMARY, "gradient_checkpointing": False, "_num_labels": 3, **LABELS},
    **{"do_blenderbot_90_layernorm": False, "extra_pos_embeddings": 2},
}
T5S = {
    **{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
    **{"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "initializer_factor": 1.0},
    **{"layer_norm_epsilon": 1e-06, "output_past": True, "relative_attention_num_buckets": 32, "n_positions": 512},
    **{"task_specific_params": SUMMARY, "dropout_rate": 0.1, "tokenizer_class": "T5Tokenizer", "d_kv": 64},
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def bart(model_type, name, *, width=1024, layers=12, mlp=4096, heads=16, pre, norm, learned, **others):
    sizes = {"model_type": model_type, "architectures": [name], "d_model": width, "num_hidden_layers": layers}
    for stack in ("encoder", "decoder"):
        sizes |= {f"{stack}_layers": layers, f"{stack}_ffn_dim": mlp, f"{stack}_attention_heads": heads}
    early = {"normalize_before": pre, "add_final_layer_norm": pre, "normalize_embedding": norm}
    return BARTS | sizes | early | {"static_position_embeddings": not learned} | others


EARLY = {
    "t5-small": T5S | {"vocab_size": 32128, "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5-v1_1-base": T5S
    | GATED
    | {
        "vocab_size": 32128,
        "d_model": 768,
        "d_ff": 2048,
        "num_layers": 12,
        "num_decoder_layers": 12,
        "num_heads": 12,
    },
    "mt5-small": T5S
    | GATED
    | {"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"], "vocab_size": 250112}
    | {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "bart-large-cnn": bart(
        "bart",
        "BartForConditionalGeneration",
        pre=False,
        norm=True,
        learned=True,
        vocab_size=50264,
    ),
    "mbart-large-cc25": bart(
        "mbart",
        "MBartForConditionalGeneration",
        pre=True,
        norm=True,
        learned=True,
        vocab_size=250027,
        scale_embedding=True,
    ),
    "pegasus-large": bart(
        "pegasus",
        "PegasusForConditionalGeneration",
        layers=16,
        pre=True,
        norm=False,
        learned=False,
        vocab_size=96103,
        scale_embedding=True,
        activation_function="relu",
    ),
    "opus-mt-en-de": bart(
        "marian",
        "MarianMTModel",
        width=512,
        layers=6,
        mlp=2048,
        heads=8,
        pre=False,
        norm=False,
        learned=False,
        vocab_size=58101,
        decoder_vocab_size=58101,
        share_encoder_decoder_embeddings=True,
        scale_embedding=True,
        activation_function="swish",
    ),
}


@pytest.mark.parametrize("name", EARLY)
def test_what_early_versions_wrote_is_read(name):
    family = families.family(EARLY[name]["model_type"])
    assert family.config(EARLY[name]) == family.SIZES[name]


def test_prefixes_of_tasks_stay_on_the_card(tmp_path):
    model, params = drawn(ROWS["t5"], card=True, task_specific_params=SUMMARY)
    source.save_pretrained(tmp_path, model, params)
    assert source.from_pretrained(tmp_path)[0].card.config["task_specific_params"] == SUMMARY


def drawn(hf, card=False, **more):
    """(model, parameters drawn at random)."""
    hf = hf | more
    config = families.family(hf["model_type"]).config(hf)
    model = Model(config, card=Card(hf["model_type"], hf) if card else Card())
    return model, testing.randomized(sharding.abstract_params(model), jax.random.key(0))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["t5 1.1", "mt5 untied"])
def test_a_head_that_is_called_tied_and_is_not_is_read_as_it_is(name, tmp_path):
    hf = ROWS[name] | ({"scale_decoder_outputs": False} if name.startswith("t5") else {})
    model, params = drawn(hf, card=True)
    source.save_pretrained(tmp_path, model, params)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"tie_word_embeddings": True}))
    again, loaded, _ = source.from_pretrained(tmp_path)
    assert not again.config.head.tied
    equal(params, loaded)
    source.save_pretrained(tmp_path / "out", again, loaded)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == written


@pytest.mark.parametrize("head", ["embed", "tag:4"])
def test_the_encoder_alone_is_read_out_of_a_file_of_both_stacks(head, tmp_path, caplog):
    model, params = drawn(ROWS["t5"], card=True)
    source.save_pretrained(tmp_path, model, params)
    encoder, loaded, _ = source.from_pretrained(tmp_path, head=head)
    assert encoder.config.decoder is None
    assert "dropped: decoder.block.0" in caplog.text
    for part in ("embed", "encoder"):
        equal(params[part], loaded[part])


@pytest.mark.parametrize("name", ["t5 classify", "bart classify"])
def test_another_head_is_read_whether_names_have_the_prefix_or_not(name, tmp_path):
    model, params = drawn(ROWS[name], card=True)
    source.save_pretrained(tmp_path, model, params)
    for head in ("lm", "answer", "embed"):
        _, loaded, _ = source.from_pretrained(tmp_path, head=head)
        flat = tree.flatten(params)
        kept = {path: leaf for path, leaf in tree.flatten(loaded).items() if not path.startswith("heads/")}
        equal({path: flat[path] for path in kept}, kept)


@pytest.mark.parametrize(("name", "millions"), [("transformer-base", 65), ("transformer-big", 213)])
def test_the_transformer_has_as_many_parameters_as_in_the_paper(name, millions):
    config = transformer.SIZES[name]
    assert families.publish(config)[0] == "marian"
    count = sum(leaf.size for leaf in jax.tree.leaves(sharding.abstract_params(Model(config))))
    assert abs(count / 1e6 - millions) < 2.5
