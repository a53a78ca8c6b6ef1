import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import RelativeConfig, RopeConfig, SinusoidConfig
from jaxformer.nn.positions import alibi, buckets, count, relative_bias, rotate, rotation, sinusoid

counted = jax.jit(lambda segments: count(segments.shape, segments=segments))


@functools.partial(jax.jit, static_argnums=2)
def rotary(x, positions, config=RopeConfig()):
    return rotate(x, rotation(positions, x.shape[-1], config))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


ROPES = {
    "all": RopeConfig(100.0),
    "some": RopeConfig(100.0, dim=4),
    "neighbours": RopeConfig(100.0, interleaved=True),
    "some neighbours": RopeConfig(100.0, dim=4, interleaved=True),
}
every_rope = pytest.mark.parametrize("config", ROPES.values(), ids=ROPES)


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
    got = rotary(jnp.float32(x), jnp.asarray(positions), RopeConfig(base))
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=3e-5)


@every_rope
def test_scores_depend_on_the_difference_of_positions_alone(config):
    q, k = normal(2, 1, 6, 2, 8)
    at = jnp.asarray([[0, 3, 4, 9, 11, 20]])

    def scores(shift):
        return jnp.einsum("bthc,bshc->bhts", rotary(q, at + shift, config), rotary(k, at + shift, config))

    np.testing.assert_allclose(scores(0), scores(37), atol=2e-4)
    np.testing.assert_allclose(rotary(q, at * 0, config), q)


@every_rope
def test_rotation_keeps_lengths(config):
    x, at = normal(2, 5, 3, 8), np.random.default_rng(1).integers(0, 50, (2, 5))
    lengths = [np.linalg.norm(part, axis=-1) for part in (rotary(x, at, config), x)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_what_is_no_part_of_a_pair_stays_and_the_rest_is_a_smaller_head(interleaved):
    x, at = normal(1, 4, 2, 10), jnp.asarray([[3, 1, 4, 15]])
    got = rotary(x, at, RopeConfig(100.0, dim=6, interleaved=interleaved))
    np.testing.assert_array_equal(got[..., 6:], x[..., 6:])
    np.testing.assert_array_equal(got[..., :6], rotary(x[..., :6], at, RopeConfig(100.0, interleaved=interleaved)))


@pytest.mark.parametrize("dim", [8, 6])
def test_neighbours_turn_as_halves_do_once_put_in_their_order(dim):
    x, at = normal(2, 5, 3, 8), np.random.default_rng(1).integers(0, 50, (2, 5))
    order = np.r_[0:dim:2, 1:dim:2, dim:8]
    got = rotary(x, at, RopeConfig(dim=dim, interleaved=True))
    np.testing.assert_array_equal(got[..., order], rotary(x[..., order], at, RopeConfig(dim=dim)))


@every_rope
def test_a_rotation_made_beforehand_passes_through_jit(config):
    x, at = normal(1, 3, 2, 8), jnp.asarray([[5, 6, 9]])
    np.testing.assert_allclose(jax.jit(rotate)(x, rotation(at, 8, config)), rotary(x, at, config), atol=1e-6)


@every_rope
def test_rotation_keeps_the_dtype_and_computes_in_float32(config):
    x = jnp.asarray(normal(1, 4, 1, 8), jnp.bfloat16)
    at = jnp.asarray([[1000, 2000, 3001, 4003]])
    got = rotary(x, at, config)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, rotary(x.astype(jnp.float32), at, config).astype(jnp.bfloat16))


SIDES = pytest.mark.parametrize("causal", [True, False], ids=["one side", "two sides"])
TABLE, SMALL = jnp.asarray(normal(8, 3)), RelativeConfig(buckets=8, distance=6)
BIASES = {
    "one side": lambda start, queries: relative_bias(TABLE, queries, 9, start, True, SMALL),
    "two sides": lambda start, queries: relative_bias(TABLE, queries, 9, start, False, SMALL),
    "slopes": lambda start, queries: alibi(3, queries, 9, start),
}


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_rows_from_a_cache_are_rows_of_the_whole_bias(bias):
    whole, some = bias(0, 9), jax.jit(bias, static_argnums=1)
    assert whole.dtype == jnp.float32
    assert whole.shape == (3, 9, 9)
    for start, queries in ((0, 1), (4, 1), (8, 1), (0, 4), (5, 4)):
        np.testing.assert_array_equal(some(start, queries), whole[:, start : start + queries])


