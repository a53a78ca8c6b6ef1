"""Flax's files of parameters, and the names under which the reference publishes what they hold."""

import struct

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from jaxformer.weights import msgpacked
from jaxformer.weights.msgpacked import open_msgpack

VALUE = np.arange(6, dtype=np.float32)


def text(value):
    return bytes([0xA0 + len(value)]) + value.encode()


def array(shape=(6,), dtype="float32", values=None, code=1):
    """An array by hand."""
    data = VALUE.tobytes() if values is None else values
    inner = bytes([0x93, 0x90 + len(shape)]) + b"".join(b"\xcf" + struct.pack(">Q", size) for size in shape)
    inner += text(dtype) + b"\xc6" + struct.pack(">I", len(data)) + data
    return b"\xc9" + struct.pack(">IB", len(inner), code) + inner


def tree(**items):
    return bytes([0x80 + len(items)]) + b"".join(text(name) + value for name, value in items.items())


def file_of(folder, data):
    path = folder / "flax_model.msgpack"
    path.write_bytes(data)
    return path


def test_a_file_made_by_hand_is_read(tmp_path):
    data = tree(h=tree(mlp=tree(kernel=array((2, 3)), bias=array())), scalar=array((), values=VALUE[:1].tobytes()))
    found = open_msgpack(file_of(tmp_path, data))
    assert {name: tensor.shape for name, tensor in found.items()} == {
        "h/mlp/kernel": (2, 3),
        "h/mlp/bias": (6,),
        "scalar": (),
    }
    np.testing.assert_array_equal(found["h/mlp/kernel"][1:, :2], VALUE.reshape(2, 3)[1:, :2])


def test_what_flax_writes_is_read(tmp_path):
    rng = np.random.default_rng(0)
    dtypes = ("float32", "bfloat16", "float16", "float64", "int32", "bool")
    values = {
        "of": {dtype: rng.normal(size=(3, 5)).astype(jnp.dtype(dtype)) for dtype in dtypes},
        "empty": np.empty((0, 2), np.float32),
        "scalar": np.float32(3),
        "long" * 20: np.zeros(70_000, np.uint8),
        **{f"tensor{i}": np.ones(i, np.float32) for i in range(20)},
    }
    found = open_msgpack(file_of(tmp_path, serialization.msgpack_serialize(values)))
    flat = {f"of/{name}": value for name, value in values.pop("of").items()} | values
    assert found.keys() == flat.keys()
    for name, value in flat.items():
        assert (found[name].shape, found[name].dtype) == (np.shape(value), str(value.dtype))
        np.testing.assert_array_equal(found[name][...], value)


@pytest.mark.parametrize("size", [4, 20, 24, 28, 100, 124, 1000])
@pytest.mark.parametrize("shape", [(31,), (11, 3), (4, 3, 2), (1, 50), (30, 1)], ids=str)
def test_an_array_in_chunks_is_read_in_slices(tmp_path, monkeypatch, size, shape):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", size)
    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = open_msgpack(file_of(tmp_path, serialization.msgpack_serialize({"a": {"kernel": value}})))
    tensor = found["a/kernel"]
    assert (tensor.shape, tensor.dtype, tensor.T.shape) == (shape, "float32", shape[::-1])
    indices = [np.s_[:], np.s_[1:3], np.s_[3:3], np.s_[::2], np.s_[-2:]]
    for index in indices + [(first, *[np.s_[1:]] * (len(shape) - 1)) for first in indices]:
        np.testing.assert_array_equal(tensor[index], value[index])
        np.testing.assert_array_equal(tensor.T[index], value.T[index])


# Names: facts of the models that the reference had in Flax, taken from what these wrote.


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("transformer/h/0/attn/c_attn/kernel", "transformer.h.0.attn.c_attn.weight"),
        ("transformer/h/11/ln_1/scale", "transformer.h.11.ln_1.weight"),
        ("transformer/wte/embedding", "transformer.wte.weight"),
        ("bert/embeddings/LayerNorm/bias", "bert.embeddings.LayerNorm.bias"),
        (
            "block/0/SelfAttention/relative_attention_bias/embedding",
            "block.0.SelfAttention.relative_attention_bias.weight",
        ),
        ("encoder/block/0/layer/0/layer_norm/weight", "encoder.block.0.layer.0.layer_norm.weight"),
        ("model/layers/1/input_layernorm/weight", "model.layers.1.input_layernorm.weight"),
        ("final_logits_bias", "final_logits_bias"),
        ("cls/predictions/bias", "cls.predictions.bias"),
    ],
)
def test_paths_have_published_names(path, name):
    assert msgpacked.published_name(path) == name


