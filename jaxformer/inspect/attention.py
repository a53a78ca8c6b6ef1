"""How much each piece of a text looks at each other one. L layers, T queries, S keys, H heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxformer.inspect.pieces import Piece, Word, pieces, words
from jaxformer.inspect.taps import look
from jaxformer.nn.model import Model
from jaxformer.objective import decoder_start, too_long
from jaxformer.text.tokenizer import Tokenizer

NAMES = {"encoder/attention": "encoder", "decoder/attention": "decoder", "decoder/cross": "cross"}


@dataclass(frozen=True)
class AttentionMap:
    """One attention of a model over one text."""

    queries: tuple[Piece | Word, ...]
    keys: tuple[Piece | Word, ...]
    probabilities: np.ndarray
    """float32 [L, H, T, S]; those of a query sum to 1."""
    uniform: np.ndarray
    """float32 [L, T, S]: what they were, if the query looked at all that it sees alike."""


@dataclass(frozen=True)
class Tie:
    """How much a head lets one word look at another."""

    layer: int
    head: int
    probability: float
    uniform: float
    """What it were, if the query looked at all that it sees alike."""
    others: float
    """The mean of what the other words give this key, those that see it; a head may look at it from everywhere."""
    rank: int
    """1 where the query looks at nothing more than at this key, special tokens included."""


def attention_maps(
    model: Model, params: Any, tokenizer: Tokenizer, text: str, target: str | None = None
) -> dict[str, AttentionMap]:
    """{"encoder", "decoder", "cross": map} of the attentions that the model has, over the pieces of its texts.

    A model with encoder and decoder reads `text` and, behind its start token, `target`; each other one `text`,
    with the special tokens that its tokenizer adds. A query of a decoder is what is read, not what is predicted.
    Raises ValueError for texts that the model cannot read.
    """
    both = model.config.encoder is not None and model.config.decoder is not None
    if both != (target is not None):
        raise ValueError(f"this model has {'two stacks: give' if both else 'one stack: leave out'} the target text")
    read = [pieces(tokenizer, text)]
    if target is not None:
        read.append(_behind_start(model, getattr(tokenizer, "target", None) or tokenizer, target))
    if not read[0]:
        raise ValueError("the text is empty, and this tokenizer puts no special token around it")
    if wrong := too_long(model.config, encoder=len(read[0]), decoder=len(read[-1])):
        raise ValueError("; ".join(wrong))
    tokens = [jnp.array([[piece.id for piece in side]], jnp.int32) for side in read]
    _, found = look(model, params, *tokens, taps=["**/probabilities"], logits=False)
    maps = {}
    for path, p_LBHTS in found.items():
        name = NAMES[path.replace("/blocks/", "/").removesuffix("/probabilities")]
        probabilities = np.asarray(p_LBHTS[:, 0], np.float32)
        keys = read[0] if name != "decoder" else read[-1]
        queries = read[0] if name == "encoder" else read[-1]
        maps[name] = AttentionMap(queries, keys, probabilities, _uniform(probabilities))
    return maps


def by_words(of: AttentionMap) -> AttentionMap:
    """The map between words: probabilities summed over the pieces of a key, averaged over those of a query."""
    if not all(isinstance(each, Piece) for each in (*of.queries, *of.keys)):
        return of
    queries, keys = words(of.queries), words(of.keys)  # type: ignore[arg-type]
    merged = (_merged(each, queries, keys) for each in (of.probabilities, of.uniform))
    return AttentionMap(queries, keys, *merged)


def ties(of: AttentionMap, query: str | int, key: str | int) -> list[Tie]:
    """Every head by how much the word `query` looks at the word `key`, the closest first.

    A word is given as it stands in the text, or, where it stands there twice, by its number among the queries or the
    keys of `by_words(of)`. Raises ValueError where there is no such word, or more than one.
    """
    of = by_words(of)
    t, s = _place(of.queries, query, "query"), _place(of.keys, key, "key")
    sees = (of.uniform[:, :, s] > 0) & (np.arange(len(of.queries)) != t)
    others_LH = np.einsum("LHT,LT->LH", of.probabilities[..., s], sees) / np.maximum(sees.sum(-1), 1)[:, None]
    found = [
        Tie(layer, head, float(row[s]), float(of.uniform[layer, t, s]), float(others), 1 + int((row > row[s]).sum()))
        for layer, (heads, means) in enumerate(zip(of.probabilities[:, :, t], others_LH, strict=True))
        for head, (row, others) in enumerate(zip(heads, means, strict=True))
    ]
    return sorted(found, key=lambda tie: -tie.probability)


def _behind_start(model: Model, tokenizer: Tokenizer, target: str) -> tuple[Piece, ...]:
    """What a decoder reads to predict the target: each piece's predecessor, the start token first."""
    id = decoder_start(model)
    around = [Piece(id, tokenizer.piece(id), "special", "", (0, 0), None), *pieces(tokenizer, target)]
    while len(around) > 1 and around[-1].kind == "special":
        around.pop()
    return tuple(around)


def _uniform(probabilities: np.ndarray) -> np.ndarray:
    """What is seen is seen by some head of the layer: a window or the future gives each of them exactly 0."""
    seen = (probabilities > 0).any(axis=1)
    return (seen / np.maximum(seen.sum(-1, keepdims=True), 1)).astype(np.float32)


def _merged(p: np.ndarray, queries: Sequence[Word], keys: Sequence[Word]) -> np.ndarray:
    """[..., T, S] between pieces as [..., T, S] between words."""
    starts, counts = zip(*map(_starts, (queries, keys)), strict=True)
    summed = np.add.reduceat(np.add.reduceat(p, starts[1], axis=-1), starts[0], axis=-2)
    return (summed / counts[0][:, None]).astype(np.float32)


def _starts(words: Sequence[Word]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.array([len(word.pieces) for word in words])
    return np.cumsum(counts) - counts, counts


def _place(among: Sequence[Piece | Word], word: str | int, what: str) -> int:
    if isinstance(word, int):
        if not 0 <= word < len(among):
            raise ValueError(f"{what} {word}: there are words 0 to {len(among) - 1}")
        return word
    places = [i for i, each in enumerate(among) if each.label == word]
    if len(places) != 1:
        told = f"stands at {', '.join(map(str, places))}: give one of these numbers" if places else "is not there"
        named = ", ".join(f"{i} {each.label}" for i, each in enumerate(among))
        raise ValueError(f"{what} {word!r} {told}; the words are {named}")
    return places[0]
