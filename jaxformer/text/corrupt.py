"""What encoders and denoisers learn from: masked tokens, pairs of sentences, damaged texts. Pure functions of numpy.

Each takes token ids [T] of any integer type and the generator that it draws from, gives int32 ids, and leaves what it
was given as it was. Special ids are the caller's: no tokenizer takes part. A share of n tokens is round(share * n).

BERT: Devlin et al. 2019, arXiv:1810.04805. BART: Lewis et al. 2020, arXiv:1910.13461.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


def masked_lm(
    tokens: np.ndarray,
    random: np.random.Generator,
    *,
    mask: int,
    vocab: int,
    special: np.ndarray,
    word_starts: np.ndarray | None = None,
    rate: float = 0.15,
    replace: float = 0.8,
    random_share: float = 0.1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, targets, weights float32), each [T], of masked language modelling (BERT, section 3.1, appendix A.1).

    Of the n tokens that are not `special` (bool [T]) exactly round(rate * n), one at least, are to be predicted: as
    BERT does it, not by a draw for each token. They have weight 1. Each of them by itself becomes `mask` with the
    chance `replace`, any of `vocab` ids with `random_share`, and else stays as it is. Targets are `tokens`.

    With `word_starts` (bool [T]: a word begins here) whole words are chosen, as in BERT's later release: one that
    would go beyond the number is passed over, so there may be fewer, and none where every word is longer.
    """
    targets = np.array(tokens, np.int32)
    chosen = np.flatnonzero(~special)
    wanted = max(1, round(rate * len(chosen)))
    if word_starts is None:
        chosen = random.permutation(chosen)[:wanted]
    else:
        chosen = _whole_words(chosen, np.cumsum(word_starts | special)[chosen], wanted, random)
    weights = np.zeros(len(targets), np.float32)
    weights[chosen] = 1
    draws = random.random(len(chosen))
    swapped = chosen[(draws >= replace) & (draws < replace + random_share)]
    masked = targets.copy()
    masked[chosen[draws < replace]] = mask
    masked[swapped] = random.integers(vocab, size=len(swapped))
    return masked, targets, weights


def _whole_words(places: np.ndarray, words: np.ndarray, wanted: int, random: np.random.Generator) -> np.ndarray:
    """Places of words chosen at random, `wanted` at most; `words` numbers the word of each of `places`."""
    sizes = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(words)) + 1, [len(places)]]))
    chosen = np.zeros(len(sizes), bool)
    for number in random.permutation(len(sizes)).tolist():
        if sizes[number] <= wanted:
            chosen[number] = True
            wanted -= sizes[number]
    return places[np.repeat(chosen, sizes)]


