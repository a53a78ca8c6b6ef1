"""Damaged checkpoints, with the tools of benchmarks/fuzz.py: a clear error, or other numbers."""

import importlib.util
import shutil
from math import prod
from pathlib import Path

import numpy as np
import pytest

import jaxformer
from jaxformer.weights import hub

FILE = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
SPEC = importlib.util.spec_from_file_location("fuzz", FILE)
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


def read(folder):
    """Everything that a folder has; a tensor that claims to be huge is for the architecture to refuse."""
    return {name: t[...] for name, t in hub.read(folder).tensors.items() if prod(t.shape) < 2**20}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return fuzz.write_folders(tmp_path_factory.mktemp("fuzz"))


def test_undamaged_folders_hold_the_same_tensors(folders):
    expected = fuzz.tensors()
    for folder in folders:
        found = read(folder)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{folder.name}: {name}")


def test_damaged_files_load_or_are_refused_by_name(folders):
    outcomes = {}
    for number in range(300):
        with fuzz.mutated(folders, 0, number) as (folder, what):
            found, error = fuzz.outcome(read, folder)
            outcomes.setdefault(found, []).append((number, what, error))
            if found == "refused":
                assert str(folder) in error, (number, what)
    assert outcomes.get("escaped", []) == []
    assert min(len(outcomes["loaded"]), len(outcomes["refused"])) > 50


def test_what_escapes_is_seen(folders):
    def hang(folder):
        raise fuzz.Hang

    assert fuzz.outcome(lambda folder: 1 / 0, folders[0])[0] == "escaped"
    assert fuzz.outcome(hang, folders[0])[0] == "escaped"
    assert fuzz.outcome(read, folders[0] / "nowhere")[0] == "refused"


def test_tensors_that_do_not_fit_are_refused_by_the_name_of_their_folder(folders, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(folders[0], folder)
    values = fuzz.tensors()
    values["transformer.ln_g.bias"] = values.pop("transformer.ln_f.bias")
    fuzz.write_safetensors(folder / "model.safetensors", values)
    with pytest.raises(ValueError, match=r"mine: these tensors do not fit(?s:.*)ln_g\.bias: unknown"):
        jaxformer.from_pretrained(folder)
