# B batch, T query length, S key length, H heads, K key heads, C head dim
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxformer.nn.attend import KERNELS, Request, Terms, attend, choose, describe, explain
from jaxformer.nn.visibility import Visibility

SCALE = 0.3
jitted = jax.jit(attend, static_argnames=("scale", "softcap", "kernel"))


def inputs(B, T, S, H, K, C, seed=0):
    random = np.random.default_rng(seed)
    shapes = (B, T, H, C), (B, S, K, C), (B, S, K, C)
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def slow(q_BTHC, k_BSKC, v_BSKC, seen_BTS, softcap=None, bias_HTS=None):
    """The law in float64, one query of one head at a time."""
    q_BTHC, k_BSKC, v_BSKC = (np.asarray(x, np.float64) for x in (q_BTHC, k_BSKC, v_BSKC))
    B, T, H, _ = q_BTHC.shape
    seen_BTS = np.broadcast_to(seen_BTS, (B, T, k_BSKC.shape[1]))
    out_BTHC = np.zeros_like(q_BTHC)
    for b, t, h in np.ndindex(B, T, H):
        seen, kh = seen_BTS[b, t], h // (H // k_BSKC.shape[2])
        if seen.any():
            scores = SCALE * k_BSKC[b, seen, kh] @ q_BTHC[b, t, h]
            scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
            scores = scores if bias_HTS is None else scores + np.asarray(bias_HTS, np.float64)[h, t, seen]
            weights = np.exp(scores - scores.max())
            out_BTHC[b, t, h] = weights @ v_BSKC[b, seen, kh] / weights.sum()
    return out_BTHC


def outcome(run, q, k, v, terms):
    """Output, and the gradients of a loss that weighs each entry differently."""
    weights = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def loss(q, k, v):
        out = run(q, k, v, terms)
        return (out * weights).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return {"out": out, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}


def assert_same(got, expected):
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=2e-5, err_msg=name)


