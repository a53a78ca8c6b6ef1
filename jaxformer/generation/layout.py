"""How parameters lie while they decode. L layers."""

from typing import Any

import jax.numpy as jnp

from jaxformer.generation import prompts
from jaxformer.nn import linear


def for_decoding(params: dict[str, Any]) -> dict[str, Any]:
    """The same parameters as they decode fastest on one CPU: hold these and drop the others, and nothing lies twice.

    There the decoder's blocks become a list of one tree a layer, and their kernels `nn.linear.Turned`, which is a
    copy of them; anywhere else, and of kernels in few bits, the tree comes back as it is. What takes parameters to
    generate takes these; training, saving and sharding want the others.
    """
    params = prompts.per_layer({"params": params})["params"]
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
    if stacked != 1 or isinstance(held, linear.Turned):
        return held
    order = (*range(inputs, held.ndim), *range(inputs))
    return linear.Turned(jnp.transpose(held, order))
