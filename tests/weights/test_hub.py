"""Files in the published layout."""

import importlib.util
import json
import os
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxformer.weights import hub

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)
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
    with pytest.raises(FileNotFoundError, match=r"no tensors: none of model.safetensors, model.saf.* is there"):
        hub.read(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"])
def test_an_empty_file_and_a_pointer_to_one_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{name}: an empty file"):
        hub.open_tensors(tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    with pytest.raises(ValueError, match=f"{name}: .*git lfs pull"):
        hub.open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"])
def test_a_file_that_the_system_refuses_is_named(tmp_path, name, monkeypatch):
    (tmp_path / name).write_bytes(b"x")

    def refuse(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=name):
        hub.open_tensors(tmp_path)


def test_a_folder_in_place_of_a_file_is_no_file(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(FileNotFoundError, match="no tensors"):
        hub.open_tensors(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"config.json"):
        hub.read(tmp_path)


# Which files are read.


def test_safetensors_come_before_pickles_and_these_before_flax(tmp_path):
    names = ["flax_model.msgpack", "pytorch_model.bin", "model.safetensors"]
    writers = [fuzz.write_flax, fuzz.write_pickled, fuzz.write_safetensors]
    for size, (name, write) in enumerate(zip(names, writers, strict=True), start=1):
        write(tmp_path / name, {"norm.weight": np.ones(size, np.float32)})
        assert hub.open_tensors(tmp_path)["norm.weight"].shape == (size,)


def test_every_way_of_writing_a_model_reads_the_same(tmp_path):
    for folder in fuzz.write_folders(tmp_path):
        found = hub.read(folder).tensors
        assert {name: (tensor.shape, str(tensor.dtype)) for name, tensor in found.items()} == {
            name: (value.shape, "float32") for name, value in fuzz.tensors().items()
        }, folder
        for name, value in fuzz.tensors().items():
            np.testing.assert_array_equal(found[name][:], value)


def test_safetensors_that_flax_wrote_are_turned(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"h.0.mlp.kernel": kernel}, tmp_path / "model.safetensors", metadata={"format": "flax"})
    (tensor,) = hub.open_tensors(tmp_path).items()
    assert tensor[0] == "h.0.mlp.weight"
    np.testing.assert_array_equal(tensor[1][:], kernel.T)
    save_file({"a.scale": kernel, "a.embedding": kernel}, tmp_path / "model.safetensors", metadata={"format": "flax"})
    with pytest.raises(ValueError, match=r"model.safetensors: a.\w+: another tensor is called a.weight too"):
        hub.open_tensors(tmp_path)


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


def test_a_tensor_in_two_files_is_named(tmp_path):
    hub.write(tmp_path, {}, {}, TENSORS, max_shard_size=1)
    fuzz.write_safetensors(tmp_path / "model-00002-of-00002.safetensors", TENSORS)
    with pytest.raises(ValueError, match=r"model-00002-of-00002.safetensors: .* in another file too: a$"):
        hub.read(tmp_path)


@pytest.mark.parametrize("index", ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"])
@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd", "a/b.bin", "..", ".", "..\\x", "sub/../x"])
def test_an_index_that_leaves_its_folder_is_refused(tmp_path, index, place):
    hub.write_json(tmp_path / f"{index}.index.json", {"weight_map": {"a": place}})
    with pytest.raises(ValueError, match=r"index.json: these are not names of files in its folder: "):
        hub.open_tensors(tmp_path)


@pytest.mark.parametrize("places", [None, [], {}, "x", {"a": 3}, {"a": None}, {"a": ["b"]}], ids=str)
def test_an_index_without_a_map_is_named(tmp_path, places):
    hub.write_json(tmp_path / hub.INDEX, {"weight_map": places})
    with pytest.raises(ValueError, match=r"index.json: expected a weight_map"):
        hub.open_tensors(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "", "3", "null", "[" * 100_000, "\x00"], ids=lambda text: text[:3])
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


@pytest.mark.parametrize(
    ("there", "left"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin", "1_Pooling/config.json"], ["pytorch_model.bin"]),
        (["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"], []),
        (["config.json", "flax_model.msgpack", "pytorch_model.bin", "spiece.model"], ["flax_model.msgpack"]),
        (["config.json", "flax_model.msgpack", "onnx/model.onnx", "tf_model.h5"], ["onnx/model.onnx", "tf_model.h5"]),
        (["README.md", "config.json"], ["README.md"]),
    ],
    ids=str,
)
def test_of_a_hub_id_no_more_is_fetched_than_is_read(tmp_path, monkeypatch, there, left):
    fetched = set()

    def fetch(hub_id, *, revision, allow_patterns):
        assert (hub_id, revision) == ("owner/name", "v1")
        new = {name for name in there if any(fnmatchcase(name, pattern) for pattern in allow_patterns)}
        for name in new:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        fetched.update(new)
        return str(tmp_path)

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fetch)
    assert hub.resolve("owner/name", "v1") == tmp_path
    assert sorted(set(there) - fetched) == left


def test_a_cached_hub_id_is_read_without_network(tmp_path, monkeypatch):
    cache = tmp_path / "models--owner--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    hub.write_json(snapshot / "config.json", {})
    fuzz.write_pickled(snapshot / "pytorch_model.bin", TENSORS)
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub.resolve("owner/name") == snapshot
    assert hub.read(hub.resolve("owner/name")).tensors.keys() == TENSORS.keys()


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


def test_a_folder_of_sentence_vectors_is_a_published_model(tmp_path):
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "2_Normalize").mkdir()
    for name in ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "spiece.model"):
        (folder / name).write_text("{}")
    with hub.replacing(folder) as part:
        hub.write(part, {}, {}, TENSORS)
    assert listing(folder) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["1_Pooling/notes.txt", "data/config.json", "config.json.bak"])
def test_a_stranger_in_a_folder_of_the_layout_is_named(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    with pytest.raises(FileExistsError, match=name), hub.replacing(tmp_path):
        pass
    assert (tmp_path / name).exists()


def test_what_is_no_part_of_a_model_is_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"thesis.tex"), hub.replacing(tmp_path):
        pass
    with pytest.raises(FileExistsError, match=r"thesis.tex"), hub.replacing(tmp_path / "thesis.tex"):
        pass
    assert listing(tmp_path) == ["thesis.tex"]
    assert not [name for name in os.listdir(tmp_path.parent) if name.startswith(f".{tmp_path.name}")]