@SIDES
def test_near_distances_have_a_bucket_each_and_far_ones_share(causal):
    config = RelativeConfig(buckets=32, distance=128)
    sided = 32 if causal else 16
    back = buckets(jnp.arange(500), config, causal)
    np.testing.assert_array_equal(back[: sided // 2], np.arange(sided // 2))
    assert set(np.diff(back)) == {0, 1}
    assert (back[128:] == sided - 1).all()
    assert back.dtype == jnp.int32


def test_one_sided_buckets_never_look_ahead():
    assert (buckets(-jnp.arange(50), RelativeConfig(), causal=True) == 0).all()


def test_two_sided_buckets_are_the_same_on_both_sides():
    config, distances = RelativeConfig(buckets=10, distance=20), jnp.arange(1, 50)
    back, ahead = buckets(distances, config, False), buckets(-distances, config, False)
    np.testing.assert_array_equal(ahead, back + 5)


@SIDES
def test_a_bucket_learns_from_each_pair_in_it(causal):
    gradient = jax.grad(lambda table: relative_bias(table, 4, 9, 3, causal, SMALL).sum())(TABLE)
    difference = 3 + np.arange(4)[:, None] - np.arange(9)[None]
    times = np.bincount(np.asarray(buckets(jnp.asarray(difference), SMALL, causal)).ravel(), minlength=8)
    np.testing.assert_array_equal(gradient, np.repeat(times[:, None], 3, 1))


def test_eight_slopes_are_those_of_the_paper():
    np.testing.assert_array_equal(-alibi(8, 1, 1, 1)[:, 0, 0], 0.5 ** np.arange(1, 9))


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 12, 16, 20, 32])
def test_slopes_differ_and_biases_fall_in_a_line(heads):
    slopes = -alibi(heads, 1, 1, 1)[:, 0, 0]
    assert len(np.unique(slopes)) == heads
    assert 0 < slopes.min() <= slopes.max() < 1
    np.testing.assert_array_equal(alibi(heads, 4, 6, 2)[:, 1], -slopes[:, None] * jnp.arange(3.0, -3.0, -1)[None])


@pytest.mark.parity
def test_sinusoids_equal_the_tables_of_the_reference():
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
    from transformers.models.pegasus.modeling_pegasus import PegasusSinusoidalPositionalEmbedding

    for table in (MarianSinusoidalPositionalEmbedding, PegasusSinusoidalPositionalEmbedding):
        expected = table(512, 16).create_weight().numpy()
        got = sinusoid(jnp.arange(512)[None], 16, SinusoidConfig())[0]
        np.testing.assert_allclose(got, expected, atol=4e-5)
        np.testing.assert_allclose(got[:64], expected[:64], atol=4e-6)


@pytest.mark.parity
@pytest.mark.parametrize("dim", [6, 10])
def test_neighbours_turn_as_in_the_reference(dim):
    import torch
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb, create_sinusoidal_positions

    x, at = normal(2, 5, 3, 10), np.random.default_rng(1).integers(0, 50, (2, 5))
    sin, cos = torch.split(create_sinusoidal_positions(50, dim)[torch.from_numpy(at)], dim // 2, dim=-1)
    turned = apply_rotary_pos_emb(torch.from_numpy(x[..., :dim]), sin, cos).numpy()
    got = rotary(x, jnp.asarray(at), RopeConfig(dim=dim, interleaved=True))
    np.testing.assert_allclose(got, np.concatenate([turned, x[..., dim:]], -1), atol=5e-6)


@pytest.mark.parity
@SIDES
@pytest.mark.parametrize("sizes", [(32, 128), (8, 20), (10, 64), (7, 12), (4, 3), (64, 512), (32, 32)], ids=str)
def test_buckets_equal_the_reference(sizes, causal):
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    difference = np.arange(-600, 600)
    expected = T5Attention._relative_position_bucket(torch.from_numpy(-difference), not causal, *sizes)
    np.testing.assert_array_equal(buckets(jnp.asarray(difference), RelativeConfig(*sizes), causal), expected.numpy())


@pytest.mark.parity
@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 20, 112])
def test_slopes_equal_the_reference(heads):
    import torch
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    of_keys = build_alibi_tensor(torch.ones(1, 7, dtype=torch.int64), heads, torch.float32).numpy()
    got = alibi(heads, 3, 7, 4)
    # The reference leaves out what is the same for all keys of a query: the softmax does not see it.
    np.testing.assert_allclose(got - got[:, :, :1], np.repeat(of_keys, 3, 1), atol=2e-6)
