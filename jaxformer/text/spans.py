"""Spans to be written anew: span corruption, prefixes, the mixture of denoisers, the middle of a text. Numpy alone.

Each takes token ids [T] of any integer type and the generator that it draws from, gives int32 ids, and leaves what it
was given as it was. Special ids are the caller's: no tokenizer takes part.

T5: Raffel et al. 2020, arXiv:1910.10683. UL2: Tay et al. 2022, arXiv:2205.05131. Fill in the middle: Bavarian et al.
2022, arXiv:2207.14255.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


def span_counts(length: int, density: float = 0.15, mean: float = 3.0) -> tuple[int, int]:
    """(tokens to corrupt, spans that hold them) of `length` tokens; (0, 0) where they are fewer than 2.

    Raises ValueError unless 0 < density < 1 and mean >= 1.
    """
    if not 0 < density < 1 or mean < 1:
        raise ValueError(f"span corruption: expected 0 < density < 1 and mean >= 1, found {density=} {mean=}")
    if length < 2:
        return 0, 0
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean), 1), length - noise)


def span_lengths(inputs: int, density: float = 0.15, mean: float = 3.0) -> tuple[int, int]:
    """(tokens, targets): how many tokens to corrupt, so that inputs of that length leave nothing to pad, as in T5.

    It is the largest number whose inputs, </s> included, have at most `inputs` tokens: exactly so many unless so much
    is corrupted that the kept tokens hardly part the spans (density 0.5 and mean 1, say). Raises ValueError where two
    tokens are too many already.
    """

    def sizes(length: int) -> tuple[int, int]:
        noise, spans = span_counts(length, density, mean)
        return length - noise + spans + 1, noise + spans + 1

    length = 2
    if sizes(length)[0] > inputs:
        raise ValueError(f"span corruption: expected inputs of {sizes(length)[0]} tokens or more, found {inputs}")
    while sizes(length + 1)[0] <= inputs:
        length += 1
    return length, sizes(length)[1]


def noise_spans(
    length: int, random: np.random.Generator, density: float = 0.15, mean: float = 3.0, anywhere: bool = False
) -> np.ndarray:
    """Which tokens to corrupt, bool [length] (T5, section 3.3.4 and released code).

    The numbers of tokens and of spans are fixed (`span_counts`). Both the corrupted and the kept tokens are cut into
    so many spans, each cut as likely as any other, and the spans take turns, a kept one first: so the last token is
    always corrupted. `anywhere` moves some of the first kept span to the end: where few spans are long, as in UL2,
    they would otherwise always stand at the end.
    """
    noise, spans = span_counts(length, density, mean)
    if not spans:
        return np.zeros(length, bool)
    kept, lost = _parts(length - noise, spans, random), _parts(noise, spans, random)
    mask = np.repeat(np.tile([False, True], spans), np.stack([kept, lost], 1).ravel())
    return np.roll(mask, -int(random.integers(kept[0] + 1))) if anywhere else mask


def _parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` positive sizes that add up to `total`."""
    cuts = np.sort(random.permutation(total - 1)[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt_spans(
    tokens: np.ndarray, noise: np.ndarray, *, sentinels: Sequence[int] | np.ndarray, eos: int
) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) for `noise` (bool [T]), each ended by `eos` (T5, section 3.1.4).

    Inputs are the tokens with each noise span replaced by one of `sentinels`, in their order. Targets are the spans,
    each behind its sentinel. No further sentinel follows the last span: as in T5's released code, eos ends it.

    Raises ValueError where there are more spans than sentinels.
    """
    tokens = np.asarray(tokens, np.int32)
    starts = noise & ~np.concatenate([[False], noise[:-1]])
    count = int(starts.sum())
    if count > len(sentinels):
        raise ValueError(
            f"span corruption: {count} spans in {len(tokens)} tokens, and only {len(sentinels)} sentinels: "
            "take shorter texts, longer spans, or a tokenizer with more sentinels"
        )
    marks = np.asarray(sentinels[:count], np.int32)
    inputs = tokens.copy()
    inputs[starts] = marks
    targets = np.insert(tokens[noise], np.flatnonzero(starts[noise]), marks)
    end = np.array([eos], np.int32)
    return np.concatenate([inputs[starts | ~noise], end]), np.concatenate([targets, end])


def span_corruption(
    tokens: np.ndarray,
    random: np.random.Generator,
    *,
    sentinels: Sequence[int] | np.ndarray,
    eos: int,
    density: float = 0.15,
    mean: float = 3.0,
) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of T5's objective: `corrupt_spans` of `noise_spans`; `span_lengths` tells both lengths."""
    return corrupt_spans(tokens, noise_spans(len(tokens), random, density, mean), sentinels=sentinels, eos=eos)


def prefix_split(
    tokens: np.ndarray, random: np.random.Generator, share: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """(prefix, target) of a prefix language model (T5, section 3.2.3): together the tokens.

    The target's length is uniform from 1, `share` of the tokens on average; with one half any place may be the cut.
    A single token is all target. Raises ValueError unless 0 < share <= 0.5.
    """
    tokens = np.asarray(tokens, np.int32)
    at = len(tokens) - _target_length(len(tokens), random, share)
    return tokens[:at], tokens[at:]


def _target_length(length: int, random: np.random.Generator, share: float) -> int:
    if not 0 < share <= 0.5:
        raise ValueError(f"prefix and target: expected the target's share above 0 and up to 0.5, found {share}")
    return int(random.integers(1, max(2, round(2 * share * length)))) if length else 0


@dataclass(frozen=True)
class Denoiser:
    """One way to corrupt spans; without a mean length it is one span that ends the text, as of a prefix LM."""

    mode: Literal["R", "S", "X"]
    density: float
    mean: float | None


UL2 = (
    Denoiser("R", 0.15, 3),
    Denoiser("R", 0.15, 8),
    Denoiser("S", 0.25, None),
    Denoiser("X", 0.5, 3),
    Denoiser("X", 0.5, 8),
    Denoiser("X", 0.15, 64),
    Denoiser("X", 0.5, 64),
)
"""Regular, sequential and extreme denoisers of UL2 (table 1)."""


def mixture_of_denoisers(
    tokens: np.ndarray,
    random: np.random.Generator,
    *,
    sentinels: Sequence[int] | np.ndarray,
    eos: int,
    modes: Mapping[str, int],
    denoisers: Sequence[Denoiser] = UL2,
) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) by one of `denoisers`, each as likely (UL2, section 3.1.2); one named twice counts twice.

    Inputs begin with the token of the denoiser's mode, modes["R"], ["S"] or ["X"]; else as `corrupt_spans`. Spans of
    R and X are laid as in T5, anywhere in the text, where UL2 draws each length from a normal distribution; the one
    span of S has a uniform length, `density` of the text on average.
    """
    denoiser = denoisers[int(random.integers(len(denoisers)))]
    if denoiser.mean is None:
        noise = np.arange(len(tokens)) >= len(tokens) - _target_length(len(tokens), random, denoiser.density)
    else:
        noise = noise_spans(len(tokens), random, denoiser.density, denoiser.mean, anywhere=True)
    inputs, targets = corrupt_spans(tokens, noise, sentinels=sentinels, eos=eos)
    return np.concatenate([np.array([modes[denoiser.mode]], np.int32), inputs]), targets


def fill_in_the_middle(
    tokens: np.ndarray,
    random: np.random.Generator,
    *,
    prefix: int,
    suffix: int,
    middle: int,
    eos: int,
    length: int,
    rate: float = 0.5,
    spm: float = 0.5,
    breaks: np.ndarray | None = None,
    lines: int = 1,
) -> np.ndarray:
    """A piece of one document, `length` tokens at most, with the chance `rate` turned so that its middle comes last.

    Cut at two random places, or at two of `breaks` (ascending) with at most `lines` stretches between them, into
    p, m, s, it becomes prefix p suffix s middle m eos (PSM), or with the chance `spm`
    prefix suffix s middle p m eos (SPM, as in joint training), where the words stand for the ids given (Bavarian et
    al., section 3). A piece that is not turned stays as it is.

    What does not fit is cut off the piece before it is turned: whatever is lost follows its suffix, and each middle
    is whole, for where it ends is what a model has to learn. So eos always ends it; an eos at the end of `tokens` is
    no part of the suffix.
    """
    tokens = np.asarray(tokens, np.int32)
    ended = len(tokens) > 0 and tokens[-1] == eos
    text = (tokens[:-1] if ended else tokens)[: max(length - 4, 0)]
    if random.random() >= rate or not len(text):
        return tokens[:length]
    if breaks is None:
        cuts = np.sort(random.integers(len(text) + 1, size=2))
    else:
        breaks = breaks[breaks <= len(text)]
        if len(breaks) < 2:
            return tokens[:length]
        first = int(random.integers(len(breaks) - 1))
        cuts = breaks[[first, min(first + int(random.integers(lines)) + 1, len(breaks) - 1)]]
    before, between, after = np.split(text, cuts)
    pre, suf, mid, end = np.array([[prefix], [suffix], [middle], [eos]], np.int32)
    if random.random() < spm:
        return np.concatenate([pre, suf, after, mid, before, between, end])
    return np.concatenate([pre, before, suf, after, mid, between, end])
