"""The engine that runs rows in both directions."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer import sharding
from jaxformer.names import Row, linear, table
from jaxformer.sharding import MeshConfig
from jaxformer.weights import convert

L, D, H, C, V = 3, 4, 8, 2, 5
ROWS = (
    *table("embed", "wte", also=("head.weight",)),
    *linear("blocks/query", "h.{layer}.qk", bias=True, layout="in_out", part=(0, 2)),
    *linear("blocks/key", "h.{layer}.qk", bias=True, layout="in_out", part=(1, 2)),
    *linear("blocks/out", "h.{layer}.o", inputs=2),
)
SHAPES = {
    "embed": {"embedding": (V, D)},
    "blocks": {
        "query": {"kernel": (L, D, H, C), "bias": (L, H, C)},
        "key": {"kernel": (L, D, H, C), "bias": (L, H, C)},
        "out": {"kernel": (L, H, C, D)},
    },
}


def structs(shapes=SHAPES, home=None):
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=home),
        shapes,
        is_leaf=lambda x: type(x) is tuple,
    )


def published(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (V, D)}
    for layer in range(L):
        shapes |= {f"h.{layer}.qk.weight": (D, 2 * H * C), f"h.{layer}.qk.bias": (2 * H * C,)}
        shapes |= {f"h.{layer}.o.weight": (D, H * C)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


class Watched:
    """A tensor that notes how many of its numbers were read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0

    def __getitem__(self, index):
        part = self.array[index]
        self.read += part.size
        return part


def complaint(tensors, rows=ROWS, shapes=SHAPES, **options):
    watched = {name: Watched(tensor) for name, tensor in tensors.items()}
    with pytest.raises(ValueError) as error:
        convert.load(rows, structs(shapes), watched, **options)
    if "head.weight" not in tensors:
        assert sum(tensor.read for tensor in watched.values()) == 0
    return str(error.value)


