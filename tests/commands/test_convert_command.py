"""`jaxformer convert` and `jaxformer verify`, as they are typed."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxformer import sharding, source, testing
from jaxformer.cli import main
from jaxformer.nn.model import Model


@pytest.fixture
def folder(tmp_path):
    model = Model(replace(testing.tiny_models()["rotary"], vocab=320))
    params = testing.randomized(sharding.abstract_params(model), jax.random.key(0))
    source.save_pretrained(tmp_path / "model", model, params, testing.tiny_tokenizer())
    return tmp_path / "model"


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_convert_changes_the_dtype_and_nothing_else(folder, tmp_path, capsys):
    assert run("convert", folder, tmp_path / "half", "--dtype", "bfloat16") in (0, None)
    assert "parameters, with the tokenizer" in capsys.readouterr().out
    _, before, tokenizer = source.from_pretrained(folder)
    _, after, again = source.from_pretrained(tmp_path / "half")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype("bfloat16"), b), before, after)
    assert again.fingerprint() == tokenizer.fingerprint()


def test_convert_puts_another_head_on(folder, tmp_path, caplog):
    assert run("convert", folder, tmp_path / "classes", "--head", "classify:7") in (0, None)
    model, params, _ = source.from_pretrained(tmp_path / "classes")
    assert params["heads"]["classify"]["output"]["kernel"].shape == (16, 7)
    assert model.config.head is None
    assert "drawn anew: heads/classify/output/kernel" in caplog.text
    assert "dropped: lm_head.weight" in caplog.text


def test_verify_says_what_it_looked_at_and_its_exit_code_what_it_found(folder, capsys):
    assert run("verify", folder, "--skip-reference") in (0, None)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["passed"] * 3
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert run("verify", folder) == 1
    assert capsys.readouterr().out.startswith("FAILED")
