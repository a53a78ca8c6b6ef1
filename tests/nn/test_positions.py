import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import RopeConfig, SinusoidConfig
from jaxformer.nn.positions import count, rotate, rotation, sinusoid

counted = jax.jit(lambda segments: count(segments.shape, segments=segments))
rotary = jax.jit(lambda x, positions, base: rotate(x, rotation(positions, x.shape[-1], RopeConfig(base))))


def test_positions_count_from_zero():
    assert count((2, 3)).tolist() == [[0, 1, 2]] * 2
    assert count((2, 3)).dtype == jnp.int32


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([1, 1, 1, 0], [0, 1, 2, 2]),
        ([0, 0, 1, 1], [0, 0, 0, 1]),
        ([1, 0, 1, 1], [0, 0, 1, 2]),
        ([0, 0, 0, 0], [0] * 4),
    ],
    ids=["right padding", "left padding", "a hole", "nothing"],
)
def test_masked_tokens_do_not_count(mask, expected):
    assert count((1, 4), mask=jnp.asarray([mask], bool)).tolist() == [expected]


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=7, max_size=7))
def test_each_segment_starts_anew(begins):
    segments = np.cumsum([True, *begins])
    expected = [int(np.sum(segments[:i] == segments[i])) for i in range(8)]
    assert counted(segments[None])[0].tolist() == expected


def test_sinusoids_are_the_formula_of_the_paper():
    positions, width = np.array([[0, 1, 7, 500]]), 6
    got = sinusoid(jnp.asarray(positions), width, SinusoidConfig())
    for i in range(width // 2):
        angle = positions / 10_000 ** (2 * i / width)
        np.testing.assert_allclose(got[..., i], np.sin(angle), atol=3e-5)
        np.testing.assert_allclose(got[..., width // 2 + i], np.cos(angle), atol=3e-5)


@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_rotation_turns_pairs_as_complex_numbers(base):
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8))
    positions = np.random.default_rng(1).integers(0, 50, (2, 5))
    pairs = x[..., :4] + 1j * x[..., 4:]
    turned = pairs * np.exp(1j * positions[..., None, None] * base ** (-np.arange(4) / 4))
    got = rotary(jnp.float32(x), jnp.asarray(positions), base)
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=3e-5)


def test_scores_depend_on_the_difference_of_positions_alone():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 6, 2, 8)).astype(np.float32)
    at = jnp.asarray([[0, 3, 4, 9, 11, 20]])

    def scores(shift):
        return jnp.einsum("bthc,bshc->bhts", rotary(q, at + shift, 100.0), rotary(k, at + shift, 100.0))

    np.testing.assert_allclose(scores(0), scores(37), atol=2e-4)
    np.testing.assert_allclose(rotary(q, at * 0, 100.0), q)


def test_rotation_keeps_the_dtype_and_computes_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 1, 8)), jnp.bfloat16)
    at = jnp.asarray([[1000, 2000, 3001, 4003]])
    got = rotary(x, at, 10_000.0)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, rotary(x.astype(jnp.float32), at, 10_000.0).astype(jnp.bfloat16))
