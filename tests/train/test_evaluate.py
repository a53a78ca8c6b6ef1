import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.train.evaluate import evaluate, make_eval_step, means
from jaxformer.train.state import EVALUATION, stream_key

VALUES = np.random.default_rng(0).normal(size=23)


def loss_fn(params, frozen, batch, key):
    total, weight = (params * batch["x"] * batch["weights"]).sum(), batch["weights"].sum()
    noise = jax.random.normal(key)
    return total / weight, {"loss": (total, weight), "noise": (noise, jnp.float32(1))}


def batches(rows):
    """The last one padded with rows of weight 0, which hold rubbish."""
    for first in range(0, len(VALUES), rows):
        part = VALUES[first : first + rows]
        pad = (0, rows - len(part))
        yield {
            "x": jnp.asarray(np.pad(part, pad, constant_values=1e6), jnp.float32),
            "weights": jnp.asarray(np.pad(np.ones(len(part)), pad), jnp.float32),
        }


STEP = jax.jit(make_eval_step(loss_fn))


@pytest.mark.parametrize("rows", [1, 4, 5, 23, 64])
def test_each_example_counts_once_whatever_the_batches(rows):
    total, weight = evaluate(STEP, 2.0, None, batches(rows))["loss"]
    assert weight == 23
    assert total == pytest.approx(2 * VALUES.sum(), abs=1e-4)


def test_sums_are_added_in_float64():
    step = lambda params, frozen, batch: {"loss": (jnp.float32(batch), jnp.float32(1))}
    assert evaluate(step, None, None, [2.0**25, *[1.0] * 100])["loss"] == (2.0**25 + 100, 101)


def test_a_batch_is_dispatched_before_the_one_before_it_is_read():
    order = []

    class Sum:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            order.append(("read", self.number))
            return np.asarray(float(self.number), dtype)

    def step(params, frozen, number):
        order.append(("dispatched", number))
        return {"loss": (Sum(number), np.float64(1))}

    assert evaluate(step, None, None, range(3)) == {"loss": (3.0, 3.0)}
    assert order == [("dispatched", 0), ("dispatched", 1), ("read", 0), ("dispatched", 2), ("read", 1), ("read", 2)]


def test_every_batch_of_every_evaluation_sees_the_same_key():
    noise = jax.random.normal(stream_key(3, EVALUATION, 0))
    step = make_eval_step(loss_fn, seed=3)
    for rows in (23, 64):
        assert evaluate(step, 1.0, None, batches(rows))["noise"][0] == pytest.approx(float(noise), rel=1e-6)


def test_nothing_to_evaluate_on_is_an_error():
    with pytest.raises(ValueError, match="the evaluation set is empty"):
        evaluate(STEP, 1.0, None, [])


@pytest.mark.parametrize("rows", [1, 5, 23])
def test_sums_may_be_arrays_with_a_weight_of_any_shape(rows):
    """A table of counts with one weight, and a sum of each class with its own."""

    def loss_fn(params, frozen, batch, key):
        above = jax.nn.one_hot((batch["x"] > 0).astype(int), 2) * batch["weights"][:, None]
        table, weight = above.T @ above, batch["weights"].sum()
        by_class = (above * jnp.where(batch["weights"] > 0, batch["x"], 0)[:, None]).sum(0)
        return weight, {"loss": (weight, weight), "table": (table, weight), "by_class": (by_class, above.sum(0))}

    sums = evaluate(jax.jit(make_eval_step(loss_fn)), None, None, batches(rows))
    counts = np.array([(VALUES <= 0).sum(), (VALUES > 0).sum()])
    np.testing.assert_array_equal(sums["table"][0], np.diag(counts))
    assert sums["table"][1] == 23
    np.testing.assert_allclose(sums["by_class"][0], [VALUES[VALUES <= 0].sum(), VALUES[VALUES > 0].sum()], rtol=1e-5)
    np.testing.assert_array_equal(sums["by_class"][1], counts)
    assert {np.asarray(part).dtype for pair in sums.values() for part in pair} == {np.dtype("float64")}
    assert isinstance(sums["loss"][0], float)
    assert means(sums) == {"loss": 1.0}


def test_means_divide_once_and_no_weight_is_no_number():
    values = means({"loss": (jnp.float32(6), jnp.float32(4)), "none": (0.0, 0.0)})
    assert values["loss"] == 1.5
    assert np.isnan(values["none"])
