"""What one call of `generate` asks for, as compiled steps see it. B prompts, R rows, T their length, V vocabulary."""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxformer.generation.process import History, Processor


@struct.dataclass
class Request:
    """All that a compiled step needs beside the state: an argument, traced."""

    variables: dict[str, Any]
    strategy: Any
    """A strategy, checked."""
    processors: tuple[Processor, ...]
    """In the order in which they act."""
    prompt: Array
    """int32 [B, T]: what the decoder continues, each row's end in the last column."""
    mask: Array
    """bool [B, T]: False is padding."""
    eos: Array
    """int32 [number of ids]: any of them ends a row."""
    pad: Array
    """int32 scalar: what stands behind a row's end."""
    limit: Array
    """int32 scalar: new tokens at most."""
    key: Array
    alternatives: int = struct.field(pytree_node=False, default=0)
    """How many of the likeliest tokens are kept for each new one."""

    def history(self, new: Array, step: Array) -> History:
        """Prompts, with their copies side by side, and new tokens [R, N] of which `step` columns are filled."""
        rows = new.shape[0]
        prompt, mask = (
            jnp.repeat(leaf, rows // leaf.shape[0], axis=0, total_repeat_length=rows)
            for leaf in (self.prompt, self.mask)
        )
        return History(prompt, mask, new, step, self.limit, self.eos)
