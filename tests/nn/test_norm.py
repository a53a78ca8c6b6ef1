from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import NormConfig
from jaxformer.nn.norm import NORMS, SHIFTED, Norm

X = np.random.default_rng(0).normal(2, 3, (2, 3, 8))
SCALE, BIAS = np.random.default_rng(1).normal(size=(2, 8))


def by_hand(kind, x, eps):
    if kind == "layer":
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * SCALE + BIAS
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * SCALE


def run(kind, x, eps=1e-5):
    params = {"scale": jnp.asarray(SCALE, jnp.float32)} | (
        {"bias": jnp.asarray(BIAS, jnp.float32)} if kind in SHIFTED else {}
    )
    return jax.jit(Norm(NormConfig(kind, eps)).apply)({"params": params}, x)


def test_the_table_has_each_kind_of_the_config():
    assert set(NORMS) == set(get_args(get_type_hints(NormConfig)["kind"]))


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_it_is_the_formula_of_its_paper(kind, eps):
    np.testing.assert_allclose(run(kind, jnp.float32(X), eps), by_hand(kind, X, eps), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", NORMS)
def test_it_is_computed_in_float32_whatever_comes(kind):
    x = jnp.asarray(X * 300, jnp.bfloat16)
    y = run(kind, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, run(kind, x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("kind", NORMS)
def test_it_begins_as_the_plain_norm(kind):
    params = Norm(NormConfig(kind)).init(jax.random.key(0), jnp.ones((1, 8)))["params"]
    assert set(params) == {"scale", "bias"} if kind in SHIFTED else {"scale"}
    np.testing.assert_array_equal(params["scale"], np.ones(8))


@pytest.mark.parametrize("kind", NORMS)
def test_a_vector_of_zeros_has_finite_gradients(kind):
    gradient = jax.grad(lambda x: run(kind, x).sum())(jnp.zeros((1, 1, 8)))
    assert np.isfinite(gradient).all()
