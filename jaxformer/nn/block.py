"""One layer of any Transformer. B batch, T length, D width."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax import struct
from jax import Array

from jaxformer.config import BlockConfig, ExpertsConfig
from jaxformer.nn.attention import Attention, View
from jaxformer.nn.axes import constrain
from jaxformer.nn.cache import LayerCache
from jaxformer.nn.experts import Aux, Experts
from jaxformer.nn.mlp import Mlp
from jaxformer.nn.norm import Norm
from jaxformer.nn.taps import tap


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
    ) -> tuple[Array, Memory, Aux | None]:
        """[B, T, D] -> ([B, T, D], the caches with the new keys and values, what its router adds to the loss).

        `layer` is its place in stacked caches.
        """
        c, crossed = self.config, memory.cross
        attention = Attention(c.attention, name="attention")
        mlp = Experts(c.mlp, name="mlp") if isinstance(c.mlp, ExpertsConfig) else Mlp(c.mlp, name="mlp")
        feed = lambda h_BTD: mlp(h_BTD, view.visibility.real()) if isinstance(mlp, Experts) else (mlp(h_BTD), None)
        if c.parallel:
            h_BTD = Norm(c.norm, name="attention_norm")(x_BTD)
            a_BTD, own = attention(h_BTD, view, memory.attention, layer)
            m_BTD, aux = feed(h_BTD)
            y_BTD = tap(self, "attention_output", a_BTD) + tap(self, "mlp_output", m_BTD)
            return tap(self, "residual", self._add(x_BTD, y_BTD)), Memory(own, crossed), aux
        x_BTD, own = self._residual("attention", x_BTD, lambda h: attention(h, view, memory.attention, layer))
        if c.cross is not None:
            cross = Attention(c.cross, cross=True, name="cross")
            x_BTD, crossed = self._residual("cross", x_BTD, lambda h: cross(h, cross_view, memory.cross, layer))
        x_BTD, aux = self._residual("mlp", x_BTD, feed)
        return tap(self, "residual", x_BTD), Memory(own, crossed), aux

    def _residual(self, name: str, x_BTD: Array, sublayer: Callable[[Array], tuple[Array, Any]]) -> tuple[Array, Any]:
        """The sum of x and a sublayer of it, with the norms where they stand; and what else the sublayer gives."""
        c = self.config
        y_BTD, kept = sublayer(Norm(c.norm, name=f"{name}_norm")(x_BTD) if c.norms in ("pre", "sandwich") else x_BTD)
        if c.norms in ("sandwich", "branch"):
            y_BTD = Norm(c.norm, name=f"{name}_post_norm")(y_BTD)
        x_BTD = self._add(x_BTD, tap(self, f"{name}_output", y_BTD))
        return Norm(c.norm, name=f"{name}_norm")(x_BTD) if c.norms == "post" else x_BTD, kept

    def _add(self, x_BTD: Array, y_BTD: Array) -> Array:
        dropped = nn.Dropout(self.config.dropout, deterministic=self.deterministic)(y_BTD)
        return constrain(x_BTD + dropped, ("batch", "length", "width"))