def test_each_layout_is_what_it_says():
    tensors = published()
    params = convert.load(ROWS, structs(), tensors)
    both = tensors["h.1.qk.weight"].reshape(D, 2, H, C)
    np.testing.assert_array_equal(params["blocks"]["query"]["kernel"][1], both[:, 0])
    np.testing.assert_array_equal(params["blocks"]["key"]["kernel"][1], both[:, 1])
    np.testing.assert_array_equal(params["blocks"]["key"]["bias"][2], tensors["h.2.qk.bias"].reshape(2, H, C)[1])
    np.testing.assert_array_equal(params["blocks"]["out"]["kernel"][0], tensors["h.0.o.weight"].T.reshape(H, C, D))
    np.testing.assert_array_equal(params["embed"]["embedding"], tensors["wte.weight"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_export_undoes_load_bit_for_bit(dtype):
    tensors = published(dtype)
    back = convert.export(ROWS, convert.load(ROWS, structs(), tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].tobytes() == tensor.tobytes()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_part_of_a_leaf_is_that_part_of_the_whole(data):
    leaf = data.draw(st.sampled_from(list(convert.plan(ROWS, structs(), published()).values())))
    cuts = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in leaf.shape]
    index = tuple(slice(*cut) for cut in cuts)
    np.testing.assert_array_equal(leaf.read(index), leaf.read((slice(None),) * len(leaf.shape))[index])


def test_a_shard_reads_its_layers_and_slices_alone():
    watched = {name: Watched(tensor) for name, tensor in published().items()}
    leaves = convert.plan(ROWS, structs(), watched)
    leaves["blocks/out/kernel"].read((slice(1, 2), slice(2, 4), slice(None), slice(0, 2)))
    leaves["blocks/key/kernel"].read((slice(0, 1), slice(None), slice(4, 8), slice(None)))
    read = {name: tensor.read for name, tensor in watched.items() if tensor.read}
    assert read == {"h.1.o.weight": 2 * C * 2, "h.0.qk.weight": D * 4 * C}


def test_shards_are_put_where_the_shapes_say():
    home = NamedSharding(sharding.make_mesh(MeshConfig(fsdp=8)), P())
    rows, tensors = table("embed", "wte"), {"wte.weight": np.arange(64, dtype=np.float32).reshape(16, 4)}
    split = NamedSharding(home.mesh, P("fsdp"))
    for where in (home, split):
        params = convert.load(rows, structs({"embed": {"embedding": (16, 4)}}, where), tensors)
        assert params["embed"]["embedding"].sharding == where
        np.testing.assert_array_equal(params["embed"]["embedding"], tensors["wte.weight"])


def test_another_dtype_is_rounded_to_the_nearest():
    tensors = published()
    params = convert.load(ROWS, structs(), tensors, dtype="bfloat16")
    expected = jnp.asarray(tensors["wte.weight"]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(params["embed"]["embedding"], expected)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_a_loaded_parameter_may_be_donated_and_its_source_stays():
    tensors = published()
    before = tensors["wte.weight"].copy()
    table = convert.load(ROWS, structs(), tensors)["embed"]["embedding"]
    after = jax.jit(lambda x: x * 2, donate_argnums=0)(table)
    np.testing.assert_array_equal(after, before * 2)
    np.testing.assert_array_equal(tensors["wte.weight"], before)


def test_everything_wrong_is_listed_at_once_before_anything_is_read():
    tensors = published()
    del tensors["h.1.o.weight"]
    tensors["h.9.o.weight"] = tensors["h.0.o.weight"]
    tensors["h.0.qk.bias"] = tensors["h.0.qk.bias"][1:]
    tensors["h.2.qk.bias"] = tensors["h.2.qk.bias"].astype(np.int8)
    told = complaint(tensors)
    assert "h.1.o.weight: missing" in told
    assert "h.9.o.weight: unknown" in told
    assert "h.0.qk.bias: expected shape (32,), found (31,)" in told
    assert "h.{layer}.qk.bias: stored as int8, expected float32 or bfloat16 or float16" in told


def test_layers_of_several_dtypes_need_a_choice():
    tensors = published()
    tensors["h.1.o.weight"] = tensors["h.1.o.weight"].astype(np.float16)
    assert "h.{layer}.o.weight: stored as float16 and float32 in different layers: choose one by dtype=" in complaint(
        tensors
    )
    assert convert.load(ROWS, structs(), tensors, dtype="float32")


def test_a_tensor_held_twice_must_be_the_same():
    tensors = published()
    same = tensors | {"head.weight": tensors["wte.weight"]}
    assert convert.load(ROWS, structs(), same)
    assert "head.weight: differs from wte.weight" in complaint(tensors | {"head.weight": tensors["wte.weight"] + 1})
    only = {"head.weight": tensors.pop("wte.weight"), **tensors}
    np.testing.assert_array_equal(convert.load(ROWS, structs(), only)["embed"]["embedding"], only["head.weight"])


@pytest.mark.parametrize("dtype", ["int8", "float64", "nonsense"])
def test_a_dtype_that_parameters_cannot_have_is_refused(dtype):
    assert f"dtype {dtype!r}: parameters are stored as one of float32" in complaint(published(), dtype=dtype)


def test_a_long_list_is_cut():
    many = published() | {f"extra.{i}": np.ones(1) for i in range(30)}
    assert "and 10 more" in complaint(many)


def test_rows_that_miss_or_repeat_a_parameter_are_no_rows():
    assert "blocks/out/kernel: 0 rows" in complaint(published(), ROWS[:-1])
    assert "embed/embedding: 2 rows" in complaint(published(), (*ROWS, ROWS[0]))
    assert "x: no such parameter" in complaint(published(), (*ROWS, Row("x", "y")))
    assert "h.{layer}.qk.weight: parts [(0, 2)]" in complaint(
        published(), tuple(r for r in ROWS if "key/kernel" not in r.path)
    )
