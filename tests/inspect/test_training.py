"""Laws of what a training does: parts of a norm make the whole, and runs stand side by side by their steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import tree
from jaxformer.inspect.training import compare, norms
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models
from jaxformer.train.metrics import MetricsLog

MODELS = tiny_models()
PARTS = ["embed/**", "*/{norm,input_norm,position,relative,segment,input_projection}/**", "heads/**"]


def drawn(name):
    model = Model(MODELS[name])
    both = MODELS[name].encoder is not None and MODELS[name].decoder is not None
    params = jax.eval_shape(model.init, jax.random.key(0), *[jnp.ones((1, 3), int)] * (1 + both))["params"]
    return randomized(params, jax.random.key(1))


@pytest.mark.parametrize("name", MODELS)
def test_squares_of_norms_add_up_to_that_of_the_whole(name):
    params = drawn(name)
    whole = optax.tree.norm(params)
    stacks = [stack for stack in ("encoder", "decoder") if stack in params]
    there = [part for part in PARTS if any(tree.matches(part, path) for path in tree.flatten(params))]
    for patterns in (None, ["**"], [*(f"{stack}/blocks/**" for stack in stacks), *there]):
        for by_layer in (False, True):
            if patterns == ["**"] and by_layer:
                continue
            found = jax.jit(lambda params: norms(params, patterns, by_layer))(params)
            np.testing.assert_allclose(sum(jnp.square(each).sum() for each in found.values()), whole**2, rtol=1e-5)
    for stack in stacks:
        blocks, layers = params[stack]["blocks"], found[f"{stack}/blocks/**"]
        for index, one in enumerate(layers):
            np.testing.assert_allclose(one, optax.tree.norm(jax.tree.map(lambda x: x[index], blocks)), rtol=1e-5)
        assert len(layers) == jax.tree.leaves(blocks)[0].shape[0]


def test_each_path_counts_exactly_once_and_what_is_wrong_is_said_with_all_of_it():
    params = drawn("relative")
    with pytest.raises(ValueError, match=r"(?s)/kernel: no rule.*embed/embedding: embed/\*\* and \*\*/embedding\n"):
        norms(params, ["embed/**", "**/embedding"])
    with pytest.raises(ValueError, match="heads/nothing describes nothing"):
        norms(params, ["**", "heads/nothing"])
    with pytest.raises(ValueError, match=r"blocks/.* mixes") as told:
        norms(params, ["**/blocks/**", "{embed,*/norm,*/relative}/**"], by_layer=True)
    assert str(told.value).count("mixes") == 1


def test_numbers_of_few_bits_are_added_up_in_float32():
    leaf = jnp.full((4, 1024), 0.1, jnp.bfloat16)
    found = norms({"a": {"blocks": {"x": leaf}}}, by_layer=True)["a/blocks/x"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 32 * float(leaf[0, 0]), rtol=1e-6)


def test_runs_stand_side_by_side_by_name_and_step(tmp_path):
    with MetricsLog(tmp_path / "a") as a, MetricsLog(tmp_path / "b") as b:
        for step in (1, 2, 3):
            a.write(step, {"loss": 10.0 - step}, {"seconds": 0.5})
        a.write(3, {"held_out/loss": 8.0}, {})
        for step in (2, 4):
            b.write(step, {"loss": 20.0 - step, "gradient_norm": 1.0}, {"seconds": 0.25})
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.keys() == {"loss", "held_out/loss", "gradient_norm", "time/seconds"}
    nan = np.nan
    assert found["loss"].steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(found["loss"].values, [[9, 8, 7, nan], [nan, 18, nan, 16]])
    np.testing.assert_array_equal(found["held_out/loss"].values, [[8], [nan]])
    np.testing.assert_array_equal(found["gradient_norm"].values, [[nan, nan], [1, 1]])
    np.testing.assert_array_equal(found["time/seconds"].values[1], [nan, 0.25, nan, 0.25])
    (one,) = compare(tmp_path / "a")["loss"].values
    assert one.tolist() == [9, 8, 7]


def test_folders_without_metrics_are_all_named(tmp_path):
    with pytest.raises(ValueError, match=r"no lines of metrics.jsonl in .*one, .*two: "):
        compare(tmp_path / "one", tmp_path / "two")