def halves(length, B=2):
    """Two segments, and the last eighth of the row padding."""
    at = np.arange(length)
    return jnp.asarray(np.broadcast_to(np.select([at < length // 2, at < length * 7 // 8], [1, 2], 0), (B, length)))


def ends(length, *lengths):
    return jnp.asarray(np.arange(length)[None] < np.array(lengths)[:, None])


HALVES = {"segments_q": halves(8), "segments_k": halves(8)}
BATTERY = {
    "everything": Visibility(),
    "causal": Visibility(causal=True),
    "padding": Visibility(valid_k=ends(8, 5, 8)),
    "padding on the left, causal": Visibility(causal=True, valid_k=~ends(8, 3, 1)),
    "a row of padding": Visibility(valid_k=ends(8, 0, 8)),
    "causal segments": Visibility(causal=True, **HALVES),
    "causal window": Visibility(causal=True, window=3),
    "window": Visibility(window=3),
    "prefix": Visibility(causal=True, prefix_q=ends(8, 4, 0), prefix_k=ends(8, 4, 0)),
    "all at once": Visibility(
        causal=True, window=3, valid_k=ends(8, 7, 5), prefix_q=ends(8, 4, 2), prefix_k=ends(8, 4, 2), **HALVES
    ),
}


@pytest.mark.parametrize("name", BATTERY)
def test_einsum_equals_a_loop_in_float64(name):
    q, k, v = inputs(2, 8, 8, 4, 2, 5)
    out = jitted(q, k, v, BATTERY[name], scale=SCALE, kernel="einsum")
    np.testing.assert_allclose(out, slow(q, k, v, BATTERY[name].dense(8, 8)), atol=2e-6)


@pytest.mark.parametrize("kernel", ["einsum", "xla"])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_a_key_head_serves_its_group_of_query_heads(kv_heads, kernel):
    q, k, v = inputs(2, 8, 8, 4, kv_heads, 5)
    out = jitted(q, k, v, BATTERY["all at once"], scale=SCALE, kernel=kernel)
    np.testing.assert_allclose(out, slow(q, k, v, BATTERY["all at once"].dense(8, 8)), atol=2e-6)


@pytest.mark.parametrize("name", ["everything", "a row of padding", "all at once"])
def test_xla_equals_einsum_in_values_and_gradients(name):
    q, k, v = inputs(2, 8, 8, 4, 2, 5)
    terms = Terms(BATTERY[name], SCALE, bias_HTS=jax.random.normal(jax.random.key(1), (4, 8, 8)))
    assert_same(outcome(KERNELS["xla"].run, q, k, v, terms), outcome(KERNELS["einsum"].run, q, k, v, terms))


def test_softcap_and_bias_equal_the_loop():
    q, k, v = inputs(2, 4, 6, 4, 2, 5)
    bias_HTS = jax.random.normal(jax.random.key(1), (4, 4, 6))
    visibility = Visibility(causal=True, start=jnp.int32(2))
    out = jitted(q, k, v, visibility, scale=SCALE, softcap=0.5, bias_HTS=bias_HTS)
    np.testing.assert_allclose(out, slow(q, k, v, visibility.dense(4, 6), 0.5, bias_HTS), atol=2e-6)


def test_one_query_on_a_cache_is_the_last_row_of_the_whole_pass():
    q, k, v = inputs(2, 8, 8, 4, 2, 5)
    whole = jitted(q, k, v, Visibility(causal=True), scale=SCALE)
    free = jnp.full((2, 3, 2, 5), 1e4)  # slots that are not written yet
    step = jitted(
        q[:, -1:],
        jnp.concatenate([k, free], axis=1),
        jnp.concatenate([v, free], axis=1),
        Visibility(causal=True, start=jnp.int32(7)),
        scale=SCALE,
    )
    np.testing.assert_allclose(step[:, 0], whole[:, -1], atol=2e-6)


@pytest.mark.parametrize("kernel", ["einsum", "xla"])
def test_the_future_never_leaks(kernel):
    q, k, v = inputs(1, 6, 6, 2, 1, 4)

    def sums(k, v):
        return attend(q, k, v, Visibility(causal=True), scale=SCALE, kernel=kernel)[0].sum((1, 2))

    # influence[t, s]: how the output at t moves with the key and the value at s
    for influence in jax.jit(jax.jacrev(sums, (0, 1)))(k, v):
        felt = jnp.any(influence[:, 0] != 0, axis=(2, 3))
        assert not jnp.any(jnp.triu(felt, 1))
        assert jnp.all(felt[1:] == jnp.tril(jnp.ones((6, 6), bool))[1:])  # one lone key has weight 1, whatever it is


@pytest.mark.parametrize("kernel", ["einsum", "xla"])
def test_a_query_that_sees_nothing_gets_zeros_and_gives_zero_gradients(kernel):
    q, k, v = inputs(2, 8, 8, 4, 2, 5)
    terms = Terms(Visibility(causal=True, valid_k=jnp.zeros((2, 8), bool)), SCALE)
    assert all(not jnp.any(x) for x in outcome(KERNELS[kernel].run, q, k, v, terms).values())
    padded = outcome(KERNELS[kernel].run, q, k, v, Terms(Visibility(**HALVES), SCALE))
    assert all(jnp.all(jnp.isfinite(x)) and not jnp.any(x[:, 7:]) and jnp.any(x[:, :7]) for x in padded.values())


@pytest.mark.parametrize("kernel", ["einsum", "xla"])
def test_what_masked_slots_and_other_rows_hold_changes_no_bit(kernel):
    q, k, v = inputs(2, 8, 8, 4, 2, 5)
    visibility = Visibility(causal=True, valid_k=ends(8, 5, 8))
    run = partial(jitted, scale=SCALE, kernel=kernel)
    other = [x.at[1].multiply(-7.0) for x in (q, k, v)]
    other[1:] = [x.at[0, 5:].set(1e4) for x in other[1:]]
    np.testing.assert_array_equal(run(q, k, v, visibility)[0], run(*other, visibility)[0])


@pytest.mark.parametrize(("kernel", "dtype"), [("einsum", "bfloat16"), ("einsum", "float16"), ("xla", "bfloat16")])
def test_half_precision_stays_near_float32_and_keeps_its_dtype(kernel, dtype):
    halved = [x.astype(dtype) for x in inputs(2, 8, 8, 4, 2, 16)]
    out = jitted(*halved, Visibility(causal=True), scale=SCALE, kernel=kernel)
    assert out.dtype == dtype
    exact = slow(*halved, Visibility(causal=True).dense(8, 8))
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=2e-2 if dtype == "bfloat16" else 3e-3)


LONG = {
    "everything": Visibility(),
    "causal": Visibility(causal=True),
    "padding": Visibility(valid_k=ends(256, 100, 256)),
    "causal segments": Visibility(causal=True, segments_q=halves(256), segments_k=halves(256)),
    "causal window": Visibility(causal=True, window=30),
    "window over padding": Visibility(window=130, valid_k=ends(256, 40, 256)),
}


def interpreted(*args):
    return KERNELS["splash"].run(*args, interpret=True)


@pytest.mark.parametrize("name", ["causal", "causal segments", "window over padding"])
def test_splash_equals_einsum_in_values_and_gradients(name):
    q, k, v = inputs(2, 256, 256, 4, 2, 16)
    terms = Terms(LONG[name], SCALE, softcap=2.0 if name == "causal" else None)
    assert_same(outcome(interpreted, q, k, v, terms), outcome(KERNELS["einsum"].run, q, k, v, terms))


def test_splash_attends_to_keys_of_another_length():
    q, k, v = inputs(2, 128, 384, 2, 2, 16)
    terms = Terms(Visibility(segments_q=halves(128), segments_k=halves(384)), SCALE)
    out = jax.jit(lambda *qkv: interpreted(*qkv, terms))(q, k, v)
    np.testing.assert_allclose(out, KERNELS["einsum"].run(q, k, v, terms), atol=2e-6)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (2, 1)])
def test_splash_under_a_mesh_equals_one_device(heads, kv_heads):
    q, k, v = inputs(4, 128, 128, heads, kv_heads, 16)
    terms = Terms(Visibility(causal=True, segments_q=halves(128, 4), segments_k=halves(128, 4)), SCALE)
    expected = outcome(KERNELS["einsum"].run, q, k, v, terms)
    with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)):
        assert_same(outcome(interpreted, q, k, v, terms), expected)