def test_kernels_are_turned_and_nothing_else_is():
    value = np.arange(6).reshape(2, 3)
    paths = ("a/kernel", "a/bias", "b/embedding", "c/scale", "d/weight", "kernel/bias", "final_logits_bias")
    found = msgpacked.publish(dict.fromkeys(paths, value))
    assert {name: tensor.shape for name, tensor in found.items()} == {
        "a.weight": (3, 2),
        **dict.fromkeys(("a.bias", "b.weight", "c.weight", "d.weight", "kernel.bias", "final_logits_bias"), (2, 3)),
    }


def test_two_paths_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"a/weight: another tensor is called a.weight too"):
        msgpacked.publish({"a/kernel": VALUE, "a/weight": VALUE})


# What is refused.


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (array(), "expected a tree of arrays, found a Extension"),
        (b"\x03", "expected a tree of arrays, found a int"),
        (tree(a=array()) + b"\x00", "there is more after the tree"),
        (tree(a=array())[:-1], "bytes are wanted"),
        (b"\x82" + tree(a=array())[1:] + tree(a=array())[1:], "the name 'a' is none, or stands there twice"),
        (b"\x81\x01" + array(), "the name 1 is none"),
        (tree(**{"a/b": array()}, a=tree(b=array())), "a/b stands there twice"),
        (tree(a=b"\x03"), "a: expected an array, found 3"),
        (tree(a=text("x")), "a: expected an array, found 'x'"),
        (tree(a=b"\x91\x01"), r"a: expected an array, found \[1\]"),
        (tree(a=b"\xdd\xff\xff\xff\xff"), "a list of 4294967295 values"),
        (b"\xdf\xff\xff\xff\xff", "bytes are wanted, 0 are left"),
        (tree(a=b"\xc6\xff\xff\xff\xff"), "bytes are wanted, 0 are left"),
        (b"\x81\xa1a" * 100 + b"\x80", "more than 64 levels"),
        (tree(a=b"\x91" * 100 + b"\x00"), "more than 64 levels"),
        (tree(a=b"\xc0"), "a value of the kind 0xc0"),
        (tree(a=b"\xcb" + b"\0" * 8), "a value of the kind 0xcb"),
        (b"\x81\xa1\xff" + array(), "not UTF-8"),
        (tree(a=array(code=2)), "a: expected an array, found Extension"),
        (tree(a=array(code=42)), "a: expected an array, found Extension"),
        (tree(a=b"\xc7\x02\x01\x90\x90"), "a: not the description of an array"),
        (tree(a=b"\xc7\x01\x01\x90"), "a: not the description of an array"),
        (tree(a=array((7,))), r"a of shape \[7\], dtype float32 does not fit in its 24 bytes"),
        (tree(a=array((5,))), r"a of shape \[5\], dtype float32 does not fill its bytes"),
        (tree(a=array((2**63, 2))), "a: not the description|a of shape"),
        (tree(a=array((2**40, 2**40))), "a of shape .* does not fit"),
        (tree(a=array(dtype="object")), "a is stored as object, which is not read here"),
        (tree(a=array(dtype=">f4")), "a is stored as >f4"),
    ],
    ids=range(28),
)
def test_what_is_no_tree_of_arrays_is_refused_by_name(tmp_path, data, problem):
    whole = "not a whole file of Flax parameters: "
    with pytest.raises(ValueError, match=rf"flax_model.msgpack: ({whole})?.*({problem})"):
        open_msgpack(file_of(tmp_path, data))


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        (tree(**{"0": b"\x0c"}), tree(**{"0": array()})),
        (tree(**{"0": b"\x06"}), tree(**{"1": array()})),
        (tree(**{"0": b"\x06"}), array()),
        (b"\x91\x06", tree(**{"0": array()})),
        (tree(**{"0": b"\x06"}), tree()),
        (tree(), tree(**{"0": array()})),
        (tree(**{"0": b"\x06", "1": b"\x00"}), tree(**{"0": array()})),
        (tree(**{"0": b"\x0c"}), tree(**{"0": array(), "1": array(dtype="int32")})),
        (tree(**{"0": b"\x0c"}), tree(**{"0": array(), "1": array((2, 3))})),
    ],
    ids=range(9),
)
def test_chunks_that_do_not_make_an_array_are_refused_by_name(tmp_path, shape, chunks):
    data = tree(a=b"\x83" + b"\xb9__msgpack_chunked_array__\xc3" + text("shape") + shape + text("chunks") + chunks)
    with pytest.raises(ValueError, match=r"flax_model.msgpack: a: its chunks (do not make up|are not alike)"):
        open_msgpack(file_of(tmp_path, data))
