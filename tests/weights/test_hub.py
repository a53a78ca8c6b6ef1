"""Files in the published layout."""

import json
import os

import numpy as np
import pytest
from safetensors import safe_open

from jaxformer.weights import hub

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float16)}


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path):
    hub.write(tmp_path, {"model_type": "x", "eps": 1e-05}, {"eos_token_id": [1, 2]}, TENSORS)
    found = hub.read(tmp_path)
    assert (found.config, found.generation) == ({"model_type": "x", "eps": 1e-05}, {"eos_token_id": [1, 2]})
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.tensors.items()} == {
        "a": ((2, 3), "float32"),
        "b": ((5,), "float16"),
    }
    np.testing.assert_array_equal(found.tensors["a"][1:, ::1], TENSORS["a"][1:])
    with safe_open(tmp_path / hub.WEIGHTS, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_nothing_to_say_of_generation_is_no_file(tmp_path):
    hub.write(tmp_path, {}, {}, TENSORS)
    assert listing(tmp_path) == ["config.json", "model.safetensors"]
    assert hub.read(tmp_path).generation == {}


def test_files_stay_below_the_largest_size_but_for_a_larger_tensor(tmp_path):
    tensors = {name: np.ones(size, np.float32) for name, size in zip("abcde", (10, 10, 10, 100, 10), strict=True)}
    assert hub.split(tensors, 80) == [["a", "b"], ["c"], ["d"], ["e"]]
    hub.write(tmp_path, {}, {}, tensors, max_shard_size=80)
    assert listing(tmp_path)[1:] == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)] + [hub.INDEX]
    index = json.loads((tmp_path / hub.INDEX).read_text())
    assert index["metadata"] == {"total_parameters": 140, "total_size": 560}
    assert index["weight_map"]["d"] == "model-00003-of-00004.safetensors"
    assert {name: tensor.shape for name, tensor in hub.open_tensors(tmp_path).items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("size", "expected"), [(7, 7), ("5GB", 5 * 10**9), ("1.5MB", 1_500_000), ("20 KB", 20_000)], ids=str
)
def test_sizes_are_read(size, expected):
    assert hub.parse_size(size) == expected


@pytest.mark.parametrize("size", [0, -1, "5", "5 GiB", "much"], ids=str)
def test_a_size_that_is_none_says_what_one_is(size):
    with pytest.raises(ValueError, match='such as "5GB"'):
        hub.parse_size(size)


# What cannot be opened.


def test_a_missing_config_or_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json is not there"):
        hub.read(tmp_path)
    hub.write_json(tmp_path / "config.json", {})
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        hub.read(tmp_path)


def test_a_pickle_is_not_read(tmp_path):
    hub.write_json(tmp_path / "config.json", {})
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin is a pickle, which may run code"):
        hub.read(tmp_path)


def test_a_missing_file_of_the_index_is_named(tmp_path):
    hub.write(tmp_path, {}, {}, TENSORS, max_shard_size=1)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"files are missing: model-00002-of-00002.safetensors"):
        hub.read(tmp_path)


def test_a_tensor_that_the_index_puts_elsewhere_is_named(tmp_path):
    hub.write(tmp_path, {}, {}, TENSORS, max_shard_size=1)
    index = hub.read_json(tmp_path / hub.INDEX)
    index["weight_map"]["c"] = index["weight_map"]["a"]
    hub.write_json(tmp_path / hub.INDEX, index)
    with pytest.raises(ValueError, match="not in the file that it names: c"):
        hub.read(tmp_path)


def test_a_truncated_file_is_no_whole_file(tmp_path):
    hub.write(tmp_path, {}, {}, TENSORS)
    whole = (tmp_path / hub.WEIGHTS).read_bytes()
    (tmp_path / hub.WEIGHTS).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        hub.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_object_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json: (not JSON|expected a JSON object)"):
        hub.read(tmp_path)


@pytest.mark.parametrize("source", ["no/such/folder", "/no/such", "./nowhere", "a b", __file__])
def test_what_is_neither_folder_nor_hub_id_is_said(source):
    with pytest.raises(FileNotFoundError, match="no such folder, and not a hub id"):
        hub.resolve(source)


def test_a_hub_id_without_network_or_cache_says_what_to_do():
    with pytest.raises(
        FileNotFoundError, match=r"owner/name: no such folder here.* at revision v1 .*connect to the net"
    ):
        hub.resolve("owner/name", "v1")


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(ValueError, match="revision='v1' is of a hub id"):
        hub.resolve(tmp_path, "v1")


def test_a_hub_id_is_fetched_without_what_is_not_read(tmp_path, monkeypatch):
    def fetch(hub_id, *, revision, allow_patterns):
        assert (hub_id, revision) == ("owner/name", "v1")
        assert "model-*-of-*.safetensors" in allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fetch)
    assert hub.resolve("owner/name", "v1") == tmp_path


# A folder appears whole.


def test_a_folder_appears_when_all_is_written(tmp_path):
    folder = tmp_path / "runs" / "model"
    with hub.replacing(folder) as part:
        hub.write(part, {}, {}, TENSORS)
        assert not folder.exists()
    assert listing(folder) == ["config.json", "model.safetensors"]
    assert listing(folder.parent) == ["model"]
    assert oct(folder.stat().st_mode) == oct(folder.parent.stat().st_mode)


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "model").mkdir()
    hub.write(tmp_path / "model", {"old": 1}, {}, TENSORS)

    def fail():
        with hub.replacing(tmp_path / "model") as part:
            hub.write_json(part / "config.json", {"new": 1})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert hub.read(tmp_path / "model").config == {"old": 1}
    assert listing(tmp_path) == ["model"]


def test_a_published_model_is_replaced_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    hub.write(folder, {"old": 1}, {"eos_token_id": 1}, TENSORS, max_shard_size=1)
    with hub.replacing(folder) as part:
        hub.write(part, {"new": 1}, {}, TENSORS)
    assert listing(folder) == ["config.json", "model.safetensors"]
    assert listing(tmp_path) == ["model"]


def test_what_is_no_part_of_a_model_is_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"thesis.tex"), hub.replacing(tmp_path):
        pass
    with pytest.raises(FileExistsError, match=r"thesis.tex"), hub.replacing(tmp_path / "thesis.tex"):
        pass
    assert listing(tmp_path) == ["thesis.tex"]
    assert not [name for name in os.listdir(tmp_path.parent) if name.startswith(f".{tmp_path.name}")]
