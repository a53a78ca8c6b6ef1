"""TF-IDF and logistic regression, beside the fine-tuned encoders: sections of packages, and names in sentences.

    pip install scikit-learn
    python configs/baselines/logistic.py sections data/debian
    python configs/baselines/logistic.py names data/brown

Learns from as many training examples as the encoder sees, of sections from the very same ones, and prints the scores
that the runs report, on the same held-out examples. A description gives its words and pairs of words; a word of a
sentence gives itself and its runs of one to four characters, and those of its two neighbours.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from jaxformer import scores
from jaxformer.text.pack import generator

SEEN = {"sections": 4000, "names": 8000}
"""Rows of the fine-tuning runs: each is another example."""
Record = dict[str, Any]


def read(file: Path) -> list[Record]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def learned(vectorizer: TfidfVectorizer, texts: list[Any], labels: list[str]) -> Callable[[list[Any]], list[str]]:
    model = make_pipeline(vectorizer, LogisticRegression(C=100, max_iter=300))
    return model.fit(texts, labels).predict


def sections(training: list[Record], test: list[Record]) -> dict[str, float]:
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    predict = learned(vectorizer, [r["text"] for r in training], [r["label"] for r in training])
    found, wanted = list(predict([r["text"] for r in test])), [r["label"] for r in test]
    return {"accuracy": scores.accuracy(found, wanted), "macro_f1": scores.f1(found, wanted)}


def names(training: list[Record], test: list[Record]) -> dict[str, float]:
    predict = learned(TfidfVectorizer(analyzer=characters), *map(list, zip(*words(training), strict=True)))
    found = iter(predict([around for around, _ in words(test)]))
    tags = [[str(next(found)) for _ in r["words"]] for r in test]
    return scores.entity_f1(tags, [r["tags"] for r in test])


def words(records: list[Record]) -> Iterator[tuple[list[str], str]]:
    """((the word before, the word, the word behind), its tag) of every word; "" where there is none."""
    for record in records:
        padded = ["", *record["words"], ""]
        for i, tag in enumerate(record["tags"]):
            yield padded[i : i + 3], tag


def characters(around: list[str]) -> list[str]:
    found = []
    for side, word in zip("<=>", (f"^{word}$" for word in around), strict=True):
        sizes = (*range(1, 5), len(word))
        found += [side + word[i : i + size] for size in sizes for i in range(len(word) - size + 1)]
    return found


def main(what: str, folder: Path) -> None:
    score, prefix = {"sections": (sections, "section."), "names": (names, "")}[what]
    training, test = (read(folder / f"{prefix}{side}.jsonl") for side in ("train", "test"))
    seen = generator(0, 0).permutation(len(training))[: SEEN[what]]
    found = score([training[i] for i in seen], test)
    print(f"{len(seen):,} examples: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 2 else sys.exit(__doc__)
