import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxformer.nn.axes import LOGICAL_AXES, by_tokens, constrain, partition, shards, split_axes


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def constraints(x, axes):
    # jit has no cache to mistake one mesh for another here: the lambda is new each time.
    return jax.jit(lambda x: constrain(x, axes)).lower(x).as_text().count("sdy.sharding_constraint")


def test_without_a_mesh_it_is_the_identity():
    x = jnp.ones((4, 2, 8))
    assert constrain(x, ("batch", "length", "width")) is x
    assert constraints(x, ("batch", "length", "width")) == 0


def test_under_a_mesh_each_call_leaves_its_constraint_in_the_program():
    def program(x):
        x = constrain(x * 2, ("batch", "length", "width"))
        return constrain(x + 1, ("batch", "length", "mlp"))

    with jax.set_mesh(mesh(data=2, fsdp=2, tensor=2)):
        text = jax.jit(program).lower(jnp.ones((4, 2, 8))).as_text()
    assert text.count("sdy.sharding_constraint") == 2
    assert '[{"data", "fsdp"}, {}, {}]' in text
    assert '[{"data", "fsdp"}, {}, {"tensor"}]' in text


def test_the_compiled_program_lays_the_array_out_as_asked():
    with jax.set_mesh(mesh(data=2, fsdp=2, tensor=2)):
        x = jax.jit(lambda x: constrain(x, ("batch", "length", "heads", "head_dim")))(jnp.ones((4, 3, 6, 5)))
    assert x.addressable_shards[0].data.shape == (1, 3, 3, 5)
    np.testing.assert_array_equal(x, np.ones((4, 3, 6, 5)))


@pytest.mark.parametrize(
    ("shape", "axes", "sizes", "expected"),
    [
        ((8, 9, 4), ("batch", "heads", "width"), {"data": 4, "tensor": 2}, (("data",), None, None)),
        ((8, 9, 4), ("batch", "heads", "width"), {"data": 2, "tensor": 3}, (("data",), ("tensor",), None)),
        ((8, 1), ("batch", "kv_heads"), {"fsdp": 2, "tensor": 4}, (("fsdp",), None)),
        ((2, 50257), ("batch", "vocab"), {"data": 2, "fsdp": 2, "tensor": 2}, (None, None)),
        ((8, 4), ("batch", "mlp"), {"data": 8}, (("data",), None)),
        ((8, 4), ("batch", "mlp"), {"other": 8}, (None, None)),
        ((8, 6), ("batch", "length"), {"data": 2, "sequence": 3}, (("data",), ("sequence",))),
        ((8, 7), ("batch", "length"), {"data": 2, "sequence": 3}, (("data",), None)),
        ((8, 6), ("batch", "keys"), {"data": 2, "sequence": 3}, (("data",), None)),
    ],
    ids=[
        "9 heads over 2",
        "9 heads over 3",
        "1 key head",
        "neither divides",
        "no tensor axis",
        "foreign mesh",
        "tokens",
        "tokens that do not divide",
        "keys are whole",
    ],
)
def test_an_axis_that_is_missing_or_does_not_divide_is_passed_over(shape, axes, sizes, expected):
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    with jax.set_mesh(
        jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)
    ):
        assert partition(shape, axes) == PartitionSpec(*expected)
        assert constrain(jnp.ones(shape), axes).shape == shape


def test_inside_shard_map_nothing_is_asked_of_the_axes_that_it_maps():
    def local(x):
        assert partition(x.shape, ("batch", "length", "mlp")) == PartitionSpec(None, None, ("tensor",))
        return constrain(x, ("batch", "length", "mlp"))

    with jax.set_mesh(mesh(data=4, tensor=2)):
        spec = PartitionSpec("data")
        out = jax.jit(jax.shard_map(local, in_specs=spec, out_specs=spec, axis_names={"data"}))(jnp.ones((4, 2, 8)))
    np.testing.assert_array_equal(out, np.ones((4, 2, 8)))


@pytest.mark.parametrize("axes", [("batch", "length"), ("batch", "length", "depth")], ids=["too few", "unknown"])
def test_wrong_names_are_an_error_with_or_without_a_mesh(axes):
    with pytest.raises(ValueError, match=r"expected 3 names for the shape \(1, 2, 3\), each one of batch"):
        constrain(jnp.ones((1, 2, 3)), axes)


def test_no_two_names_of_one_activation_ask_for_the_same_mesh_axis():
    for activation in (
        ("batch", "length", "heads", "head_dim"),
        ("batch", "length", "mlp"),
        ("batch", "length", "vocab"),
    ):
        asked = [axis for name in activation for axis in LOGICAL_AXES[name]]
        assert len(asked) == len(set(asked))


def test_shards_are_the_devices_that_an_array_is_split_over():
    asked = (8, 4, 6), ("batch", "length", "mlp")
    assert shards(*asked) == 1
    with jax.set_mesh(mesh(fsdp=2, sequence=2, tensor=2)):
        assert (shards(*asked), split_axes(*asked)) == (8, ("fsdp", "sequence", "tensor"))
        assert shards((8, 5, 6), asked[1]) == 4
        assert split_axes((8, 4), ("batch", "keys")) == ("fsdp",)


def summed(tokens, others):
    """Of tokens [B, T, D] and a matrix [D, E]: their products, and the sum of those."""
    product = tokens @ others
    return product, product.sum()


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 8},
        {"fsdp": 2, "sequence": 4},
        {"data": 2, "sequence": 2, "tensor": 2},
        {"tensor": 8},
        {"sequence": 3},
    ],
    ids=str,
)
def test_by_tokens_gives_what_all_tokens_at_once_give(sizes):
    """Values, sums and gradients, of tokens that are split and of what each device has whole."""
    draw = np.random.default_rng(0)
    tokens, matrix = (jnp.float32(draw.normal(size=shape)) for shape in ((8, 4, 6), (6, 8)))
    wave = lambda run: lambda x, m: jnp.sum(jnp.sin(run(x, m)[0])) + run(x, m)[1] ** 2 / 1e3
    both = lambda run: jax.jit(jax.value_and_grad(wave(run), (0, 1)))(tokens, matrix)
    want = both(summed)
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    with jax.set_mesh(
        jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)
    ):
        got = both(lambda x, m: by_tokens(summed, x, m))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def test_by_tokens_gives_each_device_its_own_rows_and_tokens_alone():
    seen = []

    def look(tokens, others):
        seen.append((tokens.shape, others.shape))
        return tokens, ()

    x, table = jnp.ones((8, 4, 6)), jnp.ones((8, 2))
    with jax.set_mesh(mesh(data=2, sequence=2, tensor=2)):
        jax.jit(lambda x: by_tokens(look, x, table))(x)
        jax.jit(lambda x: by_tokens(look, x[:7, :3], table))(x)  # nothing divides: all tokens on each
    assert seen == [((4, 2, 6), (8, 2)), ((7, 3, 6), (8, 2))]
