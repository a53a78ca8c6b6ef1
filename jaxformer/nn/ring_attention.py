# B batch, T query length, S key length, H heads, K key heads, G = H/K, N = T * G, C head dim, P stretches of a device
"""Ring attention: keys and values go round, and each device weighs them as they pass (Liu et al., 2023, section 3).

The tokens of a row lie on several devices. None ever holds the keys of all, nor scores of more than BLOCK keys at
once: a softmax is kept running (Milakov and Gimelshein, 2018, algorithm 3). The gradient takes a second round, on
which those of keys and values travel behind them.

Under a causal mask the device with a row's end would have all the work. So each takes two stretches, one of the
front and one of the back (Dubey et al., 2024, section 3.3.2): of the four pairs that they make with another device's
two are hidden, whichever it is, and passed over.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxformer.nn.axes import partition, partition_heads, split_axes
from jaxformer.nn.visibility import Visibility
from jaxformer.nn.weigh import HIDDEN, Terms, heads_first, heads_last, shaped

BLOCK = 512
"""Keys whose scores are held at once, where their number divides by it or by a part of it."""
OF_QUERIES, OF_KEYS = ("segments_q", "prefix_q"), ("valid_k", "segments_k", "prefix_k")
Seen = dict[str, Array | None]
"""Arrays of a Visibility by their names, [B, T]."""


class Queries(NamedTuple):
    """A stretch of a row; where there are several, each array has P in front."""

    q_BKNC: Array
    seen: Seen
    start: Array
    """Slot of the first."""


class Keys(NamedTuple):
    """A stretch of a row; where there are several, each array has P in front."""

    k_BKSC: Array
    v_BKSC: Array
    seen: Seen
    start: Array
    """Slot of the first."""


class Weighed(NamedTuple):
    """The softmax over the keys that have passed, and what it makes of their values; float32."""

    highest_BKN: Array
    total_BKN: Array
    """Of the exponentials, each relative to the highest."""
    values_BKNC: Array


Visit = Callable[[Any, Any, Keys, bool], tuple[Any, Any]]
"""(queries and what belongs to them, what is made of these so far, keys that they meet, causal) -> (what is made of
them now, what the keys get of it)."""


@dataclass(frozen=True)
class Ring:
    """How the devices of a row share their work; known while tracing."""

    axis: str
    devices: int
    turns: int
    """Devices whose keys a query may see, its own counted."""
    balanced: bool
    """Each has a stretch of the front and one of the back; else a single one."""
    queries: int
    """Of a stretch."""
    causal: bool
    window: int | None
    softcap: float | None

    def passed(self, leaves: Any, by: int) -> Any:
        """From each device to the one so many places on."""
        places = [(i, (i + by) % self.devices) for i in range(self.devices)]
        return jax.tree.map(lambda leaf: lax.ppermute(leaf, self.axis, places), leaves)

    def starts(self, length: int) -> Array:
        """Slots where this device's stretches of so many tokens begin, int32 [P]."""
        here = lax.axis_index(self.axis)
        return length * jnp.stack([here, 2 * self.devices - 1 - here] if self.balanced else [here])


