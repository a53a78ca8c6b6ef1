"""What evaluations report, from predictions and references.

Shares from 0 to 1, but for those that the field quotes in percent: SQuAD's, BLEU, chrF and TER. sacrebleu and
rouge-score are imported where they are used: pip install "jaxformer[eval]".
"""

import collections
import re
import string
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Answers = Sequence[str | Sequence[str]]
"""What is right for each prediction: one text, or several of which each is."""


class Signed(NamedTuple):
    """A score, and how it was computed: quote both (Post, 2018)."""

    score: float
    """In percent."""
    signature: str


def accuracy(predictions: Any, references: Any) -> float:
    """Share of the predictions that are right; of rows [N, K] those that are right in every column."""
    found, wanted = _pair(predictions, references)
    return float((found == wanted).reshape(len(found), -1).all(axis=1).mean())


def f1(
    predictions: Any, references: Any, average: Literal["binary", "macro", "micro"] = "macro", positive: Any = 1
) -> float:
    """Harmonic mean of precision and recall, of labels [N], or of rows [N, K] of 0 and 1: the labels that hold.

    "binary": of the label `positive` alone; "macro": the mean over the labels that are predicted or right somewhere
    (of rows: over the columns); "micro": of all counts together. A label that is neither counts 0.
    """
    found, wanted = _pair(predictions, references)
    if found.ndim > 1:
        if average == "binary":
            raise ValueError('f1: rows of labels have no single positive one: give average="macro" or "micro"')
        found, wanted = found.astype(bool), wanted.astype(bool)
    else:
        labels = np.unique([found, wanted]) if average != "binary" else np.array([positive])
        found, wanted = found[:, None] == labels, wanted[:, None] == labels
    hits, guesses, there = (found & wanted).sum(0), found.sum(0), wanted.sum(0)
    if average == "micro":
        return _harmonic(hits.sum(), guesses.sum(), there.sum())
    return float(np.mean([_harmonic(*counts) for counts in zip(hits, guesses, there, strict=True)]))


def matthews(predictions: Any, references: Any) -> float:
    """Correlation of labels [N] of any number of classes (Gorodkin, 2004); 0 where one side has a single class."""
    found, wanted = _pair(predictions, references)
    labels = np.unique([found, wanted])
    ours, theirs = (each[:, None] == labels for each in (found, wanted))
    return _correlation(ours.astype(np.float64), theirs.astype(np.float64), 0.0)


def pearson(predictions: Any, references: Any) -> float:
    """Linear correlation of numbers [N]; NaN where one side never changes."""
    found, wanted = _pair(predictions, references)
    return _correlation(found[:, None].astype(np.float64), wanted[:, None].astype(np.float64), float("nan"))


def spearman(predictions: Any, references: Any) -> float:
    """Correlation of the ranks of numbers [N], equal ones sharing theirs; NaN where one side never changes."""
    return pearson(*map(_ranks, _pair(predictions, references)))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Spans (type, first, behind the last) of the tags B-type, I-type and O of a text.

    As conlleval and seqeval read them: an I- that does not go on with its type begins a span.
    Raises ValueError for another tag.
    """
    spans, first = set(), 0
    for i, tag in enumerate([*tags, "O"]):
        previous = tags[i - 1] if i else "O"
        if tag != "O" and tag[:2] not in ("B-", "I-"):
            raise ValueError(f"tag {i} is {tag!r}: expected O, or B- or I- and a type")
        if tag[0] == "I" and previous[1:] == tag[1:]:
            continue
        if previous != "O":
            spans.add((previous[2:], first, i))
        first = i
    return spans


def entity_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall and f1 of the entities of texts tagged word by word, and f1/<type> of each type.

    An entity counts where its type and both its ends are right (Tjong Kim Sang and De Meulder, 2003), over all
    texts together: what seqeval calls the micro average.
    """
    _same_length(predictions, references)
    hits, guesses, there = (collections.Counter[str]() for _ in range(3))
    for i, (found, wanted) in enumerate(zip(predictions, references, strict=True)):
        if len(found) != len(wanted):
            raise ValueError(f"text {i}: {len(found)} tags predicted, {len(wanted)} in the reference")
        ours, theirs = entities(found), entities(wanted)
        for counter, spans in ((hits, ours & theirs), (guesses, ours), (there, theirs)):
            counter.update(kind for kind, *_ in spans)
    totals = hits.total(), guesses.total(), there.total()
    of_type = {f"f1/{k}": _harmonic(hits[k], guesses[k], there[k]) for k in sorted(guesses | there)}
    rates = {"precision": totals[0] / max(1, totals[1]), "recall": totals[0] / max(1, totals[2])}
    return rates | {"f1": _harmonic(*totals)} | of_type