@pytest.mark.parametrize("name", ["everything", "causal segments", "causal window"])
def test_splash_with_queries_split_over_devices_equals_one_device(name):
    """Each device has its own part of the mask, and the keys and values of all."""
    q, k, v = inputs(2, 256, 256, 4, 2, 16)
    terms = Terms(LONG[name], SCALE)
    expected = outcome(KERNELS["einsum"].run, q, k, v, terms)
    with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "sequence", "tensor"), (AxisType.Auto,) * 3)):
        asked = describe(q, k, terms)
        assert_same(outcome(interpreted, q, k, v, terms), expected)
    assert asked.shards == 2


def traced_for(kind, platform):
    """The mesh in force while a program is traced here for another machine."""
    device = AbstractDevice(kind, 1, platform)
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device))


def lowered(visibility, platform):
    """The text of forward and backward pass in bfloat16."""
    q, k = (jax.ShapeDtypeStruct((2, 256, heads, 64), jnp.bfloat16) for heads in (4, 2))

    def loss(q, k, v):
        return attend(q, k, v, visibility, scale=SCALE).astype(jnp.float32).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", LONG)
def test_a_program_for_a_tpu_has_splash_forward_and_backward(name):
    with traced_for("TPU v5 lite", "tpu"):
        assert lowered(LONG[name], "tpu").count("tpu_custom_call") == 3


@pytest.mark.parametrize("name", LONG)
def test_a_program_for_a_gpu_has_cudnn_forward_and_backward(name, monkeypatch):
    # jax asks for the installed library while it traces; this machine needs none to lower the call.
    library = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{library}.check_cudnn_version", lambda: 91000)
    with traced_for("NVIDIA A100-SXM4-40GB", "gpu"):
        text = lowered(LONG[name], "cuda")
    bias = "ScaleBias" if name in ("padding", "causal segments", "window over padding") else ""
    assert text.count("@__cudnn$fmha") == 2
    assert f"@__cudnn$fmha{bias}Softmax(" in text
    assert f"@__cudnn$fmha{bias}SoftmaxBackward(" in text
    assert ("CAUSAL" in text) == (name in ("causal", "causal window"))
    assert (r"sliding_window_length\22: 30" in text) == (name == "causal window")


