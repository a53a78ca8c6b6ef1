"""The engine that runs rows in both directions."""

import re
import tracemalloc
from math import prod

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
from jaxformer.weights import convert, layout

L, D, H, C, V = 3, 4, 8, 2, 5
ROWS = (
    *table("embed", "wte", also=("head.weight",)),
    *linear("blocks/query", "h.{layer}.qk", bias=True, layout="in_out", part=(0, 1, 2)),
    *linear("blocks/key", "h.{layer}.qk", bias=True, layout="in_out", part=(1, 2, 2)),
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


@st.composite
def fused(draw):
    """(rows, {path: shape}) of one published tensor a place in the stacked axes, in one part or several."""
    what = draw(st.sampled_from(["same", "row", "in_out", "out_in"]))
    size = st.integers(1, 3)
    stacked = draw(st.sampled_from(["", "{layer}", "{expert}", "{layer}.{expert}"]))
    lead = draw(st.tuples(*[size] * stacked.count("{")))
    inputs = draw(st.integers(0, 2)) if what.endswith("t") else 0
    sizes = [*draw(st.tuples(*[size] * inputs)), *draw(st.lists(size, min_size=1, max_size=2))]
    within = len(sizes) == inputs + 2 and draw(st.booleans())
    pairs, plus = draw(st.booleans()), draw(st.sampled_from([0.0, 0.0, 1.0]))
    units = draw(st.lists(size, min_size=1, max_size=3))
    sizes[-1] *= 1 + pairs
    rows, shapes, start = [], {}, 0
    unit, axis = sizes[inputs + within], inputs + within
    for i, count in enumerate(units):
        part = (start, start + count, sum(units)) if units != [1] else None
        rows.append(Row(f"p{i}", f"t{stacked}", what, inputs, part, (), within, pairs, plus))
        shapes[f"p{i}"] = (*lead, *sizes[:axis], count * unit, *sizes[axis + 1 :])
        start += count
    return draw(st.permutations(rows)), shapes


def numbered(shapes):
    """Every number another one, of few enough bits that a sum with 1 is exact."""
    flat = np.arange(sum(prod(shape) for shape in shapes.values()), dtype=np.float32) / 8
    params = np.split(flat, np.cumsum([prod(shape) for shape in shapes.values()])[:-1])
    return {path: part.reshape(shape) for (path, shape), part in zip(shapes.items(), params, strict=True)}


@given(fused(), st.integers(1, 40), st.data())
@settings(max_examples=100, deadline=None)
def test_what_any_rows_publish_is_read_back_whole_and_in_any_part(made, piece, data):
    rows, shapes = made
    params = numbered(shapes)
    tensors = convert.export(rows, params)
    everything = np.concatenate([tensor.reshape(-1) for tensor in tensors.values()]) - np.float32(rows[0].plus)
    np.testing.assert_array_equal(np.sort(everything), np.arange(everything.size) / 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "PIECE", piece)
        leaves = convert.plan(rows, structs(shapes), tensors).leaves
        for path, leaf in leaves.items():
            cuts = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in leaf.shape]
            index = tuple(slice(*cut) for cut in cuts)
            np.testing.assert_array_equal(leaf.read(), params[path])
            np.testing.assert_array_equal(leaf.read(index), params[path][index])
        again = convert.export(rows, convert.load(rows, structs(shapes), tensors))
    assert [(name, bits.tobytes()) for name, bits in again.items()] == [(n, b.tobytes()) for n, b in tensors.items()]


def test_a_shard_reads_its_layers_and_slices_alone():
    watched = {name: Watched(tensor) for name, tensor in published().items()}
    leaves = convert.plan(ROWS, structs(), watched).leaves
    leaves["blocks/out/kernel"].read((slice(1, 2), slice(2, 4), slice(None), slice(0, 2)))
    leaves["blocks/key/kernel"].read((slice(0, 1), slice(None), slice(4, 8), slice(None)))
    read = {name: tensor.read for name, tensor in watched.items() if tensor.read}
    assert read == {"h.1.o.weight": 2 * C * 2, "h.0.qk.weight": D * 4 * C}


