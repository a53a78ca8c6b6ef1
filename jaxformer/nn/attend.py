# B batch, T query length, S key length, H heads, K key heads, G = H/K, C head dim
"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) by a kernel that can express it.

A kernel states what it cannot do as a sentence (`why_not`); the first of KERNELS with nothing to say runs.
They agree to rounding: softmax in float32; a query that sees nothing gets zeros, with zero gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer.nn.axes import constrain, partition_heads, shards
from jaxformer.nn.ring_attention import attend_in_ring
from jaxformer.nn.visibility import Visibility
from jaxformer.nn.weigh import Terms, heads_last, softmax, zero_the_blind


@dataclass(frozen=True)
class Request:
    """What is known of a call before it is traced: all that the choice of a kernel depends on."""

    platform: str  # "cpu", "gpu", "tpu"
    device_kind: str  # as jax names it: "TPU v5 lite"
    capability: tuple[int, int] | None  # CUDA compute capability, (7, 5) for a T4; None elsewhere
    dtype: str
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = False
    window: int | None = None
    valid: bool = False
    segments: bool = False
    prefix: bool = False
    bias: bool = False
    softcap: bool = False
    start: bool = False  # queries begin at a slot that is not known to be 0
    shards: int = 1  # devices that the queries of a row are split over

    @property
    def dense(self) -> bool:
        """No shape of mask says it: a kernel without segments needs it drawn, query by key."""
        return (
            self.valid or self.segments or self.prefix or self.start or (self.window is not None and not self.causal)
        )


@dataclass(frozen=True)
class Kernel:
    """One way to do it, and what it cannot do."""

    why_not: Callable[[Request], str | None]
    run: Callable[[Array, Array, Array, Terms], Array]
    keys: str = "keys"
    """What the length of its keys is called in axes.LOGICAL_AXES: all of a row's on each device, or "length"."""


def attend(
    q_BTHC: Array,
    k_BSKC: Array,
    v_BSKC: Array,
    visibility: Visibility,
    *,
    scale: float,
    softcap: float | None = None,
    bias_HTS: Array | None = None,
    kernel: str = "auto",
) -> Array:
    """Weighted values of the keys that each query may see, [B, T, H, C] in the dtype of the queries.

    The weights are softmax(c * tanh(scale * q.k / c) + bias), without the tanh where the soft-cap c is None.
    Consecutive groups of H/K query heads share a key head (Ainslie et al. 2023, section 2.2).

    Raises ValueError for shapes that do not fit, an unknown kernel, and a named kernel that cannot do this.
    """
    _check_shapes(q_BTHC, k_BSKC, v_BSKC, bias_HTS)
    terms = Terms(visibility, scale, softcap, bias_HTS)
    chosen = KERNELS[choose(describe(q_BTHC, k_BSKC, terms), kernel)]
    k_BSKC, v_BSKC = (constrain(x, ("batch", chosen.keys, "kv_heads", "head_dim")) for x in (k_BSKC, v_BSKC))
    return chosen.run(q_BTHC, k_BSKC, v_BSKC, terms)


def describe(q_BTHC: Array, k_BSKC: Array, terms: Terms) -> Request:
    """The request that these arguments of `attend` make on the device in force."""
    platform, device_kind, capability = device_in_force()
    visibility = terms.visibility
    return Request(
        platform=platform,
        device_kind=device_kind,
        capability=capability,
        dtype=str(q_BTHC.dtype),
        queries=q_BTHC.shape[1],
        keys=k_BSKC.shape[1],
        heads=q_BTHC.shape[2],
        kv_heads=k_BSKC.shape[2],
        head_dim=q_BTHC.shape[3],
        causal=visibility.causal,
        window=visibility.window,
        valid=visibility.valid_k is not None,
        segments=visibility.segments_q is not None,
        prefix=visibility.prefix_q is not None,
        bias=terms.bias_HTS is not None,
        softcap=terms.softcap is not None,
        start=visibility.start is not None,
        shards=shards(q_BTHC.shape[1:2], ("length",)),
    )


