"""Looking at what passes inside a model, and changing it. L layers, B batch, T length, H heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxformer import tree
from jaxformer.config import ExpertsConfig, ModelConfig, StackConfig
from jaxformer.nn.model import Model, Output
from jaxformer.nn.taps import EDITS, TAPS, Edit


def paths(config: ModelConfig) -> dict[str, str]:
    """{path: its shape and what it is} of every tap of a model; those of blocks have an axis of layers before it."""
    found: dict[str, str] = {}
    for name, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        if stack is not None:
            found |= {f"{name}/{path}": TAPS[path.rpartition("/")[2]] for path in _of_stack(stack)}
    return found


def look(
    model: Model,
    params: Any,
    *tokens: Array,
    taps: Sequence[str] = (),
    edits: Mapping[str, Edit] | None = None,
    **given: Any,
) -> tuple[Output, dict[str, Array]]:
    """(what the model gives, {path: what passed there}) for the taps that the path patterns match.

    `tokens`, int [B, T], and `given` are what `model.apply` takes; `edits` are {path: edit}, of blocks with an axis
    of layers first. Pure: jit it, differentiate it by the edits, map it over many of them. Raises ValueError for a
    pattern or an edit that fits no tap.
    """
    known, edits = paths(model.config), dict(edits or {})
    wanted = {path for path in known for pattern in taps if tree.matches(pattern, path)}
    strays = [pattern for pattern in taps if not any(tree.matches(pattern, path) for path in known)]
    if strays := [*strays, *(edits.keys() - known.keys())]:
        raise ValueError(f"no tap of this model is {', '.join(strays)}; there are:\n  " + "\n  ".join(known))
    variables = {"params": params} | ({EDITS: tree.unflatten(edits)} if edits else {})
    names = sorted({path.rpartition("/")[2] for path in wanted})
    if not names:
        return model.apply(variables, *tokens, **given), {}  # type: ignore[return-value]
    out, seen = model.apply(variables, *tokens, mutable=names, **given)
    passed = {path: array for name in names for path, array in tree.flatten(seen[name]).items()}
    return out, {path: passed[path] for path in known if path in wanted}


def patch(value: Array | float, where: Array) -> Edit:
    """Puts `value` where `where`, bool, is True: an activation of another run, a mean, or 0 to ablate.

    Both broadcast to what passes; `where` has the axis of layers, where the tap has one.
    """
    where = jnp.asarray(where, bool)
    return Edit(keep=jnp.where(where, 0.0, 1.0), add=jnp.where(where, value, 0.0))


def mask_heads(keep: Array) -> Edit:
    """For a tap named heads: `keep` [L, H] scales what each head found; 0 silences it (Michel et al., 2019, 2.3)."""
    keep = jnp.asarray(keep, jnp.float32)[:, None, None, :, None]
    return Edit(keep=keep, add=jnp.zeros_like(keep))


def _of_stack(stack: StackConfig) -> list[str]:
    block = stack.pattern[0]
    attentions = {"attention": block.attention} | ({} if block.cross is None else {"cross": block.cross})
    inner = [f"{name}/{tap}" for name in attentions for tap in ("query", "key", "value", "probabilities", "heads")]
    inner.append("mlp/router" if isinstance(block.mlp, ExpertsConfig) else "mlp/activations")
    outer = [f"{name}_output" for name in (*attentions, "mlp")]
    return ["embedded", *(f"blocks/{path}" for path in (*inner, *outer, "residual"))]
