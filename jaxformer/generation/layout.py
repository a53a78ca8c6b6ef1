"""How parameters lie while they decode. L layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.nn import linear
from jaxformer.nn.linear import Quantized, Turned


def per_layer(variables: dict[str, Any]) -> dict[str, Any]:
    """The same variables with the decoder's blocks as a list of L layers, each a view without a copy.

    On one CPU a loop over layers reads the weights where they lie; anywhere else the variables come back as
    they are, and are scanned. Slices taken inside a decoding loop would be copied at every token.
    """
    can = _can_be_listed(variables["params"])
    return {name: _listed(held) if can else held for name, held in variables.items()}


def for_decoding(params: dict[str, Any]) -> dict[str, Any]:
    """The same parameters as they decode fastest on one CPU: hold these and drop the others, and nothing lies twice.

    There the decoder's blocks become a list of one tree a layer, and their kernels `nn.linear.Turned`, which is a
    copy of them; anywhere else, and of kernels in few bits, the tree comes back as it is. What takes parameters to
    generate takes these; training, saving and sharding want the others.
    """
    params = per_layer({"params": params})["params"]
    blocks = params.get("decoder", {}).get("blocks")
    if not isinstance(blocks, list):
        return params
    return params | {"decoder": params["decoder"] | {"blocks": [_turned(block) for block in blocks]}}


def _turned(block: dict[str, Any], path: str = "decoder/blocks") -> dict[str, Any]:
    return {name: _leaf(held, f"{path}/{name}") for name, held in block.items()}


def _leaf(held: Any, path: str) -> Any:
    if isinstance(held, dict):
        return _turned(held, path)
    stacked, inputs = linear.axes(path) or (0, 0)
    if stacked != 1 or isinstance(held, Turned):
        return held
    order = (*range(inputs, held.ndim), *range(inputs))
    return Turned(jnp.transpose(held, order))


def _can_be_listed(params: dict[str, Any]) -> bool:
    """Whether the blocks lie on one CPU, and as they are: of kernels in few bits XLA would keep whole copies."""
    blocks = params.get("decoder", {}).get("blocks")
    if not isinstance(blocks, dict):
        return False
    leaves = jax.tree.leaves(blocks, is_leaf=lambda leaf: isinstance(leaf, Quantized))
    devices = {device for leaf in leaves for device in getattr(leaf, "devices", set)()}
    plain = not any(isinstance(leaf, Quantized) for leaf in leaves)
    return plain and len(devices) <= 1 and all(device.platform == "cpu" for device in devices)


def _listed(held: dict[str, Any]) -> dict[str, Any]:
    blocks = held.get("decoder", {}).get("blocks")
    if not isinstance(blocks, dict):
        return held
    leaves, treedef = jax.tree.flatten(blocks)
    devices = {device for leaf in leaves for device in getattr(leaf, "devices", set)()}
    host = [np.asarray(leaf) for leaf in leaves]
    views = [jax.tree.unflatten(treedef, [leaf[i] for leaf in host]) for i in range(len(host[0]))]
    layers = jax.device_put(views, next(iter(devices), None), may_alias=True)
    return held | {"decoder": held["decoder"] | {"blocks": layers}}
