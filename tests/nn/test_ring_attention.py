# B batch, T query length, S key length, H heads, K key heads, C head dim
"""Ring attention is attention: eight virtual devices pass keys and values around, and give what one gives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.nn import ring_attention
from jaxformer.nn.attend import KERNELS, attend
from jaxformer.nn.visibility import Visibility
from jaxformer.nn.weigh import Terms
from jaxformer.plan.collectives import Collective, collectives
from jaxformer.sharding import MeshConfig, make_mesh

LENGTH, SCALE, TURNS = 128, 0.3, 8


def on(**sizes):
    """The mesh of these sizes in force."""
    devices = jax.devices()[: math.prod(sizes.values())]
    return jax.set_mesh(make_mesh(MeshConfig(**({"data": 1} | sizes)), devices))


def inputs(B=2, T=LENGTH, S=LENGTH, H=4, K=2, C=8, dtype="float32"):
    random = np.random.default_rng(0)
    shapes = (B, T, H, C), (B, S, K, C), (B, S, K, C)
    return [jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes]


def ends(*lengths):
    return jnp.asarray(np.arange(LENGTH)[None] < np.array(lengths)[:, None])


def packed(B=2):
    """Two documents, the second cut short by padding."""
    at = np.arange(LENGTH)
    segments = np.select([at < LENGTH * 3 // 8, at < LENGTH * 7 // 8], [1, 2], 0)
    return jnp.asarray(np.broadcast_to(segments, (B, LENGTH)))


DOCUMENTS = {"segments_q": packed(), "segments_k": packed()}
PREFIX = {"prefix_q": ends(70, 0), "prefix_k": ends(70, 0)}
MASKS = {
    "everything": Visibility(),
    "padding": Visibility(valid_k=ends(100, LENGTH)),
    "window": Visibility(window=30),
    "documents": Visibility(**DOCUMENTS),
    "causal": Visibility(causal=True),
    "causal documents": Visibility(causal=True, **DOCUMENTS),
    "causal, a row of padding": Visibility(causal=True, valid_k=ends(0, LENGTH)),
    "causal window": Visibility(causal=True, window=9),
    "long causal window": Visibility(causal=True, window=40, **DOCUMENTS),
    "prefix": Visibility(causal=True, **PREFIX),
}


def outcome(kernel, q, k, v, terms):
    """What it gives, and the gradients of a loss that weighs each entry differently."""
    weights = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def loss(q, k, v):
        out = KERNELS[kernel].run(q, k, v, terms)
        return (out * weights).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return {"out": out, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}


def assert_ring_equals_one_device(q, k, v, terms, **mesh):
    one = outcome("einsum", q, k, v, terms)
    with on(**mesh):
        found = outcome("ring", q, k, v, terms)
    for name in one:
        np.testing.assert_allclose(found[name], one[name], rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("mesh", [{"sequence": 8}, {"data": 2, "sequence": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_a_ring_gives_values_and_gradients_of_one_device(mask, mesh):
    assert_ring_equals_one_device(*inputs(), Terms(MASKS[mask], SCALE), **mesh)


@pytest.mark.parametrize("mask", ["everything", "causal documents"])
def test_scores_are_held_a_block_of_keys_at_a_time(mask, monkeypatch):
    monkeypatch.setattr(ring_attention, "BLOCK", 8)
    assert_ring_equals_one_device(*inputs(), Terms(MASKS[mask], SCALE), sequence=2)


def test_a_ring_caps_scores():
    assert_ring_equals_one_device(*inputs(), Terms(MASKS["causal"], SCALE, softcap=0.7), sequence=4)


def test_an_odd_number_of_tokens_on_each_device_is_shared_as_it_lies():
    q, k, v = (x[:, :40] for x in inputs())
    assert_ring_equals_one_device(q, k, v, Terms(MASKS["causal"], SCALE), sequence=8)


def test_queries_attend_to_keys_of_another_number():
    of_queries, of_keys = packed()[:, :64], packed()
    for visibility in (Visibility(), Visibility(segments_q=of_queries, segments_k=of_keys)):
        assert_ring_equals_one_device(*inputs(T=64), Terms(visibility, SCALE), sequence=4, data=2)


def test_a_key_head_that_cannot_be_split_serves_split_queries():
    assert_ring_equals_one_device(*inputs(K=1), Terms(MASKS["causal"], SCALE), sequence=2, tensor=4)


def test_a_query_that_sees_nothing_gets_zeros_and_gives_zero_gradients():
    q, k, v = inputs()
    with on(sequence=8):
        blind = outcome("ring", q, k, v, Terms(Visibility(causal=True, valid_k=jnp.zeros((2, LENGTH), bool)), SCALE))
        padded = outcome("ring", q, k, v, Terms(MASKS["causal documents"], SCALE))
    assert not any(jnp.any(x) for x in blind.values())
    seen = LENGTH * 7 // 8
    assert all(not jnp.any(x[:, seen:]) and jnp.any(x[:, :seen]) for x in padded.values())


def test_half_precision_stays_near_float32_and_keeps_its_dtype():
    halved = inputs(dtype="bfloat16")
    terms = Terms(MASKS["causal documents"], SCALE)
    one = outcome("einsum", *(x.astype("float32") for x in halved), terms)
    with on(sequence=8):
        found = outcome("ring", *halved, terms)
    for name in one:
        assert found[name].dtype == "bfloat16"
        np.testing.assert_allclose(
            np.asarray(found[name], np.float32), one[name], atol=3e-2 * jnp.abs(one[name]).max()
        )


def compiled(kernel, visibility, *, grad=False, length=LENGTH, layers=1):
    q, k, v = inputs(B=1, T=length, S=length)

    def loss(q, k, v):
        layer = lambda q, _: (attend(q, k, v, visibility, scale=SCALE, kernel=kernel), None)
        return jax.lax.scan(layer, q, length=layers)[0].sum()

    return jax.jit(jax.grad(loss) if grad else loss).lower(q, k, v).compile()


@pytest.mark.parametrize(("mask", "turns"), [("window", 8), ("causal window", 2)])
def test_keys_go_no_further_than_somebody_sees_them(mask, turns):
    visibility = MASKS[mask]
    with on(sequence=8):
        found = {each.kind: each for each in collectives(compiled("ring", visibility).as_text())}
    held, slot = LENGTH // 8 * 2 * 8 * 4, 4  # keys or values of a device, and the slot of the first, in bytes
    assert found["collective-permute"] == Collective("collective-permute", 3 * turns, turns * (2 * held + slot))
    assert found.keys() <= {"collective-permute", "all-reduce"}  # of the sum


def test_no_device_holds_the_scores_of_all_keys_nor_masks_of_all_layers():
    """Temporaries of one of eight devices, forward and back through two layers."""
    length, seen = 2048, Visibility(causal=True)
    with on(sequence=8):
        gathered, ring = (
            compiled(kernel, seen, grad=True, length=length, layers=2).memory_analysis().temp_size_in_bytes
            for kernel in ("einsum", "ring")
        )
    own, stretch = length // 8, length // 16
    assert gathered > 2 * 4 * own * length * 4  # float32 scores of four heads, kept in both layers
    assert ring < 6 * 4 * stretch * stretch * 4 + 40 * own * 4 * 8 * 4
