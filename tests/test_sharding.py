"""Where things go, on eight devices: by shapes alone for models of published sizes, by arrays for tiny ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxformer import quantize, sharding, tree
from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    StackConfig,
)
from jaxformer.nn.linear import Quantized
from jaxformer.nn.model import Model
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.sharding import MeshConfig, make_mesh, specs
from jaxformer.testing import randomized, tiny_models
from jaxformer.train.state import TrainState

MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(fsdp=8),
    "tensor 2 x fsdp 4": MeshConfig(fsdp=4, tensor=2),
}


def learned_124m():
    attention = AttentionConfig(12, 12, 64, bias=("query", "key", "value", "out"))
    block = BlockConfig(attention, MlpConfig(3072, "gelu_tanh"))
    return ModelConfig(
        50257, 768, decoder=StackConfig((block,), 12, True, InputConfig(LearnedConfig(1024)), NormConfig())
    )


def rotary_135m():
    norm = NormConfig("rms")
    block = BlockConfig(AttentionConfig(9, 3, 64, rope=RopeConfig()), MlpConfig(1536, "silu", True, False), norm)
    return ModelConfig(
        49152, 576, decoder=StackConfig((block,), 30, True, final_norm=norm), head=HeadConfig(tied=False)
    )


LARGE = {"learned 124M": learned_124m(), "rotary 135M": rotary_135m()}


def abstract(config):
    return sharding.abstract_params(Model(config))


def parts(spec, mesh):
    names = [name for axis in spec for name in ((axis,) if isinstance(axis, str) else axis or ())]
    return int(np.prod([mesh.shape[name] for name in names], dtype=int)), names


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", LARGE)
def test_published_sizes_split_over_every_mesh(model, mesh):
    """Each large leaf over all devices that hold parameters, but for key heads that do not divide."""
    mesh, shapes = make_mesh(MESHES[mesh]), abstract(LARGE[model])
    flat = tree.flatten(shapes)
    for path, spec in specs(mesh, shapes).items():
        leaf, (count, names) = flat[path], parts(spec, mesh)
        assert len(spec) == leaf.ndim
        assert len(names) == len(set(names))
        assert "data" not in names
        for size, axis in zip(leaf.shape, spec, strict=True):
            assert size % parts((axis,), mesh)[0] == 0, path
        if leaf.size * 4 >= sharding.SMALL and not path.endswith(("bias", "scale")):
            wanted = mesh.shape["fsdp"] * (1 if path.endswith("position/embedding") else mesh.shape["tensor"])
            assert count == wanted, (path, spec)


def test_the_first_placement_that_divides_is_taken():
    mesh = make_mesh(MESHES["tensor 2 x fsdp 4"])
    both = ("fsdp", "tensor")
    twelve, nine = (specs(mesh, abstract(config)) for config in LARGE.values())
    assert twelve["embed/embedding"] == P(None, both)  # 50257 is odd
    assert nine["embed/embedding"] == P("tensor", "fsdp")
    assert twelve["decoder/blocks/attention/query/kernel"] == P(None, "fsdp", "tensor", None)
    assert nine["decoder/blocks/attention/query/kernel"] == P(None, both, None, None)
    assert nine["decoder/blocks/attention/out/kernel"] == P(None, None, None, both)
    assert nine["decoder/blocks/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert nine["heads/lm/kernel"] == P("fsdp", "tensor")
    assert twelve["decoder/blocks/mlp/up/bias"] == P(None, None)


@pytest.mark.parametrize("name", tiny_models())
def test_one_rule_speaks_of_each_path(name):
    paths = tree.flatten(abstract(tiny_models()[name]))
    assert set(tree.match(sharding.RULES, paths, "sharding")) == set(paths)


def test_an_unknown_path_is_an_error():
    with pytest.raises(ValueError, match="decoder/thing: no rule"):
        specs(make_mesh(MeshConfig()), {"decoder": {"thing": jax.ShapeDtypeStruct((2,), jnp.float32)}})


def test_where_nothing_divides_a_small_leaf_is_whole_and_large_ones_are_named():
    mesh = make_mesh(MESHES["fsdp 8"])
    small = abstract(dataclasses.replace(tiny_models()["learned"], width=15))
    assert specs(mesh, small)["embed/embedding"] == P(None, None)
    large = abstract(dataclasses.replace(tiny_models()["rotary"], width=15, vocab=50257))
    with pytest.raises(ValueError, match="no placement divides over the mesh") as error:
        specs(mesh, large)
    lines = str(error.value).splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["embed/embedding", "heads/lm/kernel"]
    assert "(50257, 15): tried ('tensor', 'fsdp')" in lines[0]


def test_layers_one_by_one_are_placed_as_their_stack():
    mesh, shapes = make_mesh(MESHES["tensor 2 x fsdp 4"]), abstract(tiny_models()["rotary"])
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), shapes["decoder"]["blocks"])
    alone = specs(mesh, {"decoder": {"blocks": one}})
    for path, spec in specs(mesh, shapes).items():
        if "/blocks/" in path:
            assert P(None, *alone[path]) == spec


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 4)])
@pytest.mark.parametrize("name", ["rotary", "experts"])
def test_quantized_kernels_lie_where_the_kernels_would(name, bits, group):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2, expert=2))
    params = randomized(abstract(tiny_models()[name]), jax.random.key(0))
    small = quantize.quantize(params, bits=bits, group=group)
    want, homes = tree.flatten(sharding.shardings(mesh, params)), sharding.shardings(mesh, small)
    placed = tree.flatten(jax.device_put(small, homes))
    assert any(isinstance(leaf, Quantized) for leaf in placed.values())
    for path, leaf in placed.items():
        held = leaf.values if isinstance(leaf, Quantized) else leaf
        assert held.sharding == want[path], path
        if isinstance(leaf, Quantized):
            parts = [each.size // each.addressable_shards[0].data.size for each in (leaf.values, leaf.scale)]
            assert parts[1] == (parts[0] if bits == 4 else parts[0] // 2), path  # one run of 8 bits has no parts
    exact = tree.flatten(quantize.dequantize(small, "float32"))
    for path, leaf in tree.flatten(quantize.dequantize(tree.unflatten(placed), "float32")).items():
        np.testing.assert_array_equal(leaf, exact[path])


# The mesh ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (8, 1, 1, 1, 1)),
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 1, 1, 2)),
        (MeshConfig(fsdp=2, tensor=-1, data=1), (1, 2, 1, 1, 4)),
        (MeshConfig(expert=4), (2, 1, 4, 1, 1)),
        (MeshConfig(sequence=4, tensor=2), (1, 1, 1, 4, 2)),
    ],
    ids=str,
)
def test_minus_one_takes_what_is_left(config, sizes):
    mesh = make_mesh(config)
    assert tuple(mesh.shape.values()) == sizes
    assert mesh.axis_names == sharding.AXES
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(data=3),
        MeshConfig(fsdp=3),
        MeshConfig(fsdp=-1),
        MeshConfig(data=0),
        MeshConfig(data=16),
        MeshConfig(-2, -4),
    ],
    ids=str,
)
def test_sizes_that_do_not_multiply_to_the_devices_are_an_error(config):
    with pytest.raises(ValueError, match="fit 8 devices"):
        make_mesh(config)


def test_a_mesh_may_be_made_of_some_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:2]).size == 2


# States and batches -----------------------------------------------------------------------------------------


def test_what_the_optimizer_keeps_lies_with_its_parameter():
    mesh, params = make_mesh(MESHES["tensor 2 x fsdp 4"]), abstract(tiny_models()["learned"])
    optimizer = make_optimizer(OptimizerConfig(ema=0.9, warmup_steps=1), 10, dynamic_scale=True)
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), np.int32), params=params, opt_state=jax.eval_shape(optimizer.init, params)
    )
    homes = sharding.like_parameters(mesh, shapes, params)
    assert jax.tree.structure(homes) == jax.tree.structure(shapes)
    want = specs(mesh, params)
    moments = optax.tree.get_all_with_path(homes.opt_state, "mu") + optax.tree.get_all_with_path(
        homes.opt_state, "nu"
    )
    assert len(moments) == 2
    average = homes.opt_state[1].params
    for held in (homes.params, average, *(moment for _, moment in moments)):
        assert {path: home.spec for path, home in tree.flatten(held).items()} == want
    for scalar in (homes.step, homes.opt_state[1].updates, homes.opt_state[2].value):
        assert scalar.spec == P()


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_is_handed_its_own_rows(mesh):
    mesh = make_mesh(MESHES[mesh])
    rows = {"tokens": np.arange(24).reshape(8, 3), "weights": np.ones((8,), np.float32)}
    placed = sharding.place_batch(rows, mesh)
    for name, array in placed.items():
        np.testing.assert_array_equal(array, rows[name])
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {
            8 // (mesh.shape["data"] * mesh.shape["fsdp"])
        }


def test_parameters_are_made_in_the_dtype_asked_for():
    params = sharding.init(Model(tiny_models()["rotary"]), jax.random.key(0, impl="rbg"), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_what_does_not_divide_as_its_rule_has_it_first_is_told():
    """Nine heads over two devices: the width is split over both axes in their place; all else is as it should be."""
    mesh, shapes = make_mesh(MESHES["tensor 2 x fsdp 4"]), abstract(rotary_135m())
    kernels = [f"decoder/blocks/attention/{name}/kernel" for name in ("query", "key", "value", "out")]
    told = {line.partition(" ")[0]: line for line in sharding.fallbacks(mesh, shapes)}
    assert sorted(told) == sorted(kernels)
    query = "(30, 576, 9, 64): fsdp x tensor x None does not divide; None x ('fsdp', 'tensor') x None x None"
    assert told[kernels[0]] == f"{kernels[0]} {query}"
    assert sharding.fallbacks(make_mesh(MESHES["fsdp 8"]), shapes) == []
