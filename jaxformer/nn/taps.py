"""Points inside a model that can be looked at and changed. B batch, T length, S keys, D width, H heads, C head dim.

Each is known by the path of its module and a name in TAPS, as decoder/blocks/attention/probabilities. Both ways are
Linen's own. What `apply` is told is mutable comes back: `mutable=["probabilities"]` gives the attention probabilities
of every block, stacked over layers like the parameters. And what stands in the collection "edits" under the path of a
tap changes what passes there. A model that is not asked is the same program as one without taps.
"""

from flax import linen as nn
from flax import struct
from jax import Array

EDITS = "edits"
TAPS = {
    "embedded": "[B, T, D], what the first block gets",
    "query": "[B, T, H, C], as it is compared: normed and rotated",
    "key": "[B, S, K, C], likewise",
    "value": "[B, S, K, C]",
    "probabilities": "float32 [B, H, T, S], how much each query looks at each key",
    "heads": "[B, T, H, C], what each head found, before the output projection",
    "activations": "[B, T, F], inside the feed-forward, gated where it has a gate",
    "router": "float32 [B, T, E], the probability of each expert",
    "attention_output": "[B, T, D], what self attention adds to the residual stream",
    "cross_output": "[B, T, D], what cross attention adds",
    "mlp_output": "[B, T, D], what the feed-forward adds",
    "residual": "[B, T, D], the residual stream behind the block",
}


@struct.dataclass
class Edit:
    """Makes `x * keep + add` of what passes a tap; both broadcast to its shape, with an axis of layers before it.

    keep 0 ablates, 0 and a value replaces, 1 and a vector steers; a head mask is a keep of [L, 1, 1, H, 1] on heads.
    """

    keep: Array
    add: Array


def tap(module: nn.Module, name: str, x: Array) -> Array:
    """`x` as the edit of this point makes it, if there is one; told of where asked for."""
    if module.is_initializing():
        return x
    if module.has_variable(EDITS, name):
        edit: Edit = module.get_variable(EDITS, name)
        x = (x * edit.keep + edit.add).astype(x.dtype)
    if module.is_mutable_collection(name):
        module.put_variable(name, name, x)
    return x


def watched(module: nn.Module, name: str) -> bool:
    """Whether anybody asks for this point of the module, or changes it."""
    return not module.is_initializing() and (module.is_mutable_collection(name) or module.has_variable(EDITS, name))
