"""What `verify` looks at, and that it finds what is wrong."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxformer import families, sharding, source, testing, tree, verify
from jaxformer.config import Card
from jaxformer.nn import norm
from jaxformer.nn.model import Model

BERT = {
    **{"model_type": "bert", "vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 20},
}
GPT2 = {"model_type": "gpt2", "vocab_size": 61, "n_positions": 20, "n_embd": 16, "n_layer": 2, "n_head": 2}
BART = {
    **{"model_type": "bart", "vocab_size": 61, "max_position_embeddings": 20, "d_model": 16},
    **{f"{stack}_layers": 2 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 24 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 2 for stack in ("encoder", "decoder")},
}
ELECTRA = BERT | {"model_type": "electra", "embedding_size": 12}


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "model", Model(testing.tiny_models()["learned"]))


def written(folder, model):
    """The folder, with a model of parameters drawn at random."""
    params = testing.randomized(sharding.abstract_params(model), jax.random.key(0))
    source.save_pretrained(folder, model, params)
    return folder


def published(folder, hf, head):
    """The folder, with a model of this config.json and this head."""
    family = families.family(hf["model_type"])
    hf = families.heads.with_head(hf, family.ARCHITECTURES, head)
    return written(folder, Model(family.config(hf), card=Card(hf["model_type"], hf)))


def results(folder, **options):
    return {check.name: check for check in verify.verify(folder, **options)}


def test_a_sound_model_passes(folder):
    found = results(folder, reference=False)
    assert {name: check.passed for name, check in found.items()} == {
        "files, names and shapes": True,
        "finite values": True,
        "tokenizer": None,
    }
    assert "2 layers" not in found["finite values"].detail


def test_a_value_that_is_not_finite_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.ln_1.weight"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    check = results(folder, reference=False)["finite values"]
    assert check.passed is False
    assert check.detail == "transformer.h.1.ln_1.weight: 1 of 16 are not"


def test_a_missing_tensor_ends_it(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.ln_f.bias"]
    save_file(tensors, folder / "model.safetensors")
    (check,) = verify.verify(folder)
    assert check.passed is False
    assert "transformer.ln_f.bias: missing" in check.detail


@pytest.mark.parity
def test_each_layer_is_compared_with_the_reference(folder):
    found = results(folder)
    assert found["decoder, layer by layer"].passed
    assert found["decoder, layer by layer"].detail.startswith("2 layers")
    assert found["logits"].passed


@pytest.mark.parity
def test_the_first_layer_that_parts_is_named(folder, monkeypatch):
    jax.clear_caches()  # what is compiled would not look at the table again
    monkeypatch.setitem(norm.NORMS, "layer", lambda x, eps: norm.rms(x, eps))
    found = results(folder)
    assert found["decoder after layer 1"].passed is False
    assert found["logits"].passed is False


HEADS = [
    (BERT, "classify:3", ["the classify head"]),
    (BERT, "tag:3", ["the tag head"]),
    (BERT, "answer", ["the answer head"]),
    (BERT, "next", ["the next head"]),
    (BERT, "pretraining", ["logits", "the next head"]),
    (BERT, "embed", ["the pooled vector"]),
    (ELECTRA, "detect", ["the detect head"]),
    (GPT2, "classify:3", ["the classify head"]),
    (BART, "classify:3", ["the classify head"]),
]


@pytest.mark.parity
@pytest.mark.parametrize(("hf", "head", "checks"), HEADS, ids=[f"{hf['model_type']} {head}" for hf, head, _ in HEADS])
def test_what_every_head_gives_is_compared(hf, head, checks, tmp_path):
    folder = published(tmp_path / "model", hf, head)
    found = results(folder)
    assert all(check.passed is not False for check in found.values()), found
    assert [name for name in found if name in ("logits", "the pooled vector") or name.endswith(" head")] == checks


@pytest.mark.parity
@pytest.mark.parametrize(
    ("head", "changed", "check"),
    [
        ("classify:3", "heads/classify/output/kernel", "the classify head"),
        ("classify:3", "heads/pooler/bias", "the classify head"),
        ("answer", "heads/answer/output/bias", "the answer head"),
        ("pretraining", "heads/next/output/kernel", "the next head"),
        ("pretraining", "heads/lm/bias", "logits"),
        ("embed", "heads/pooler/kernel", "the pooled vector"),
    ],
)
def test_a_head_that_parts_is_named(head, changed, check, tmp_path, monkeypatch):
    folder = published(tmp_path / "model", BERT, head)

    def changed_here(*given, **options):
        model, params, tokenizer = source.from_pretrained(*given, **options)
        flat = tree.flatten(params)
        flat[changed] = flat[changed].at[0].add(0.1)
        return model, tree.unflatten(flat), tokenizer

    monkeypatch.setattr(verify, "from_pretrained", changed_here)
    found = results(folder)
    assert [name for name, each in found.items() if each.passed is False] == [check]
    assert "largest difference" in found[check].detail
