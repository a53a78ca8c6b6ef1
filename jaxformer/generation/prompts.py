"""What a caller hands to generation, checked and made ready on the host. B rows, T length, L layers."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.config import LearnedConfig
from jaxformer.nn.model import Model

Prompts = Sequence[Sequence[int]] | np.ndarray | jax.Array


def rows_of(tokens: Prompts, mask: Any = None) -> list[np.ndarray]:
    """Each prompt's own ids, without padding, from lists of lists or from an array [B, T] with its mask.

    Raises ValueError for what is neither.
    """
    if isinstance(tokens, np.ndarray | jax.Array):
        tokens = np.asarray(tokens)
        mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask).astype(bool)
        if tokens.ndim != 2 or mask.shape != tokens.shape or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                "prompts: expected integers [B, T] and a mask of the same shape, "
                f"got {tokens.dtype} {tokens.shape} and a mask {mask.shape}"
            )
        return [row[seen] for row, seen in zip(tokens, mask, strict=True)]
    if mask is not None:
        raise ValueError("prompts: a mask belongs to an array [B, T]; lists of ids need none")
    if any(isinstance(row, int | np.integer | str) for row in tokens):
        raise ValueError("prompts: expected one list of ids for each row, got a single row: write [tokens]")
    return [np.asarray(row, np.int64) for row in tokens]


def check(model: Model, rows: list[np.ndarray], max_new_tokens: int, samples: int) -> None:
    """Raise one ValueError that lists all that forbids to continue these prompts with this model."""
    config, wrong = model.config, []
    if config.decoder is None or config.encoder is not None:
        has = "an encoder alone" if config.decoder is None else "an encoder and a decoder"
        raise ValueError(f"generation continues prompts with a decoder alone; this model has {has}")
    for name, value in (("max_new_tokens", max_new_tokens), ("samples", samples)):
        if value < 1:
            wrong.append(f"{name} is {value}: give at least 1")
    if not rows:
        wrong.append("there is no prompt: give at least one row")
    for i, row in enumerate(rows):
        if not len(row):
            wrong.append(f"prompt {i} has no token, or none that its mask lets through: give at least one")
        elif row.min() < 0 or row.max() >= config.vocab:
            outside = row[(row < 0) | (row >= config.vocab)][0]
            wrong.append(f"prompt {i} holds {outside}: the model knows the ids from 0 to {config.vocab - 1}")
    positions = config.decoder.input.positions
    longest = max(map(len, rows), default=0)
    if isinstance(positions, LearnedConfig) and longest + max_new_tokens > positions.length:
        wrong.append(
            f"{longest} prompt tokens and {max_new_tokens} new ones do not fit: "
            f"the model has learned {positions.length} positions"
        )
    if wrong:
        raise ValueError("nothing was generated:\n" + "\n".join(f"  - {line}" for line in wrong))


def bucket(length: int) -> int:
    """The length that is made room for: a multiple of 32, and from 128 on one of four to an octave."""
    step = max(32, 1 << (length - 1).bit_length() >> 3)
    return -(-length // step) * step


def right_aligned(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32, mask bool), each [B, bucket]: padding stands left, and one slot ends every prompt."""
    width = bucket(max(map(len, rows)))
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    return tokens, mask


def per_layer(variables: dict[str, Any]) -> dict[str, Any]:
    """The same variables with the decoder's blocks as a list of L layers, each a view without a copy.

    On one CPU a loop over layers reads the weights where they lie; anywhere else the variables come back as
    they are, and are scanned. Slices taken inside a decoding loop would be copied at every token.
    """
    return {name: _listed(held) for name, held in variables.items()}


def _listed(held: dict[str, Any]) -> dict[str, Any]:
    blocks = held.get("decoder", {}).get("blocks")
    if not isinstance(blocks, dict):
        return held
    leaves, treedef = jax.tree.flatten(blocks)
    devices = {device for leaf in leaves for device in getattr(leaf, "devices", set)()}
    if len(devices) > 1 or any(device.platform != "cpu" for device in devices):
        return held
    host = [np.asarray(leaf) for leaf in leaves]
    views = [jax.tree.unflatten(treedef, [leaf[i] for leaf in host]) for i in range(len(host[0]))]
    layers = jax.device_put(views, next(iter(devices), None), may_alias=True)
    return held | {"decoder": held["decoder"] | {"blocks": layers}}