def squad(predictions: Sequence[str], references: Answers) -> dict[str, float]:
    """exact_match and f1 in percent (Rajpurkar et al., 2016, section 6.1), of texts without case, ASCII
    punctuation, articles and spaces more than one.

    f1 is of the words that prediction and answer share, as bags. Of several answers the best counts; none ([] or
    "") is the right answer where there is nothing to be found (Rajpurkar et al., 2018).
    """
    _same_length(predictions, references)
    best: list[tuple[bool, float]] = []
    for prediction, answers in zip(predictions, references, strict=True):
        given = _words(prediction)
        golden = [words for answer in _several(answers) if (words := _words(answer))] or [[]]
        best.append((given in golden, max(_shared(given, words) for words in golden)))
    exact, shared = np.mean(best, axis=0) * 100
    return {"exact_match": float(exact), "f1": float(shared)}


def bleu(predictions: Sequence[str], references: Answers, tokenize: str | None = None) -> Signed:
    """Corpus BLEU (Papineni et al., 2002) by sacrebleu; `tokenize`: None is its "13a"."""
    return _sacrebleu("BLEU", predictions, references, tokenize=tokenize)


def chrf(predictions: Sequence[str], references: Answers, word_order: int = 0) -> Signed:
    """F of character n-grams, chrF (Popović, 2015), by sacrebleu; word_order 2 is chrF++."""
    return _sacrebleu("CHRF", predictions, references, word_order=word_order)


def ter(predictions: Sequence[str], references: Answers) -> Signed:
    """Translation edit rate (Snover et al., 2006) by sacrebleu: less is better, and 100 is no bound."""
    return _sacrebleu("TER", predictions, references)


def rouge(predictions: Sequence[str], references: Answers, stemmer: bool = False) -> dict[str, float]:
    """rouge1, rouge2, rougeL and rougeLsum (Lin, 2004) by rouge-score: mean F1; of several references the best.

    rougeLsum takes each line for a sentence. `stemmer`: cut English words to their stems first (Porter), as
    papers on summarization mostly do.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _missing("ROUGE", "rouge-score") from None
    _same_length(predictions, references)
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, use_stemmer=stemmer)
    pairs = zip(predictions, references, strict=True)
    scored = [scorer.score_multi(_several(answers), prediction) for prediction, answers in pairs]
    return {kind: float(np.mean([each[kind].fmeasure for each in scored])) for kind in kinds}


def _sacrebleu(metric: str, predictions: Sequence[str], references: Answers, **options: Any) -> Signed:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise _missing(metric, "sacrebleu") from None
    _same_length(predictions, references)
    rows = [_several(answers) for answers in references]
    # sacrebleu wants a list for the first reference of each text, one for the second, and so on
    streams = [[row[i] if i < len(row) else None for row in rows] for i in range(max(map(len, rows)))]
    scorer = getattr(metrics, metric)(**options)
    return Signed(scorer.corpus_score(list(predictions), streams).score, scorer.get_signature().format())


def _missing(what: str, package: str) -> ImportError:
    return ImportError(f'{what} is computed by the package {package}: pip install "jaxformer[eval]"')


def _several(answers: str | Sequence[str]) -> list[str]:
    return [answers] if isinstance(answers, str) else list(answers)


def _same_length(predictions: Any, references: Any) -> None:
    if len(predictions) != len(references) or not len(predictions):
        found = f"{len(predictions)} predictions and {len(references)} references"
        raise ValueError(f"expected as many of each, and at least one: there are {found}")


def _pair(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    found, wanted = np.asarray(predictions), np.asarray(references)
    if found.shape != wanted.shape or not found.size:
        raise ValueError(f"expected two arrays of one shape, not empty: found {found.shape} and {wanted.shape}")
    return found, wanted


def _harmonic(hits: int, guesses: int, there: int) -> float:
    """F1 from counts; 0 where nothing is guessed and nothing there."""
    return float(2 * hits / max(1, guesses + there))


def _correlation(x: np.ndarray, y: np.ndarray, undefined: float) -> float:
    """Of [N, K] and [N, K], over rows, columns together."""
    x, y = x - x.mean(0), y - y.mean(0)
    spread = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / spread) if spread else undefined


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[place]


ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def _shared(given: list[str], golden: list[str]) -> float:
    if not given or not golden:
        return float(given == golden)
    hits = (collections.Counter(given) & collections.Counter(golden)).total()
    return _harmonic(hits, len(given), len(golden))
