"""What stands on the last hidden vectors. B batch, T length, D width, E embedding width, V vocabulary, N outputs."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxformer.config import ExtraHeadConfig, ModelConfig
from jaxformer.nn.linear import Linear, Unembed
from jaxformer.nn.mlp import ACTIVATIONS
from jaxformer.nn.norm import Norm


class LmHead(nn.Module):
    """The parameters between hidden vectors and logits that are not the embedding's."""

    config: ModelConfig

    def setup(self) -> None:
        c, head = self.config, self.config.head
        assert head is not None
        width = c.width
        if head.transform is not None:
            width = c.embedding_width or c.width
            self.transform = Linear((c.width,), (width,), head.transform.bias)
            if head.transform.norm is not None:
                self.norm = Norm(head.transform.norm)
        if not head.tied:
            self.kernel = self.param("kernel", nn.initializers.normal(width**-0.5), (width, c.vocab))
        if head.bias:
            self.bias = self.param("bias", nn.initializers.zeros, (c.vocab,))

    def transformed(self, hidden: Array) -> Array:
        """[..., D] -> [..., E]: the dense layer before the output matrix, its activation, its norm."""
        c = self.config.head.transform
        if c is None:
            return hidden
        y = self.transform(hidden)
        y = y if c.activation is None else ACTIVATIONS[c.activation](y)
        return y if c.norm is None else self.norm(y)

    def value(self, embedding: Array) -> Unembed:
        """The output matrix and all that comes after it."""
        head = self.config.head
        assert head is not None
        kernel = embedding if head.tied else self.kernel
        adapter = dict(self.variables["lora"]) if not head.tied and self.has_variable("lora", "a") else None
        return Unembed(kernel, head.tied, head.scale, head.softcap, adapter, self.bias if head.bias else None)


class ExtraHead(nn.Module):
    """A few numbers of a vector: classes, scores, the ends of an answer."""

    config: ExtraHeadConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> float32 [..., N]."""
        c, width = self.config, x.shape[-1]
        if c.hidden is not None:
            x = ACTIVATIONS[c.hidden](Linear((width,), (width,), True, name="dense")(x))
        return Linear((width,), (c.outputs,), c.bias, name="output")(x).astype(jnp.float32)


class Heads(nn.Module):
    """A model's heads and their parameters."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        if c.head is not None:
            self.lm = LmHead(c)
        if c.pooler is not None:
            self.pooler = Linear((c.width,), (c.width,), True)
        for extra in c.extra:
            setattr(self, extra.name, ExtraHead(extra))

    def beside(self, hidden_BTD: Array, mask_BT: Array | None) -> tuple[Array | None, dict[str, Array] | None]:
        """(the pooled vector [B, D], each extra head's numbers [B, T, N] or [B, N]), as far as the model has them."""
        c, pooled, extra = self.config, None, {}
        if c.pooler is not None:
            pooled = ACTIVATIONS[c.pooler](self.pooler(hidden_BTD[:, 0]))
        for head in c.extra:
            read = pooled if head.reads == "pooled" else _read(hidden_BTD, mask_BT, head.reads)
            extra[head.name] = getattr(self, head.name)(read)
        return pooled, extra or None


def _read(hidden_BTD: Array, mask_BT: Array | None, reads: str) -> Array:
    if reads == "tokens":
        return hidden_BTD
    if reads == "first":
        return hidden_BTD[:, 0]
    if mask_BT is None:
        return hidden_BTD[:, -1]
    last_B = jnp.max(jnp.where(mask_BT, jnp.arange(mask_BT.shape[1])[None], 0), axis=1)
    return jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
