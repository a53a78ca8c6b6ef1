"""What files of encoders hold beside their parameters, and under which names; without the reference."""

import logging
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxformer import families, sharding, source, testing
from jaxformer.families import heads
from jaxformer.nn.model import Model
from jaxformer.weights import hub

ROWS = runpy.run_path(str(Path(__file__).with_name("rows_encoders.py")))["ROWS"]
COMMON = {
    **{
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
    },
    **{"initializer_range": 0.02, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0},
    **{"position_embedding_type": "absolute", "use_cache": True, "gradient_checkpointing": False},
}
BASE = COMMON | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
PUBLISHED = {
    "bert-base-multilingual-cased": {
        **BASE,
        **{
            "model_type": "bert",
            "architectures": ["BertForMaskedLM"],
            "vocab_size": 119547,
            "directionality": "bidi",
        },
        **{"pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3},
        **{"pooler_size_per_head": 128, "pooler_type": "first_token_transform", "classifier_dropout": None},
    },
    "xlm-roberta-base": {
        **BASE,
        **{"model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"], "vocab_size": 250002},
        **{"layer_norm_eps": 1e-5, "max_position_embeddings": 514, "type_vocab_size": 1, "output_past": True},
        **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    },
    "distilbert-base-uncased": {
        **{"model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"], "vocab_size": 30522, "dim": 768},
        **{"activation": "gelu", "attention_dropout": 0.1, "dropout": 0.1, "hidden_dim": 3072, "n_heads": 12},
        **{"n_layers": 6, "max_position_embeddings": 512, "initializer_range": 0.02, "pad_token_id": 0},
        **{"qa_dropout": 0.1, "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "tie_weights_": True},
    },
    "albert-base": {
        **BASE,
        **{
            "model_type": "albert",
            "architectures": ["AlbertForMaskedLM"],
            "vocab_size": 30000,
            "embedding_size": 128,
        },
        **{"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "hidden_act": "gelu_new", "gap_size": 0},
        **{"classifier_dropout_prob": 0.1, "down_scale_factor": 1, "inner_group_num": 1, "net_structure_type": 0},
        **{"num_hidden_groups": 1, "num_memory_blocks": 0, "bos_token_id": 2, "eos_token_id": 3},
    },
    "electra-small-discriminator": {
        **COMMON,
        **{"model_type": "electra", "architectures": ["ElectraForPreTraining"], "vocab_size": 30522},
        **{"embedding_size": 128, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4},
        **{"num_hidden_layers": 12, "summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
        **{"summary_last_dropout": 0.1},
    },
}
ALONE = ["bert embed", "roberta embed", "albert embed"]


def written(folder, name):
    """(the folder of a row's model, its parameters)."""
    hf = ROWS[name]
    model = Model(families.family(hf["model_type"]).config(hf))
    params = testing.randomized(sharding.abstract_params(model), jax.random.key(0))
    source.save_pretrained(folder, model, params)
    hub.write_json(folder / "config.json", hf)
    return params


def rewrite(folder, change):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("size", PUBLISHED)
def test_what_early_versions_wrote_is_read(size):
    family = families.family(PUBLISHED[size]["model_type"])
    assert family.config(PUBLISHED[size]) == family.SIZES[size]


@pytest.mark.parametrize("name", ALONE)
def test_an_encoder_alone_has_a_pooler_where_its_file_holds_one(name, tmp_path):
    params = written(tmp_path / "with", name)
    assert source.from_pretrained(tmp_path / "with")[0].config.pooler == "tanh"
    written(tmp_path / "without", name)
    rewrite(tmp_path / "without", lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    model, found, _ = source.from_pretrained(tmp_path / "without")
    assert model.config.pooler is None
    equal(found, {path: leaf for path, leaf in params.items() if path != "heads"})
    source.save_pretrained(tmp_path / "again", model, found)
    again, found_again, _ = source.from_pretrained(tmp_path / "again")
    assert again.config == model.config
    equal(found, found_again)
    assert families.publish(model.config)[1]["add_pooling_layer"] is False


@pytest.mark.parametrize("name", ALONE)
def test_the_names_of_an_encoder_alone_may_have_the_prefix(name, tmp_path):
    params = written(tmp_path / "model", name)
    prefix = families.family(ROWS[name]["model_type"]).PREFIX
    assert not any(tensor.startswith(prefix) for tensor in load_file(tmp_path / "model" / "model.safetensors"))
    rewrite(tmp_path / "model", lambda tensors: {prefix + key: tensor for key, tensor in tensors.items()})
    equal(source.from_pretrained(tmp_path / "model")[1], params)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "albert", "electra"])
def test_buffers_a_tied_matrix_and_other_heads_of_pretraining_are_passed_over(name, tmp_path):
    params = written(tmp_path / "model", name)
    family = families.family(ROWS[name]["model_type"])
    rows = family.names(family.config(ROWS[name]))
    others = {pattern.replace("*", "other"): np.ones((1, 2), np.float32) for pattern in family.IGNORED}
    assert f"{family.PREFIX}embeddings.position_ids" in others

    def change(tensors):
        tied = {n: tensors[row.published] for row in rows for n in row.also if not n.endswith(("gamma", "beta"))}
        assert len(tied) >= 1
        return tensors | others | tied

    rewrite(tmp_path / "model", change)
    equal(source.from_pretrained(tmp_path / "model")[1], params)


def test_norms_under_their_first_names_are_read(tmp_path):
    params = written(tmp_path / "model", "bert")
    first = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def change(tensors):
        return {key.replace(end, first[end]) if (end := _end(key)) else key: v for key, v in tensors.items()}

    def _end(key):
        return next((end for end in first if key.endswith(end)), "")

    rewrite(tmp_path / "model", change)
    equal(source.from_pretrained(tmp_path / "model")[1], params)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "albert", "electra"])
