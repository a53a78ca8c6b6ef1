"""What a caller hands to generation, checked and made ready on the host. B rows, T length, L layers."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.config import DynamicScaling, LearnedConfig, LongScaling, StackConfig
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


def read_and_continued(
    model: Model, rows: list[np.ndarray], decoder_tokens: Any
) -> tuple[list[np.ndarray] | None, list[np.ndarray]]:
    """(what an encoder reads, None where there is none; what the decoder continues), a prompt each.

    Raises ValueError where there is no decoder, and where it is not known what it begins with.
    """
    config = model.config
    if config.decoder is None or config.head is None:
        lacks = "a decoder" if config.decoder is None else "a head over the vocabulary"
        raise ValueError(f"this model cannot generate: it lacks {lacks}")
    if config.encoder is None:
        if decoder_tokens is not None:
            raise ValueError("decoder_tokens given, but this model has a decoder alone: give tokens")
        return None, rows
    if decoder_tokens is not None:
        return rows, rows_of(decoder_tokens)
    begin = model.card.special("decoder_start") or model.card.special("bos")
    if not begin:
        raise ValueError("this model's card names no decoder_start_token_id: give decoder_tokens to begin with")
    return rows, [np.array(begin[:1])] * len(rows)


def check(
    model: Model,
    read: list[np.ndarray] | None,
    rows: list[np.ndarray],
    max_new_tokens: int,
    samples: int,
    alternatives: int = 0,
) -> None:
    """Raise one ValueError that lists all that forbids to continue these prompts with this model.

    `read` is what an encoder reads, `rows` what the decoder continues.
    """
    wrong = []
    for name, value in (("max_new_tokens", max_new_tokens), ("samples", samples)):
        if value < 1:
            wrong.append(f"{name} is {value}: give at least 1")
    if not 0 <= alternatives <= model.config.vocab:
        wrong.append(f"alternatives is {alternatives}: give 0 to {model.config.vocab}, the tokens that there are")
    if not rows:
        wrong.append("there is no prompt: give at least one row")
    if read is not None and len(read) != len(rows):
        wrong.append(f"there are {len(read)} rows of tokens and {len(rows)} of decoder_tokens: give as many")
    for prompts, name in ((read, "prompt"), (rows, "prompt" if read is None else "decoder prompt")):
        wrong += [line for i, row in enumerate(prompts or ()) for line in _unknown(row, f"{name} {i}", model)]
    if read is not None:
        wrong += _too_long(model.config.encoder, max(map(len, read), default=0), 0)
    wrong += _too_long(model.config.decoder, max(map(len, rows), default=0), max_new_tokens)
    if wrong:
        raise ValueError("nothing was generated:\n" + "\n".join(f"  - {line}" for line in wrong))


def _unknown(row: np.ndarray, name: str, model: Model) -> list[str]:
    if not len(row):
        return [f"{name} has no token, or none that its mask lets through: give at least one"]
    outside = row[(row < 0) | (row >= model.config.vocab)]
    known = f"the model knows the ids from 0 to {model.config.vocab - 1}"
    return [f"{name} holds {outside[0]}: {known}"] if len(outside) else []


def _too_long(stack: StackConfig | None, longest: int, new: int) -> list[str]:
    """Why so many tokens do not fit the stack's positions."""
    assert stack is not None
    tokens = f"{longest} prompt tokens" + (f" and {new} new ones" if new else "")
    positions = stack.input.positions
    if isinstance(positions, LearnedConfig) and longest + new > positions.length:
        return [f"{tokens} do not fit: the model has learned {positions.length} positions"]
    scalings = {block.attention.rope.scaling for block in stack.pattern if block.attention.rope is not None}
    for scaling in scalings:
        # Keys stay in the cache as they were turned; these scalings would turn all of them anew.
        if isinstance(scaling, DynamicScaling) and longest + new > scaling.length:
            return [f"{tokens} do not fit: beyond {scaling.length} its rotary base changes with every token"]
        if isinstance(scaling, LongScaling) and longest <= scaling.length < longest + new:
            return [f"{tokens} do not fit: they cross {scaling.length}, where its rotary positions change"]
    return []


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


def left_aligned(rows: list[np.ndarray], chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32, mask bool), each [B, bucket]: padding stands right; buckets beyond a chunk are whole chunks."""
    width = bucket(max(map(len, rows)))
    width = width if width <= chunk else -(-width // chunk) * chunk
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return tokens, mask