def test_experts_are_read_one_by_one():
    rows = linear("up", "h.{layer}.e.{expert}.up")
    tensors = {
        f"h.{i}.e.{j}.up.weight": Watched(np.full((5, D), 10 * i + j, np.float32)) for i in range(2) for j in range(3)
    }
    leaf = convert.plan(rows, structs({"up": {"kernel": (2, 3, D, 5)}}), tensors).leaves["up/kernel"]
    assert sum(tensor.read for tensor in tensors.values()) == 0
    part = leaf.read((slice(1, 2), slice(1, 3), slice(None), slice(2, 4)))
    np.testing.assert_array_equal(part[0, :, 0, 0], [11, 12])
    assert {name: tensor.read for name, tensor in tensors.items() if tensor.read} == {
        "h.1.e.1.up.weight": 2 * D,
        "h.1.e.2.up.weight": 2 * D,
    }


def test_shards_are_put_where_the_shapes_say():
    home = NamedSharding(sharding.make_mesh(MeshConfig(fsdp=8)), P())
    rows, tensors = table("embed", "wte"), {"wte.weight": np.arange(64, dtype=np.float32).reshape(16, 4)}
    split = NamedSharding(home.mesh, P("fsdp"))
    for where in (home, split):
        params = convert.load(rows, structs({"embed": {"embedding": (16, 4)}}, where), tensors)
        assert params["embed"]["embedding"].sharding == where
        np.testing.assert_array_equal(params["embed"]["embedding"], tensors["wte.weight"])


def test_a_shard_for_several_devices_is_read_once():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
    tensor = Watched(np.arange(64, dtype=np.float32).reshape(16, 4))
    home = NamedSharding(mesh, P("fsdp"))
    params = convert.load(
        table("embed", "wte"), structs({"embed": {"embedding": (16, 4)}}, home), {"wte.weight": tensor}
    )
    assert tensor.read == 64
    for shard in params["embed"]["embedding"].addressable_shards:
        np.testing.assert_array_equal(shard.data, tensor.array[shard.index])


class Made:
    """A tensor that holds nothing: what is read of it is made then."""

    def __init__(self, *shape):
        self.shape, self.dtype = shape, np.dtype(np.float32)

    def __getitem__(self, index):
        return np.broadcast_to(np.float32(1), self.shape)[index].copy()


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, fsdp=4)], ids=["one", "mesh"])
def test_beside_what_is_placed_no_more_than_a_few_pieces_lie_in_memory(mesh, dtype):
    rows = (*table("embed", "wte"), *linear("up", "h.{layer}.up", part=(0, 1, 2)))
    rows += (*linear("gate", "h.{layer}.up", part=(1, 2, 2)), *linear("out", "h.{layer}.out", inputs=2))
    shapes = {"embed": {"embedding": (20_000, 256)}, "up": {"kernel": (8, 256, 1024)}}
    shapes |= {"gate": {"kernel": (8, 256, 1024)}, "out": {"kernel": (8, 8, 256, 256)}}
    tensors = {"wte.weight": Made(20_000, 256)}
    for i in range(8):
        tensors |= {f"h.{i}.up.weight": Made(2048, 256), f"h.{i}.out.weight": Made(256, 2048)}
    home = mesh and NamedSharding(sharding.make_mesh(mesh), P(None, "fsdp"))
    piece = 4 * 2**16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "PIECE", 2**16)
        tracemalloc.start()
        try:
            params = convert.load(rows, structs(shapes, home), tensors, dtype=dtype)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    placed = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    # What numpy allocated is still there: jax took the very arrays over, and nothing lies beside them unseen.
    assert placed <= after < placed + piece
    assert peak < placed + 4 * piece


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