def test_another_head_stands_on_the_same_encoder(name, tmp_path, caplog):
    params = written(tmp_path / "model", name)
    own = families.family(ROWS[name]["model_type"]).ARCHITECTURES
    for head in own:
        asked = f"{head}:5" if head in ("classify", "tag") else head
        with caplog.at_level(logging.ERROR):
            model, found, _ = source.from_pretrained(tmp_path / "model", head=asked)
        assert model.card.config["architectures"] == [own[head]]
        equal({path: found[path] for path in ("embed", "encoder")}, {p: params[p] for p in ("embed", "encoder")})
        (outputs,) = [extra.outputs for extra in model.config.extra] or [None]
        assert outputs == (5 if asked.endswith(":5") else outputs)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "camembert", "albert"])
def test_an_untied_masked_lm_head_is_refused_by_name_and_any_other_head_is_read(name):
    untied, family = ROWS[name] | {"tie_word_embeddings": False}, families.family(ROWS[name]["model_type"])
    for read in (family.config, families.head_tensors):
        with pytest.raises(ValueError, match=f"^{name}: tie_word_embeddings=False is not supported$"):
            read(untied)
    for head in family.ARCHITECTURES.keys() - {"lm", "pretraining"}:
        asked = heads.with_head(untied, family.ARCHITECTURES, f"{head}:3" if head in heads.COUNTED else head)
        assert family.config(asked).head is None
        assert families.head_tensors(asked)


def test_a_bias_of_the_head_that_differs_from_its_twin_is_refused(tmp_path):
    written(tmp_path / "model", "bert")
    twin = {"cls.predictions.decoder.bias": np.ones(61, np.float32)}
    rewrite(tmp_path / "model", lambda tensors: tensors | twin)
    with pytest.raises(ValueError, match=r"cls.predictions.decoder.bias: differs from cls.predictions.bias"):
        source.from_pretrained(tmp_path / "model")