def sentences(tokens: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """`tokens` [T] cut behind each of `ends` (bool [T]: a sentence ends here); what follows the last is one too."""
    parts = np.split(np.asarray(tokens, np.int32), np.flatnonzero(ends) + 1)
    return [part for part in parts if len(part)]


def sentence_chunks(tokens: np.ndarray, ends: np.ndarray, length: int) -> list[slice]:
    """Stretches of whole sentences, each with `length` tokens or more but the last: what `sentence_pair` takes."""
    chunks, start = list[slice](), 0
    for stop in (*(np.flatnonzero(ends) + 1).tolist(), len(tokens)):
        if start < stop and (stop - start >= length or stop == len(tokens)):
            chunks.append(slice(start, stop))
            start = stop
    return chunks


def sentence_pair(
    text: Sequence[np.ndarray],
    other: Callable[[np.random.Generator], Sequence[np.ndarray]],
    random: np.random.Generator,
    *,
    length: int,
    short: float = 0.1,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """(A, B, whether B follows A) for next-sentence prediction (BERT, section 3.1, appendix A.2 and released code).

    `text`: running sentences of a document. As many as reach `length` tokens are taken, with the chance `short` only
    as many as reach a number drawn from 2 to `length`. A is the first few of them, and B with a chance of one half
    the rest. Else, and where there is but one sentence, B is running text from anywhere in `other(random)`: sentences
    of another document, drawn anew at each call. What is too long for `length` loses tokens of the longer of A and B,
    each from its beginning or its end with equal chance.

    BERT goes on with the sentences for which B had no use; here they come in another epoch, with other draws.
    """
    target = int(random.integers(2, length + 1)) if random.random() < short else length
    taken = _reaching(text, target)
    cut = int(random.integers(1, len(taken))) if len(taken) > 1 else 1
    first = np.concatenate(taken[:cut])
    follows = len(taken) > 1 and bool(random.random() < 0.5)
    if follows:
        second = np.concatenate(taken[cut:])
    else:
        strange = other(random)
        start = int(random.integers(len(strange)))
        second = np.concatenate(_reaching(strange[start:], target - len(first)))
    keep_first = min(len(first), max(length - len(second), (length + 1) // 2))
    keep_second = min(len(second), length - keep_first)
    return _shortened(first, keep_first, random), _shortened(second, keep_second, random), follows


def _reaching(text: Sequence[np.ndarray], length: int) -> Sequence[np.ndarray]:
    """The first sentences that have `length` tokens together; one at least."""
    sizes = np.cumsum([len(sentence) for sentence in text])
    return text[: int(np.searchsorted(sizes, length)) + 1]


def _shortened(tokens: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    start = int(random.binomial(len(tokens) - size, 0.5))
    return np.asarray(tokens[start : start + size], np.int32)


def infill(
    tokens: np.ndarray, random: np.random.Generator, *, mask: int, rate: float = 0.3, mean: float = 3.0
) -> np.ndarray:
    """Text infilling (BART, section 2.2): spans of tokens, `rate` of them in all, become one `mask` each.

    Their lengths are drawn from Poisson(mean), the last one cut to fit; a span of length 0 puts in a mask and takes
    away nothing. Every order of spans and of kept tokens is as likely as any other.

    Raises ValueError unless 0 <= rate <= 1 and mean > 0.
    """
    if not 0 <= rate <= 1 or mean <= 0:
        raise ValueError(f"infilling: expected 0 <= rate <= 1 and mean > 0, found {rate=} {mean=}")
    left = wanted = round(rate * len(tokens))
    spans: list[int] = []
    while left:
        spans.append(min(int(random.poisson(mean)), left))
        left -= spans[-1]
    slots = len(tokens) - wanted + len(spans)  # of the result: kept tokens and masks
    masked = np.zeros(slots, bool)
    masked[random.permutation(slots)[: len(spans)]] = True
    sizes = np.ones(slots, np.int64)
    sizes[masked] = spans
    starts = np.cumsum(sizes) - sizes
    out = np.full(slots, mask, np.int32)
    out[~masked] = tokens[starts[~masked]]
    return out


def permute_sentences(tokens: np.ndarray, ends: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The sentences (see `sentences`) in a random order (BART, section 2.2)."""
    parts = sentences(tokens, ends)
    return np.concatenate([np.empty(0, np.int32), *(parts[i] for i in random.permutation(len(parts)))])


def mask_tokens(tokens: np.ndarray, random: np.random.Generator, *, mask: int, rate: float) -> np.ndarray:
    """`rate` of the tokens, chosen at random, become `mask` (BART, section 2.2)."""
    out = np.array(tokens, np.int32)
    out[_share(len(out), rate, random)] = mask
    return out


def delete_tokens(tokens: np.ndarray, random: np.random.Generator, *, rate: float) -> np.ndarray:
    """`rate` of the tokens, chosen at random, are gone (BART, section 2.2)."""
    return np.delete(np.asarray(tokens, np.int32), _share(len(tokens), rate, random))


def rotate(tokens: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The text turned so that it begins with a token chosen at random (BART, section 2.2)."""
    return np.roll(np.asarray(tokens, np.int32), -int(random.integers(max(len(tokens), 1))))


def _share(count: int, rate: float, random: np.random.Generator) -> np.ndarray:
    return random.permutation(count)[: round(rate * count)]


@dataclass(frozen=True)
class DenoiseConfig:
    """How a text is damaged; by default as BART was pretrained (section 5.1)."""

    permute_sentences: bool = True
    """Put sentences in a random order."""
    delete: float = 0.0
    """Share of tokens that are deleted."""
    mask: float = 0.0
    """Share of tokens that are masked one by one."""
    infill: float = 0.3
    """Share of tokens in spans that are masked as one."""
    span: float = 3.0
    """Mean length of such a span."""
    rotate: float = 0.0
    """Chance that a text is turned to begin at any of its tokens."""


def denoise(
    tokens: np.ndarray, ends: np.ndarray, random: np.random.Generator, config: DenoiseConfig, *, mask: int
) -> np.ndarray:
    """The damaged text of a denoising autoencoder, whose target is the text itself (BART, section 2.2).

    Text alone, without special tokens; `ends` as in `sentences`. The order is that of the fields of `config`, and a
    share is one of the tokens that are left by then.
    """
    out = np.asarray(tokens, np.int32)
    if config.permute_sentences:
        out = permute_sentences(out, ends, random)
    out = delete_tokens(out, random, rate=config.delete)
    out = mask_tokens(out, random, mask=mask, rate=config.mask)
    out = infill(out, random, mask=mask, rate=config.infill, mean=config.span)
    return rotate(out, random) if random.random() < config.rotate else out