def test_tied_tensors_are_compared_in_pieces():
    rows, shapes = table("embed", "wte", also=("head.weight",)), structs({"embed": {"embedding": (V, D)}})
    table_of = np.arange(V * D, dtype=np.float32).reshape(V, D)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "PIECE", 2 * D)
        for i in range(V):
            other = table_of.copy()
            other[i, -1] += 1
            with pytest.raises(ValueError, match=r"head.weight: differs from wte.weight"):
                convert.plan(rows, shapes, {"wte.weight": table_of, "head.weight": other})
        assert convert.plan(rows, shapes, {"wte.weight": table_of, "head.weight": table_of.copy()})
    with pytest.raises(ValueError, match=r"head.weight: differs from wte.weight"):
        convert.plan(rows, shapes, {"wte.weight": table_of, "head.weight": table_of[:-1]})


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
    assert "h.{layer}.qk.weight: parts [(0, 1, 2)] leave a gap or overlap" in complaint(
        published(), tuple(r for r in ROWS if "key/kernel" not in r.path)
    )


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([(0, 1, 3), (1, 3, 3)], None),
        ([(0, 1, 4), (1, 3, 4)], "x: parts [(0, 1, 4), (1, 3, 4)] leave a gap or overlap"),
        ([(0, 1, 4), (2, 4, 4)], "x: parts [(0, 1, 4), (2, 4, 4)] leave a gap or overlap"),
        ([(0, 2, 3), (1, 3, 3)], "x: parts [(0, 2, 3), (1, 3, 3)] leave a gap or overlap"),
        ([(0, 1, 2), (1, 3, 3)], "x: parts [(0, 1, 2), (1, 3, 3)] leave a gap or overlap"),
        ([None, None], "x: parts [None, None] leave a gap or overlap"),
        ([(0, 1, 2), (1, 2, 2)], "x: units of different shapes, in parts of [(2,), (4,)]"),
        ([(0, 3, 6), (3, 6, 6)], "a: axis 0 of (2,) is no units 0:3"),
    ],
)
def test_parts_of_a_tensor_fill_it_without_gap_or_overlap(parts, told):
    rows = [Row(path, "x", part=part) for path, part in zip("ab", parts, strict=True)]
    params = {"a": np.arange(2.0), "b": np.arange(4.0)}
    if told is None:
        assert convert.export(rows, params)["x"].tolist() == [0, 1, 0, 1, 2, 3]
    else:
        with pytest.raises(ValueError, match=re.escape(told)):
            convert.export(rows, params)


# Other heads.

HEADED = (
    *table("embed", "wte"),
    *linear("heads/classify/dense", "dense"),
    *linear("heads/classify/output", "classifier"),
)
HEADED_SHAPES = {"embed": {"embedding": (V, D)}}
HEADED_SHAPES |= {"heads": {"classify": {"dense": {"kernel": (D, D)}, "output": {"kernel": (D, 2)}}}}


def headed(**others):
    shapes = {"wte.weight": (V, D), "dense.weight": (D, D), "classifier.weight": (2, D)} | others
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items() if shape is not None}


def replanned(tensors, heads=("lm.*",)):
    found = convert.plan(HEADED, structs(HEADED_SHAPES), tensors, heads=heads)
    return found.fresh, found.dropped


def test_a_head_that_is_there_is_read_and_nothing_is_fresh_or_dropped():
    assert replanned(headed()) == ((), ())


def test_a_head_that_is_not_there_or_of_another_shape_is_fresh_and_others_are_dropped():
    dense, output = "heads/classify/dense/kernel", "heads/classify/output/kernel"
    others = {"lm.bias": (V,), "lm.weight": (V, D)}
    assert replanned(headed(**{"classifier.weight": None, **others})) == ((output,), ("lm.bias", "lm.weight"))
    assert replanned(headed(**{"classifier.weight": (7, D)})) == ((output,), ("classifier.weight",))
    assert replanned(headed(**{"classifier.weight": None, "dense.weight": None})) == ((dense, output), ())


def test_a_fresh_head_is_placed_as_it_is_given():
    tensors, output = headed(**{"classifier.weight": None}), "heads/classify/output/kernel"
    planned, drawn = convert.plan(HEADED, structs(HEADED_SHAPES), tensors, heads=()), jnp.full((D, 2), 3.0)
    params = convert.place(planned, structs(HEADED_SHAPES), {output: drawn})
    assert params["heads"]["classify"]["output"]["kernel"] is drawn
    np.testing.assert_array_equal(params["heads"]["classify"]["dense"]["kernel"], tensors["dense.weight"])
    for wrong in ({}, {output: drawn, "embed/embedding": drawn}):
        with pytest.raises(ValueError, match=r"fresh: expected arrays for \['heads/classify/output/kernel'\], got"):
            convert.place(planned, structs(HEADED_SHAPES), wrong)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"wte.weight": None}, "wte.weight: missing"),
        ({"wte.weight": (V + 1, D)}, "wte.weight: expected shape"),
        ({"other.weight": (2,)}, "other.weight: unknown"),
    ],
)
def test_outside_the_heads_everything_must_fit(change, told):
    with pytest.raises(ValueError, match=told):
        replanned(headed(**change))


@pytest.mark.parametrize("change", [{"classifier.weight": None}, {"dense.weight": (1, D)}, {"lm.bias": (V,)}])
def test_heads_too_must_fit_where_no_other_is_asked_for(change):
    with pytest.raises(ValueError, match=r"missing|expected shape|unknown"):
        replanned(headed(**change), heads=None)
