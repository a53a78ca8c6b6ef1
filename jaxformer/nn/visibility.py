# B batch, T query length, S key length
"""What each query may see of the keys: described, not drawn, so that fused kernels can read it."""

import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class Visibility:
    """What a query may see: every condition that is given must hold.

    - `causal`: the key is not after the query, or both lie in the prefix (prefix language models: Raffel et
      al. 2020, section 3.2.1).
    - `window`: |query slot - key slot| < window. Under `causal` a query so sees itself and the window - 1
      keys before it, as in Mistral and its reference implementation (which, where not causal, counts
      |difference| <= n: n is window - 1 here).
    - `valid_k`: the key is there at all.
    - `segments_q`, `segments_k`: both are in the same segment. 0 is padding: it sees and serves nobody.
    - `start`: query t stands at slot start + t among the key slots (decoding from a cache). None is 0, and
      known to be 0 while tracing, as some kernels need; an integer turns into an array under `jax.jit`.
    - `slots_k`: key s stands at slot slots_k[s] (a cache that goes round and round); None: at slot s.

    Positions play no part: within a segment the difference of two slots is the difference of their positions.
    """

    causal: bool = struct.field(pytree_node=False, default=False)
    window: int | None = struct.field(pytree_node=False, default=None)
    valid_k: Array | None = None  # bool [B, S]
    segments_q: Array | None = None  # int [B, T]
    segments_k: Array | None = None  # int [B, S]
    prefix_q: Array | None = None  # bool [B, T]
    prefix_k: Array | None = None  # bool [B, S]
    start: Array | int | None = None  # scalar
    slots_k: Array | None = None  # int [S]

    @property
    def sees_all(self) -> bool:
        """Nothing is hidden from anybody: there is no mask to apply."""
        return not self.causal and self.window is None and self.valid_k is None and self.segments_q is None

    def dense(self, queries: int, keys: int) -> Array:
        """The same as a boolean array [B, T, S], or [1, T, S] where no row of the batch differs from another.

        Raises ValueError for half a pair of segments or prefixes.
        """
        prefix, segments = self._pair("prefix"), self._pair("segments")
        start = 0 if self.start is None else self.start
        slots_S = jnp.arange(keys) if self.slots_k is None else self.slots_k
        difference_TS = start + jnp.arange(queries)[:, None] - slots_S[None, :]
        seen_BTS = jnp.ones((1, queries, keys), bool)
        if self.causal:
            seen_BTS = (difference_TS >= 0)[None]
            if prefix is not None:
                seen_BTS = seen_BTS | (prefix[0][:, :, None] & prefix[1][:, None, :])
        if self.window is not None:
            seen_BTS = seen_BTS & (jnp.abs(difference_TS) < self.window)[None]
        if self.valid_k is not None:
            seen_BTS = seen_BTS & self.valid_k[:, None, :]
        if segments is not None:
            same_BTS = segments[0][:, :, None] == segments[1][:, None, :]
            seen_BTS = seen_BTS & same_BTS & (segments[0] != 0)[:, :, None]
        return seen_BTS

    def real(self) -> Array | None:
        """Which tokens are no padding, bool [B, T]; None where all are, or where keys are those of a cache."""
        if self.start is not None:
            return None
        if self.segments_q is not None:
            seen = self.segments_q != 0
            return seen if self.valid_k is None else seen & self.valid_k
        return self.valid_k

    def sighted(self, queries: int, keys: int) -> Array | None:
        """Which queries see anything at all, bool [B or 1, T]; None where all do whatever the arrays hold."""
        always_something = (
            self.valid_k is None and self.segments_q is None and (self.window is None or queries <= keys)
        )
        return None if always_something else self.dense(queries, keys).any(axis=-1)

    def _pair(self, what: str) -> tuple[Array, Array] | None:
        of_q, of_k = getattr(self, f"{what}_q"), getattr(self, f"{what}_k")
        if (of_q is None) != (of_k is None):
            alone = f"{what}_q" if of_k is None else f"{what}_k"
            raise ValueError(f"Visibility: expected both of {what}_q and {what}_k or neither, got {alone} alone")
        return None if of_q is None else (of_q, of_k)