def attend_in_ring(q_BTHC: Array, k_BSKC: Array, v_BSKC: Array, terms: Terms) -> Array:
    """What `attend` gives, where the mesh in force splits queries and keys along their length."""
    visibility, scale, softcap, _ = terms
    (axis,) = split_axes(q_BTHC.shape[1:2], ("length",))
    devices = jax.sharding.get_abstract_mesh().shape[axis]
    own, window = q_BTHC.shape[1] // devices, visibility.window
    never_ahead = visibility.causal and visibility.prefix_q is None
    turns = min(devices, 1 + math.ceil((window - 1) / own)) if never_ahead and window is not None else devices
    balanced = never_ahead and window is None and own % 2 == 0
    ring = Ring(axis, devices, turns, balanced, own // (1 + balanced), visibility.causal, window, softcap)
    spec_q, spec_k, copies = partition_heads(q_BTHC.shape, k_BSKC.shape, "length")
    k_BSKC, v_BSKC = (x if copies == 1 else jnp.repeat(x, copies, axis=2) for x in (k_BSKC, v_BSKC))
    seen = {name: getattr(visibility, name) for name in OF_QUERIES + OF_KEYS}

    def local(q_BTHC: Array, k_BSKC: Array, v_BSKC: Array, seen: Seen) -> Array:
        key_heads = k_BSKC.shape[2]
        q_PBTHC, k_PBSKC, v_PBSKC, seen = jax.tree.map(
            functools.partial(_dealt, ring), (q_BTHC * jnp.asarray(scale, q_BTHC.dtype), k_BSKC, v_BSKC, seen)
        )
        first = jax.vmap(functools.partial(heads_first, key_heads=key_heads))
        out_PBKNC = _attended(ring, first(q_PBTHC), first(k_PBSKC), first(v_PBSKC), seen)
        return _returned(ring, jax.vmap(functools.partial(heads_last, queries=ring.queries))(out_PBKNC))

    of_seen = {name: None if x is None else partition(x.shape, ("batch", "length")) for name, x in seen.items()}
    mapped = jax.shard_map(local, in_specs=(spec_q, spec_k, spec_k, of_seen), out_specs=spec_q, check_vma=False)
    return mapped(q_BTHC, k_BSKC, v_BSKC, seen)


def _dealt(ring: Ring, x: Array) -> Array:
    """A device's own tokens [B, T, ...] -> the stretches that are its work, [P, B, T / P, ...]."""
    if not ring.balanced:
        return x[None]
    halves = jnp.split(x, 2, axis=1)
    return _sorted(ring, *(lax.ppermute(half, ring.axis, _deal(ring, i)) for i, half in enumerate(halves)))


def _returned(ring: Ring, x: Array) -> Array:
    """The inverse of `_dealt`."""
    if not ring.balanced:
        return x[0]
    back = [[(to, of) for of, to in _deal(ring, i)] for i in range(2)]
    halves = [lax.ppermute(half, ring.axis, back[i]) for i, half in enumerate(_sorted(ring, x[0], x[1]))]
    return jnp.concatenate(halves, axis=1)


def _deal(ring: Ring, half: int) -> list[tuple[int, int]]:
    """(device, which one it hands that half of its tokens to): of 2n stretches i and 2n - 1 - i go to device i."""
    last = 2 * ring.devices - 1
    return [(i, min(2 * i + half, last - 2 * i - half)) for i in range(ring.devices)]


def _sorted(ring: Ring, first: Array, second: Array) -> Array:
    """The two, [2, ...], the other way round on odd devices: there the front's stretch is a second half."""
    is_odd = lax.axis_index(ring.axis) % 2 == 1
    return jnp.where(is_odd, jnp.stack([second, first]), jnp.stack([first, second]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attended(ring: Ring, q_PBKNC: Array, k_PBKSC: Array, v_PBKSC: Array, seen: Seen) -> Array:
    """The values of all devices' keys weighed by the softmax of q.k, [P, B, K, N, C]; 0 where none is seen."""
    return _forward(ring, q_PBKNC, k_PBKSC, v_PBKSC, seen)[0]


def _forward(ring: Ring, q: Array, k: Array, v: Array, seen: Seen) -> tuple[Array, Any]:
    queries, keys = _stretches(ring, q, k, v, seen)
    rows = q.shape[:-1]
    none = Weighed(jnp.full(rows, -jnp.inf), jnp.zeros(rows), jnp.zeros(q.shape))
    found, _ = _go_round(ring, functools.partial(_weigh, ring), queries, none, keys, ())
    is_blind = found.highest_BKN == HIDDEN
    out = jnp.where(is_blind[..., None], 0, found.values_BKNC / found.total_BKN[..., None]).astype(v.dtype)
    log_total = jnp.where(is_blind, jnp.inf, found.highest_BKN + jnp.log(found.total_BKN))
    return out, (q, k, v, seen, out, log_total)


def _backward(ring: Ring, kept: tuple[Any, ...], grad: Array) -> tuple[Any, ...]:
    q, k, v, seen, out, log_total = kept
    queries, keys = _stretches(ring, q, k, v, seen)
    even = jnp.einsum("PBKNC,PBKNC->PBKN", grad, out, preferred_element_type=jnp.float32)
    zeros = [jnp.zeros(x.shape) for x in (q, k, v)]
    visit = functools.partial(_differentiate, ring)
    of_q, of_keys = _go_round(ring, visit, (queries, grad, log_total, even), zeros[0], keys, tuple(zeros[1:]))
    return *(of_x.astype(x.dtype) for of_x, x in zip((of_q, *of_keys), (q, k, v), strict=True)), None


_attended.defvjp(_forward, _backward)


def _stretches(ring: Ring, q: Array, k: Array, v: Array, seen: Seen) -> tuple[Queries, Keys]:
    starts, of_keys = ring.starts(ring.queries), ring.starts(k.shape[3])
    # Without this tie to what differs between layers jax makes the masks of all turns before the loop over layers.
    q, starts, of_keys, seen = lax.optimization_barrier((q, starts, of_keys, seen))
    first, second = ({name: seen[name] for name in names} for names in (OF_QUERIES, OF_KEYS))
    return Queries(q, first, starts), Keys(k, v, second, of_keys)


def _go_round(ring: Ring, visit: Visit, queries: Any, made: Any, keys: Keys, given: Any) -> tuple[Any, Any]:
    """(what is made of this device's queries, what is made of its keys) once all have met that see each other.

    queries: Queries, and what else belongs to them; made, given: what it begins with. All [P, ...].
    """

    def meet(i: Any, j: Any, causal: bool, made: Any, given: Any, keys: Keys) -> tuple[Any, Any]:
        own, more = visit(_at(queries, i), _at(made, i), _at(keys, j), causal)
        made = jax.tree.map(lambda x, new: x.at[i].set(new), made, own)
        return made, jax.tree.map(lambda x, new: x.at[j].add(new), given, more)

    def turn(carry: tuple[Any, Any, Keys], _: None) -> tuple[tuple[Any, Any, Keys], None]:
        made, given, keys = carry
        # Nobody waits for these: the keys are passed on while they are worked with, and what is given follows them.
        further, given = ring.passed(keys, 1), ring.passed(given, 1)
        if ring.balanced:
            made, given = meet(1, 0, False, made, given, keys)
            both = jnp.where(keys.start[0] <= starts[0], 0, 1)
            made, given = meet(both, both, True, made, given, keys)
        else:
            made, given = meet(0, 0, ring.causal, made, given, keys)
        return (made, given, further), None

    starts, of_own = ring.starts(ring.queries), given
    if ring.balanced:
        made, of_own = meet(1, 1, True, made, given, keys)  # the back's stretch with itself
    (made, given, _), _ = lax.scan(turn, (made, given, keys), length=ring.turns)
    return made, jax.tree.map(jnp.add, ring.passed(given, 1 - ring.turns), of_own)


def _at(leaves: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], leaves)


def _weigh(ring: Ring, queries: Queries, so_far: Weighed, keys: Keys, causal: bool) -> tuple[Weighed, tuple[()]]:
    """See Visit: the softmax with these keys in it."""

    def step(so_far: Weighed, keys: Keys) -> tuple[Weighed, tuple[()]]:
        scores_BKNS = _capped(ring, queries, keys, causal)(_products(queries, keys))
        highest = jnp.maximum(so_far.highest_BKN, scores_BKNS.max(-1))
        shrunk = jnp.exp(so_far.highest_BKN - highest)
        weights_BKNS = jnp.exp(scores_BKNS - highest[..., None])
        values = _float32("BKNS,BKSC->BKNC", weights_BKNS.astype(keys.v_BKSC.dtype), keys.v_BKSC)
        return Weighed(
            highest,
            so_far.total_BKN * shrunk + weights_BKNS.sum(-1),
            so_far.values_BKNC * shrunk[..., None] + values,
        ), ()

    return _by_blocks(step, so_far, keys)


def _differentiate(
    ring: Ring, given: tuple[Queries, Array, Array, Array], so_far: Array, keys: Keys, causal: bool
) -> tuple[Array, tuple[Array, Array]]:
    """See Visit: the gradients of queries; of these keys and their values.

    given: the queries, the gradient of what attention gave them [B, K, N, C], the logarithm of their exponentials'
    sum, and that gradient's product with what it gave [B, K, N]: the mean of its products with values.
    """
    queries, grad_BKNC, log_total, even = given

    def step(so_far: Array, keys: Keys) -> tuple[Array, tuple[Array, Array]]:
        k, v = keys.k_BKSC, keys.v_BKSC
        scores_BKNS, back = jax.vjp(_capped(ring, queries, keys, causal), _products(queries, keys))
        weights_BKNS = jnp.exp(scores_BKNS - log_total[..., None])
        of_weights = _float32("BKNC,BKSC->BKNS", grad_BKNC, v)
        (of_products,) = back(weights_BKNS * (of_weights - even[..., None]))
        of_products = of_products.astype(k.dtype)
        of_k = _float32("BKNS,BKNC->BKSC", of_products, queries.q_BKNC)
        of_v = _float32("BKNS,BKNC->BKSC", weights_BKNS.astype(v.dtype), grad_BKNC)
        return so_far + _float32("BKNS,BKSC->BKNC", of_products, k), (of_k, of_v)

    return _by_blocks(step, so_far, keys)


def _products(queries: Queries, keys: Keys) -> Array:
    return _float32("BKNC,BKSC->BKNS", queries.q_BKNC, keys.k_BKSC)


def _float32(terms: str, *given: Array) -> Array:
    return jnp.einsum(terms, *given, preferred_element_type=jnp.float32)


def _capped(ring: Ring, queries: Queries, keys: Keys, causal: bool) -> Callable[[Array], Array]:
    """From products to scores, [B, K, N, S]."""
    slots = keys.start + jnp.arange(keys.k_BKSC.shape[2])
    visibility = Visibility(causal, ring.window, **queries.seen, **keys.seen, start=queries.start, slots_k=slots)

    def scores(products_BKNS: Array) -> Array:
        B, K, N, S = products_BKNS.shape
        split = products_BKNS.reshape(B, K, ring.queries, -1, S)
        return shaped(split, Terms(visibility, 1.0, ring.softcap)).reshape(B, K, N, S)

    return scores


def _by_blocks(step: Callable[[Any, Keys], tuple[Any, Any]], so_far: Any, keys: Keys) -> tuple[Any, Any]:
    """step(so far, a block of keys) -> (so far, of the block [B, K, block, C]), one block behind the other."""
    length = keys.k_BKSC.shape[2]
    size = math.gcd(length, BLOCK)
    if length <= BLOCK or size < BLOCK // 8:
        return step(so_far, keys)

    def block(so_far: Any, first: Array) -> tuple[Any, Any]:
        cut = lambda axis: lambda x: lax.dynamic_slice_in_dim(x, first, size, axis)
        k, v, seen = cut(2)(keys.k_BKSC), cut(2)(keys.v_BKSC), jax.tree.map(cut(1), keys.seen)
        return step(so_far, Keys(k, v, seen, keys.start + first))

    so_far, found = lax.scan(block, so_far, jnp.arange(0, length, size))
    return so_far, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], length, -1), found)