def device_in_force() -> tuple[str, str, tuple[int, int] | None]:
    """Platform, kind and CUDA compute capability of the mesh in force, else of the default device.

    The mesh comes first so that a program traced here for another machine gets that machine's kernel.
    """
    device = jax.devices()[0]
    meant = jax.sharding.get_abstract_mesh().abstract_device
    if meant is not None and (meant.platform, meant.device_kind) != (device.platform, device.device_kind):
        return meant.platform, meant.device_kind, None
    capability = getattr(device, "compute_capability", None)
    numbers = str(capability).split(".") if capability is not None else []
    return (
        device.platform,
        device.device_kind,
        (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None,
    )


def choose(request: Request, kernel: str = "auto") -> str:
    """The name of the kernel that runs this; ValueError where the one asked for is unknown or not able."""
    if kernel == "auto":
        return next(name for name, each in KERNELS.items() if each.why_not(request) is None)
    if kernel not in KERNELS:
        raise ValueError(f"attention kernel: expected auto or one of {', '.join(KERNELS)}, got {kernel!r}")
    reason = KERNELS[kernel].why_not(request)
    if reason is not None:
        raise ValueError(
            f"attention kernel {kernel!r} cannot do this: {reason}; kernel='auto' takes {choose(request)!r}"
        )
    return kernel


def explain(request: Request) -> list[tuple[str, str]]:
    """(kernel, "chosen" or the reason why not) for every kernel, in order of preference."""
    chosen = choose(request)
    return [
        (
            name,
            "chosen" if name == chosen else each.why_not(request) or "able, but comes after the chosen one",
        )
        for name, each in KERNELS.items()
    ]


def _check_shapes(q_BTHC: Array, k_BSKC: Array, v_BSKC: Array, bias_HTS: Array | None) -> None:
    batch, queries, heads, head_dim = q_BTHC.shape
    keys, kv_heads = k_BSKC.shape[1:3]
    if k_BSKC.shape != (batch, keys, kv_heads, head_dim) or v_BSKC.shape != k_BSKC.shape or heads % kv_heads:
        raise ValueError(
            "attend: expected queries [B, T, H, C] with keys and values [B, S, K, C], H a multiple of K; "
            f"got {q_BTHC.shape}, {k_BSKC.shape}, {v_BSKC.shape}"
        )
    if bias_HTS is not None and bias_HTS.shape != (heads, queries, keys):
        raise ValueError(f"attend: expected a bias of shape {(heads, queries, keys)}, got {bias_HTS.shape}")


def _run_einsum(q_BTHC: Array, k_BSKC: Array, v_BSKC: Array, terms: Terms) -> Array:
    (B, T), (S, K) = q_BTHC.shape[:2], k_BSKC.shape[1:3]
    weights_BKNS = softmax(q_BTHC, k_BSKC, terms).astype(v_BSKC.dtype).reshape(B, K, -1, S)
    out_BKNC = jnp.einsum("BKNS,BKSC->BKNC", weights_BKNS, v_BSKC.transpose(0, 2, 1, 3))
    return zero_the_blind(heads_last(out_BKNC, T), terms.visibility, S)


def _why_not_xla(request: Request) -> str | None:
    if request.softcap:
        return "jax.nn.dot_product_attention has no soft-cap"
    if request.platform == "gpu" and request.dtype == "bfloat16" and (request.capability or (8, 0)) < (8, 0):
        return "in bfloat16 it does not compile below compute capability 8.0"
    if request.platform != "gpu" and request.dtype == "float16":
        return f"in float16 it does not compile for {request.platform}"
    return None


def _run_xla(q_BTHC: Array, k_BSKC: Array, v_BSKC: Array, terms: Terms) -> Array:
    visibility, scale, _, bias_HTS = terms
    queries, keys = q_BTHC.shape[1], k_BSKC.shape[1]
    mask = None if visibility.sees_all else visibility.dense(queries, keys)[:, None]
    bias = None if bias_HTS is None else bias_HTS[None]
    out_BTHC = jax.nn.dot_product_attention(q_BTHC, k_BSKC, v_BSKC, bias, mask, scale=scale, implementation="xla")
    return zero_the_blind(out_BTHC, visibility, keys)


def _why_not_cudnn(request: Request) -> str | None:
    if request.platform != "gpu" or "AMD" in request.device_kind:
        return f"needs an NVIDIA GPU, not {request.device_kind}"
    capability = request.capability or (8, 0)
    if capability < (8, 0):
        return f"needs compute capability 8.0, not {capability[0]}.{capability[1]}"
    if request.dtype not in ("float16", "bfloat16"):
        return f"needs float16 or bfloat16, not {request.dtype}"
    largest = 256 if capability >= (9, 0) else 128
    if request.head_dim % 8 or request.head_dim > largest:
        return f"needs a head_dim that divides by 8, at most {largest}, not {request.head_dim}"
    if request.softcap:
        return "has no soft-cap"
    if request.shards > 1:
        return f"wants all queries of a row on one device, and these are split over {request.shards}"
    if (request.dense or request.bias) and (request.queries % 2 or request.keys % 2):
        return f"needs even lengths under a drawn mask or a bias, not {request.queries} and {request.keys}"
    if request.dense and request.bias:
        return "adds a drawn mask to the bias, and then has no gradient for the bias alone"
    return None


def _run_cudnn(q_BTHC: Array, k_BSKC: Array, v_BSKC: Array, terms: Terms) -> Array:
    """Flash attention of cuDNN. Lowered for CUDA in the tests; not executed on a GPU yet."""
    visibility, scale, _, bias_HTS = terms
    queries, keys = q_BTHC.shape[1], k_BSKC.shape[1]
    request = describe(q_BTHC, k_BSKC, terms)
    causal = visibility.causal and not request.dense
    out_BTHC = jax.nn.dot_product_attention(
        q_BTHC,
        k_BSKC,
        v_BSKC,
        None if bias_HTS is None else bias_HTS[None].astype(q_BTHC.dtype),
        visibility.dense(queries, keys)[:, None] if request.dense else None,
        scale=scale,
        is_causal=causal,
        local_window_size=(visibility.window - 1, 0) if causal and visibility.window is not None else None,
        implementation="cudnn",
    )
    return zero_the_blind(out_BTHC, visibility, keys)


def _why_not_ring(request: Request) -> str | None:
    if request.shards == 1:
        return "needs a mesh that splits rows along their length, and these queries lie on one device"
    if request.keys % request.shards:
        return f"needs keys that divide over {request.shards} devices as the queries do, not {request.keys}"
    if request.bias:
        return "has no bias on the scores"
    if request.start:
        return "needs queries that begin at slot 0, not behind those of a cache"
    if (request.causal or request.window is not None) and request.queries != request.keys:
        return f"a causal or window mask needs as many keys as queries, not {request.keys} and {request.queries}"
    return None


def _why_not_splash(request: Request) -> str | None:
    if request.platform != "tpu":
        return f"needs a TPU, not {request.platform}"
    if any(old in request.device_kind for old in ("v2", "v3")):
        return f"does not compile for {request.device_kind}"
    queries = request.queries // request.shards
    if queries % 128 or request.keys % 128:
        return f"needs lengths that divide by 128, not {queries} and {request.keys}"
    if request.head_dim not in (16, 32, 64, 128):
        return f"needs a head_dim of 16, 32, 64 or 128, not {request.head_dim}"
    if request.bias:
        return "has no bias on the scores"
    if request.prefix or request.start:
        return "its masks are static: no prefix, and queries that begin at slot 0"
    if (request.causal or request.window is not None) and request.queries != request.keys:
        return f"a causal or window mask needs as many keys as queries, not {request.keys} and {request.queries}"
    return None


def _run_splash(q_BTHC: Array, k_BSKC: Array, v_BSKC: Array, terms: Terms, interpret: bool = False) -> Array:
    """Splash attention; the compiler does not partition such kernels, so a mesh in force is mapped over.

    The tests execute it by the interpreter alone (`interpret`), and lower it for TPU: not run on a TPU yet.
    """
    visibility, scale, softcap, _ = terms
    spec_q, spec_k, copies = partition_heads(q_BTHC.shape, k_BSKC.shape, "keys")
    k_BSKC, v_BSKC = (x if copies == 1 else jnp.repeat(x, copies, axis=2) for x in (k_BSKC, v_BSKC))
    (queries, heads), keys = q_BTHC.shape[1:3], k_BSKC.shape[1]
    ids = _segment_ids(visibility, q_BTHC.shape[:2], k_BSKC.shape[:2])
    own = queries // shards((queries,), ("length",))
    # A mask that hides nothing is of one part, the same for all devices: splash cannot cut it.
    masked = queries if visibility.causal or visibility.window is not None else own
    # Made anew in each trace: it holds arrays, which a cache would leak from one trace into another.
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([_splash_mask(masked, keys, visibility)] * heads),
        block_sizes=_splash_blocks(own, keys),
        attn_logits_soft_cap=softcap,
        interpret=interpret,
        head_shards=shards((heads,), ("heads",)),
        q_seq_shards=masked // own,
    )

    def local(kernel: Any, q_BTHC: Array, k_BSKC: Array, v_BSKC: Array, ids: splash.SegmentIds | None) -> Array:
        heads_first = [x.transpose(0, 2, 1, 3) for x in (q_BTHC, k_BSKC, v_BSKC)]
        return jax.vmap(kernel, (0, 0, 0, 0))(*heads_first, ids).transpose(0, 2, 1, 3)

    if spec_q is not None and spec_k is not None:
        # A device's part of the mask goes with its heads and its queries.
        parts = P(spec_q[2], spec_q[1] if masked > own else None)
        of_kernel = kernel.manual_sharding_spec(NamedSharding(jax.sharding.get_abstract_mesh(), parts))
        of_ids = None if ids is None else splash.SegmentIds(P(*spec_q[:2]), P(*spec_k[:2]))
        specs = (of_kernel, spec_q, spec_k, spec_k, of_ids)
        local = jax.shard_map(local, in_specs=specs, out_specs=spec_q, check_vma=False)
    out_BTHC = local(kernel, q_BTHC * jnp.asarray(scale, q_BTHC.dtype), k_BSKC, v_BSKC, ids)
    return zero_the_blind(out_BTHC.astype(q_BTHC.dtype), visibility, keys)


