"""Tensors in mapped files, and the safetensors format."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxformer.weights.mapped import SAFETENSORS, map_file, open_safetensors

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(folder, header, values=b"\0" * 8, size=None):
    """A safetensors file with this header, which may be text."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<q", len(text) if size is None else size) + text + values)
    return path


def test_what_the_library_writes_is_read(tmp_path):
    rng = np.random.default_rng(0)
    names = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.uint8, np.bool_]
    tensors = {np.dtype(name).name: rng.normal(size=(3, 4)).astype(name) for name in names}
    tensors |= {"scalar": np.full((), 3, np.float32), "empty": np.empty((0, 5), np.float32)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found, metadata = open_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"}
    assert found.keys() == tensors.keys()
    for name, value in load_file(tmp_path / "x.safetensors").items():
        assert (found[name].shape, found[name].dtype) == (value.shape, str(value.dtype))
        np.testing.assert_array_equal(found[name][...], value)


def test_an_index_of_slices_reads_that_part(tmp_path):
    value = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    save_file({"x": value}, tmp_path / "x.safetensors")
    tensor = open_safetensors(tmp_path / "x.safetensors")[0]["x"]
    for index in (np.s_[1:], np.s_[:, 1:3], np.s_[::2, :, 1:4:2], np.s_[3:], np.s_[:, :, -1:]):
        np.testing.assert_array_equal(tensor[index], value[index])
        np.testing.assert_array_equal(tensor.T[index], value.T[index])
    assert tensor.T.shape == (5, 4, 3)


def test_what_is_read_is_a_copy(tmp_path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    tensor = open_safetensors(tmp_path / "x.safetensors")[0]["x"]
    tensor[:][:] = 1
    assert not tensor[:].any()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted by Linux")
def test_what_was_read_does_not_stay_in_memory(tmp_path):
    def mapped():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))

    size = 2**25
    save_file({"x": np.ones((size // 2**10, 2**10), np.uint8)}, tmp_path / "x.safetensors")
    tensor = open_safetensors(tmp_path / "x.safetensors")[0]["x"]
    before = mapped()
    total = sum(int(tensor[start : start + 2**10].sum()) for start in range(0, tensor.shape[0], 2**10))
    assert total == size
    assert mapped() - before < size // 4


# What is refused.


@pytest.mark.parametrize("size", [-1, 2**40, 2**62, 100_000_001, 1000], ids=str)
def test_a_header_longer_than_the_file_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=r"model.safetensors: .* a header of \d+ bytes in a file of \d+"):
        open_safetensors(file_of(tmp_path, {"a": F32}, size=size))


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("[]", "its header is no JSON object"),
        ("{", "its header: "),
        ("[" * 100_000, "its header: "),
        ({"__metadata__": 3, "a": F32}, "no JSON object"),
        (f'{{"a": {json.dumps(F32)}, "a": {json.dumps(F32)}}}', "a stands there twice"),
        ({"a": 3}, "a: its entry in the header is 3"),
        ({"a": {}}, "a: its entry"),
        ({"a": F32 | {"shape": 2}}, "a: its entry"),
        ({"a": F32 | {"shape": [-2]}}, "a: its entry"),
        ({"a": F32 | {"shape": [2.0]}}, "a: its entry"),
        ({"a": F32 | {"shape": [True, 2]}}, "a: its entry"),
        ({"a": F32 | {"data_offsets": [8, 0]}}, "a: its entry"),
        ({"a": F32 | {"data_offsets": [-8, 0]}}, "a: its entry"),
        ({"a": F32 | {"data_offsets": [0, 8, 9]}}, "a: its entry"),
        ({"a": F32 | {"dtype": "F128"}}, "a is stored as F128, which is not read"),
        ({"a": F32 | {"dtype": "float32"}, "b": F32 | {"dtype": "F4"}}, "b is stored as F4"),
        ({"a": F32 | {"shape": [3]}}, r"a of shape \[3\], dtype float32 does not fit in its 8 bytes"),
        ({"a": F32 | {"shape": [1]}}, r"a of shape \[1\], dtype float32 does not fill its 8 bytes"),
        ({"a": F32 | {"shape": [2**62, 2**62]}}, "a of shape .* does not fit"),
        ({"a": F32 | {"shape": [0, 2**62]}}, "a of shape .* does not fi"),
        ({"a": F32 | {"shape": [1] * 1000 + [2]}}, "a of shape .* does not fit"),
        ({"a": F32 | {"data_offsets": [8, 16]}}, "a of shape .* beyond the file's"),
        ({"a": F32, "b": F32}, "overlap or leave gaps"),
        ({"a": F32 | {"shape": [1], "data_offsets": [4, 8]}}, "overlap or leave gaps"),
        ({"a": F32 | {"shape": [1], "data_offsets": [0, 4]}}, r"\d+ bytes expected, \d+ found"),
        ({}, r"\d+ bytes expected, \d+ found"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_that_lies_is_refused_by_name(tmp_path, header, problem):
    with pytest.raises(ValueError, match=rf"model.safetensors: (not a whole safetensors file: .*)?{problem}"):
        open_safetensors(file_of(tmp_path, header))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = file_of(tmp_path, {"a": F32}).read_bytes()
    path = tmp_path / "model.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model.safetensors"):
            open_safetensors(path)


def test_every_dtype_of_the_format_has_a_name_of_ours(tmp_path):
    for name, dtype in SAFETENSORS.items():
        size = np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize
        path = file_of(tmp_path, {"a": {"dtype": name, "shape": [1], "data_offsets": [0, size]}}, b"\0" * size)
        assert open_safetensors(path)[0]["a"].dtype == dtype


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2,), (2**62,), 0),
        ((2**31, 2), (2**33, 1), 0),
        ((2,), (1,), 1),
        ((2,), (1,), -1),
        ((2,), (-1,), 1),
        ((2,), (1, 1), 0),
        ((2**62,), (0,), 0),
        (("2",), (1,), 0),
    ],
    ids=str,
)
def test_a_view_that_leaves_its_bytes_is_refused(tmp_path, shape, strides, offset):
    (tmp_path / "x").write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match=r"x: name of shape .* does not fit in its 8 bytes"):
        map_file(tmp_path / "x").tensor("name", "float32", shape, (8, 16), offset, strides)