TPU = Request("tpu", "TPU v5 lite", None, "bfloat16", 256, 256, 4, 2, 64, causal=True)
A100 = replace(TPU, platform="gpu", device_kind="NVIDIA A100", capability=(8, 0))
T4 = replace(A100, device_kind="Tesla T4", capability=(7, 5))
CPU = replace(TPU, platform="cpu", device_kind="cpu", dtype="float32")
CANNOT = [
    ("splash", CPU, "needs a TPU, not cpu"),
    ("splash", replace(TPU, device_kind="TPU v3"), "does not compile for TPU v3"),
    ("splash", replace(TPU, queries=1000, keys=1000), "lengths that divide by 128, not 1000 and 1000"),
    ("splash", replace(TPU, queries=512, keys=512, shards=8), "lengths that divide by 128, not 64 and 512"),
    ("splash", replace(TPU, head_dim=80), "not 80"),
    ("splash", replace(TPU, bias=True), "no bias"),
    ("splash", replace(TPU, start=True), "slot 0"),
    ("splash", replace(TPU, prefix=True), "no prefix"),
    ("splash", replace(TPU, keys=512), "as many keys as queries, not 512 and 256"),
    ("cudnn", CPU, "needs an NVIDIA GPU, not cpu"),
    ("cudnn", replace(A100, device_kind="AMD Instinct MI300X", capability=None), "not AMD Instinct MI300X"),
    ("cudnn", T4, "needs compute capability 8.0, not 7.5"),
    ("cudnn", replace(A100, dtype="float32"), "float16 or bfloat16, not float32"),
    ("cudnn", replace(A100, head_dim=256), "at most 128, not 256"),
    ("cudnn", replace(A100, head_dim=20), "divides by 8"),
    ("cudnn", replace(A100, softcap=True), "no soft-cap"),
    ("cudnn", replace(A100, shards=4), "queries of a row on one device, and these are split over 4"),
    ("cudnn", replace(A100, segments=True, keys=255), "even lengths"),
    ("cudnn", replace(A100, segments=True, bias=True), "no gradient for the bias alone"),
    ("ring", CPU, "splits rows along their length, and these queries lie on one device"),
    ("ring", replace(CPU, shards=4, causal=False, keys=258), "divide over 4 devices as the queries do, not 258"),
    ("ring", replace(CPU, shards=4, keys=512), "as many keys as queries, not 512 and 256"),
    ("ring", replace(CPU, shards=4, bias=True), "no bias"),
    ("ring", replace(CPU, shards=4, start=True), "slot 0"),
    ("xla", replace(A100, softcap=True), "no soft-cap"),
    ("xla", replace(CPU, dtype="float16"), "does not compile for cpu"),
    ("xla", T4, "does not compile below compute capability 8.0"),
]


@pytest.mark.parametrize(("kernel", "request_", "reason"), CANNOT)
def test_a_kernel_that_is_asked_by_name_and_cannot_says_why(kernel, request_, reason):
    with pytest.raises(ValueError, match=f"{kernel!r} cannot do this: .*{reason}"):
        choose(request_, kernel)
    assert choose(request_) != kernel


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (TPU, "splash"),
        (replace(TPU, segments=True, valid=True, softcap=True, window=9), "splash"),
        (replace(TPU, queries=1, start=True), "einsum"),
        (A100, "cudnn"),
        (replace(A100, capability=(9, 0), head_dim=256), "cudnn"),
        (replace(A100, segments=True, prefix=True), "cudnn"),
        (replace(A100, causal=False, bias=True), "cudnn"),
        (replace(TPU, shards=2), "splash"),
        (replace(TPU, shards=2, head_dim=80), "ring"),
        (replace(A100, shards=2), "ring"),
        (replace(A100, shards=2, bias=True), "einsum"),
        (T4, "einsum"),
        (CPU, "einsum"),
    ],
)
def test_the_best_able_kernel_is_chosen_and_the_others_explained(request_, expected):
    assert choose(request_) == expected
    told = dict(explain(request_))
    assert list(told) == list(KERNELS)
    assert [name for name, why in told.items() if why == "chosen"] == [expected]
    assert all(told.values())


def test_einsum_can_do_everything():
    flags = {"valid", "segments", "prefix", "bias", "softcap", "start"}
    everything = replace(CPU, **dict.fromkeys(flags, True), queries=7, keys=9, window=3, head_dim=5)
    assert all(
        KERNELS["einsum"].why_not(replace(everything, platform=each)) is None for each in ("cpu", "gpu", "tpu")
    )


def test_the_request_tells_what_is_asked():
    q, k, _ = inputs(2, 4, 6, 4, 2, 5)
    visibility = Visibility(causal=True, window=2, valid_k=jnp.ones((2, 6), bool), start=jnp.int32(2))
    asked = describe(q, k, Terms(visibility, SCALE, softcap=1.0))
    assert asked == Request(
        "cpu",
        "cpu",
        None,
        "float32",
        4,
        6,
        4,
        2,
        5,
        causal=True,
        window=2,
        valid=True,
        softcap=True,
        start=True,
    )


def test_an_unknown_kernel_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match="auto or one of splash, cudnn, ring, einsum, xla, got 'flash'"):
        choose(CPU, "flash")


def test_shapes_that_do_not_fit_are_an_error_that_shows_them():
    q, k, v = inputs(2, 4, 6, 4, 3, 5)
    with pytest.raises(ValueError, match=r"H a multiple of K; got \(2, 4, 4, 5\), \(2, 6, 3, 5\)"):
        attend(q, k, v, Visibility(), scale=SCALE)
    with pytest.raises(ValueError, match=r"bias of shape \(4, 4, 6\), got \(4, 6, 4\)"):
        attend(q, k[:, :, :2], v[:, :, :2], Visibility(), scale=SCALE, bias_HTS=jnp.zeros((4, 6, 4)))
