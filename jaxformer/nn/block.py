"""One layer of any Transformer. B batch, T length, D width."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax import struct
from jax import Array

from jaxformer.config import BlockConfig
from jaxformer.nn.attention import Attention, View
from jaxformer.nn.axes import constrain
from jaxformer.nn.cache import LayerCache
from jaxformer.nn.mlp import Mlp
from jaxformer.nn.norm import Norm


@struct.dataclass
class Memory:
    """The caches of a block's two attentions, and which layer of them is this block's."""

    attention: LayerCache | None = None
    cross: LayerCache | None = None


class Block(nn.Module):
    """Self attention, cross attention where there is one, feed-forward; each with a residual sum."""

    config: BlockConfig
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, x_BTD: Array, view: View, cross_view: View | None, memory: Memory, layer: Array | None
    ) -> tuple[Array, Memory]:
        """[B, T, D] -> ([B, T, D], the caches with the new keys and values); `layer` is its place in stacked ones."""
        c = self.config

        def residual(name: str, x_BTD: Array, sublayer: Callable[[Array], tuple[Array, Any]]) -> tuple[Array, Any]:
            norm = Norm(c.norm, name=f"{name}_norm")
            y_BTD, kept = sublayer(norm(x_BTD) if c.norms == "pre" else x_BTD)
            x_BTD += nn.Dropout(c.dropout, deterministic=self.deterministic)(y_BTD)
            return constrain(x_BTD if c.norms == "pre" else norm(x_BTD), ("batch", "length", "width")), kept

        attention, mlp = Attention(c.attention, name="attention"), Mlp(c.mlp, name="mlp")
        x_BTD, own = residual("attention", x_BTD, lambda h: attention(h, view, memory.attention, layer))
        crossed = memory.cross
        if c.cross is not None:
            cross = Attention(c.cross, cross=True, name="cross")
            x_BTD, crossed = residual("cross", x_BTD, lambda h: cross(h, cross_view, memory.cross, layer))
        x_BTD, _ = residual("mlp", x_BTD, lambda h: (mlp(h), None))
        return x_BTD, Memory(own, crossed)
