"""One vector of a text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import Sentences
from jaxformer.nn.pooling import pool

HIDDEN = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
LENGTHS = (5, 2, 3)
EXPECTED = {
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.max(0),
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", EXPECTED)
def test_only_what_the_mask_shows_is_pooled(pooling, side):
    mask = np.arange(5)[None] < np.array(LENGTHS)[:, None]
    mask = mask[:, ::-1] if side == "left" else mask
    found = jax.jit(pool, static_argnums=2)(HIDDEN, mask, Sentences(pooling))
    for row, seen, vector in zip(HIDDEN, mask, found, strict=True):
        np.testing.assert_allclose(vector, EXPECTED[pooling](row[seen]), rtol=1e-6)


@pytest.mark.parametrize("pooling", EXPECTED)
def test_a_normalized_vector_has_length_one_and_an_empty_row_is_zero(pooling):
    mask = np.arange(5)[None] < np.array([5, 0, 3])[:, None]
    found = pool(jnp.asarray(HIDDEN), mask, Sentences(pooling, normalize=True))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 0, 1], rtol=1e-6)
