"""Rotary positions beyond the trained length. Frequencies are read off the angles of position 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import DynamicScaling, LinearScaling, Llama3Scaling, LongScaling, RopeConfig, YarnScaling
from jaxformer.nn.positions import rotate, rotation

turns = jax.jit(rotation, static_argnums=(1, 2))
PAIRS = 8
PLAIN = RopeConfig(base=500.0, dim=2 * PAIRS)
SCALINGS = {
    "linear": LinearScaling(2.5),
    "dynamic": DynamicScaling(4.0, length=32),
    "yarn": YarnScaling(4.0, 64, beta_fast=8.0, attention_factor=1.25),
    "yarn, ends not rounded": YarnScaling(4.0, 64, beta_fast=8.0, truncate=False),
    "yarn, one pair from end to end": YarnScaling(4.0, 64, beta_fast=1.0, truncate=False),
    "yarn, no length": YarnScaling(4.0, 4, attention_factor=1.1),
    "yarn, past the last pair": YarnScaling(4.0, 10_000_000, beta_fast=70_000.0),
    "bands": Llama3Scaling(8.0, low=1.0, high=4.0, length=64),
    "long": LongScaling(tuple(np.linspace(1, 2, PAIRS)), tuple(np.linspace(3, 20, PAIRS)), 32, attention_factor=1.3),
}
every_scaling = pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)


def scaled(scaling):
    return RopeConfig(PLAIN.base, PLAIN.dim, scaling=scaling)


def frequencies(config, tokens=2):
    """Angle of position 1 for each pair, in a text of so many tokens."""
    turn = turns(jnp.asarray([[1, tokens - 1]]), config.dim, config)
    return np.arctan2(turn.sin, turn.cos)[0, 0, 0]


def test_linear_scaling_moves_positions_closer():
    got = turns(jnp.asarray([[0, 10, 25, 60]]), 16, scaled(LinearScaling(2.5)))
    expected = turns(jnp.asarray([[0, 4, 10, 24]]), 16, PLAIN)
    np.testing.assert_allclose(got.cos, expected.cos, atol=2e-6)
    np.testing.assert_allclose(got.sin, expected.sin, atol=2e-6)


@pytest.mark.parametrize("tokens", [2, 31, 32])
def test_short_texts_are_not_stretched(tokens):
    divisors = (1.0,) * PAIRS
    for scaling in (DynamicScaling(4.0, 32), LongScaling(divisors, tuple(np.arange(2.0, 2 + PAIRS)), 32)):
        np.testing.assert_array_equal(frequencies(scaled(scaling), tokens), frequencies(PLAIN, tokens))


@pytest.mark.parametrize("tokens", [33, 48, 320])
def test_dynamic_scaling_raises_the_base(tokens):
    base = PLAIN.base * (4 * tokens / 32 - 3) ** (16 / 14)
    got = frequencies(scaled(DynamicScaling(4.0, 32)), tokens)
    np.testing.assert_allclose(got, base ** (-np.arange(PAIRS) / PAIRS), rtol=2e-6)
    assert got[0] == 1


def test_dynamic_scaling_of_a_single_pair_is_none():
    np.testing.assert_array_equal(frequencies(RopeConfig(dim=2, scaling=DynamicScaling(4.0, 8)), 64), [1.0])


def test_long_texts_have_divisors_of_their_own():
    config, plain = scaled(SCALINGS["long"]), frequencies(PLAIN)
    np.testing.assert_allclose(frequencies(config, 32), plain / np.linspace(1, 2, PAIRS), rtol=1e-6)
    np.testing.assert_allclose(frequencies(config, 33), plain / np.linspace(3, 20, PAIRS), rtol=1e-6)


@pytest.mark.parametrize("name", ["dynamic", "long"])
def test_one_program_serves_texts_of_every_length(name, count_compilations):
    jitted = jax.jit(lambda at: rotation(at, 16, scaled(SCALINGS[name])).cos)
    short, long = jnp.asarray([[1, 31]]), jnp.asarray([[1, 32]])
    first = jitted(short)
    with count_compilations() as compiled:
        second = jitted(long)
    assert len(compiled) == 0
    assert not np.array_equal(first[0, 0], second[0, 0])


@pytest.mark.parametrize("name", ["yarn", "yarn, ends not rounded", "bands"])
def test_high_frequencies_are_kept_and_low_ones_divided(name):
    scaling = SCALINGS[name]
    share = frequencies(scaled(scaling)) / frequencies(PLAIN)
    assert (np.diff(share) <= 1e-6).all()
    np.testing.assert_allclose(share[[0, -1]], [1, 1 / scaling.factor], rtol=1e-6)
    assert ((share > 1.01 / scaling.factor) & (share < 0.99)).any()


@every_scaling
def test_scores_depend_on_the_difference_of_positions_alone(scaling):
    q, k = np.random.default_rng(0).normal(size=(2, 1, 5, 2, 20)).astype(np.float32)
    at = jnp.asarray([[0, 3, 4, 9, 60]])

    def scores(shift):
        # Both with the same longest text: its length may change every angle.
        made = turns(jnp.concatenate([at + shift, jnp.full_like(at, 99)], 1), 20, scaled(scaling))
        made = jax.tree.map(lambda part: part[:, :5], made)
        return jnp.einsum("bthc,bshc->bhts", rotate(q, made), rotate(k, made))

    np.testing.assert_allclose(scores(0), scores(37), atol=3e-4)


@every_scaling
def test_the_attention_factor_is_on_what_turns_alone(scaling):
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 20)).astype(np.float32)
    got = rotate(x, turns(jnp.asarray([[0, 5, 40]]), 20, scaled(scaling)))
    factor = getattr(scaling, "attention_factor", 1.0)
    lengths = [np.linalg.norm(part[..., :16], axis=-1) for part in (got, x)]
    np.testing.assert_allclose(lengths[0], factor * lengths[1], rtol=1e-5)
    np.testing.assert_array_equal(got[..., 16:], x[..., 16:])


def published(scaling):
    """The same scaling in the words of the reference."""
    at = {"original_max_position_embeddings": getattr(scaling, "length", None)}
    match scaling:
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor):
            return {"rope_type": "dynamic", "factor": factor}
        case YarnScaling(factor, _, fast, slow, attention, truncate):
            ends = {"beta_fast": fast, "beta_slow": slow, "truncate": truncate}
            return {"rope_type": "yarn", "factor": factor, "attention_factor": attention} | ends | at
        case Llama3Scaling(factor, low, high):
            return {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high} | at
        case LongScaling(short, long, _, attention):
            factors = {"short_factor": list(short), "long_factor": list(long), "attention_factor": attention}
            return {"rope_type": "longrope"} | factors | at


@pytest.mark.parity
@pytest.mark.parametrize("head_dim", [16, 32], ids=["all", "half"])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_angles_equal_the_reference(scaling, head_dim):
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = published(scaling) | {"rope_theta": PLAIN.base, "partial_rotary_factor": 16 / head_dim}
    length = scaling.length if isinstance(scaling, DynamicScaling) else 128
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=length, rope_parameters=rope)
    for tokens in (31, 32, 33, 100):
        at = np.stack([np.arange(tokens), np.arange(tokens)[::-1]])
        expected = LlamaRotaryEmbedding(config)(torch.ones(1), torch.from_numpy(at))
        got = turns(jnp.asarray(at), head_dim, scaled(scaling))
        for ours, theirs in zip((got.cos, got.sin), expected, strict=True):
            np.testing.assert_allclose(np.concatenate([ours, ours], -1)[:, :, 0], theirs.numpy(), atol=2e-5)


@pytest.mark.parity
@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_far_positions_equal_the_reference(base):
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": base})
    at = np.asarray([[1, 1000, 10_000, 100_000]])
    expected = LlamaRotaryEmbedding(config)(torch.ones(1), torch.from_numpy(at))
    got = turns(jnp.asarray(at), 128, RopeConfig(base))
    for ours, theirs in zip((got.cos, got.sin), expected, strict=True):
        np.testing.assert_allclose(np.concatenate([ours, ours], -1)[:, :, 0], theirs.numpy(), atol=2e-5)