def _segment_ids(
    visibility: Visibility, shape_q: tuple[int, ...], shape_k: tuple[int, ...]
) -> splash.SegmentIds | None:
    """Ids for a kernel that merely compares them: a key that serves nobody gets -1, which no query has."""
    ids_q, ids_k = visibility.segments_q, visibility.segments_k
    if ids_q is None or ids_k is None:
        if visibility.valid_k is None:
            return None
        ids_q, ids_k = jnp.ones(shape_q, jnp.int32), jnp.ones(shape_k, jnp.int32)
    serves = ids_k != 0 if visibility.valid_k is None else (ids_k != 0) & visibility.valid_k
    return splash.SegmentIds(ids_q, jnp.where(serves, ids_k, -1))


def _splash_mask(queries: int, keys: int, visibility: Visibility) -> splash.Mask:
    if visibility.window is None:
        return (splash.CausalMask if visibility.causal else splash.FullMask)((queries, keys))
    before = visibility.window - 1
    return splash.LocalMask((queries, keys), (before, 0 if visibility.causal else before), 0)


def _splash_blocks(queries: int, keys: int) -> splash.BlockSizes:
    """The largest blocks, up to 512, that divide the lengths: a default, not tuned on a TPU."""
    q, k = (next(size for size in (512, 256, 128) if length % size == 0) for length in (queries, keys))
    return splash.BlockSizes(
        block_q=q,
        block_kv=k,
        block_q_dkv=q,
        block_kv_dkv=k,
        block_q_dq=q,
        block_kv_dq=k,
    )


KERNELS: dict[str, Kernel] = {
    "splash": Kernel(_why_not_splash, _run_splash),
    "cudnn": Kernel(_why_not_cudnn, _run_cudnn),
    "ring": Kernel(_why_not_ring, attend_in_ring, "length"),
    "einsum": Kernel(lambda request: None, _run_einsum),
    "xla": Kernel(_why_not_xla, _run_xla),
}
"""In order of preference. xla is einsum in other words, and there to be asked for by name."""
