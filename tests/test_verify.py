"""What `verify` looks at, and that it finds what is wrong."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxformer import sharding, source, testing
from jaxformer.nn import norm
from jaxformer.nn.model import Model
from jaxformer.verify import verify


@pytest.fixture
def folder(tmp_path):
    model = Model(testing.tiny_models()["learned"])
    params = testing.randomized(sharding.abstract_params(model), jax.random.key(0))
    source.save_pretrained(tmp_path / "model", model, params)
    return tmp_path / "model"


def results(folder, **options):
    return {check.name: check for check in verify(folder, **options)}


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
    (check,) = verify(folder)
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
