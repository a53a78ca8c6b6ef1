"""Sentences of film and product reviews with what people felt on reading them, as preferences of two groups.

    python configs/data/ratings.py data/ratings

Wants pip: the ratings are in the source distribution of vaderSentiment (Hutto and Gilbert, 2014), from -4 to 4 by 15
to 20 people each. The people are halved, those at even places and those at odd ones. Writes, of each half,
<half>_train.jsonl and <half>_test.jsonl with {"prompt": "", "chosen", "rejected", "margin"}: of two sentences the one
that this half liked more, by at least 0.5. And for a policy begun_train.jsonl and begun_test.jsonl with {"prompt",
"answer"}, the first four words of longer sentences and what follows. One sentence in five is for test.
"""

import hashlib
import json
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PACKAGE = "vaderSentiment==3.3.2"
PARTS = ("amazonReviewSnippets", "movieReviewSnippets")
GAP, PAIRS, WORDS, LONGEST = 0.5, {"train": 6000, "test": 1000}, 4, 200
BEGUN = {"train": None, "test": 500}
SIDES = ("train", "test")
Rated = tuple[str, tuple[float, float]]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sentences = sorted(rated())
    sides = {side: [each for each in sentences if is_test(each[0]) == (side == "test")] for side in SIDES}
    draw = random.Random(0)
    for half, name in enumerate(("even", "odd")):
        for side in SIDES:
            records = list(pairs(sides[side], half, PAIRS[side], draw))
            write(folder / f"{name}_{side}.jsonl", records)
        print(f"of these the others order {agreement(dict(sentences), records, 1 - half):.1%} alike")
    for side in SIDES:
        records = list(begun(text for text, _ in sides[side]))
        draw.shuffle(records)
        write(folder / f"begun_{side}.jsonl", records[: BEGUN[side]])


def rated() -> list[Rated]:
    """(a sentence, the mean of its ratings by each half) of all."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", PACKAGE]
        subprocess.run(command, cwd=place, check=True)
        with tarfile.open(next(Path(place).glob("*.tar.gz"))) as package:
            inner = next(each for each in package.getnames() if each.endswith("hutto_ICWSM_2014.tar.gz"))
            package.extract(inner, place, filter="data")
        with tarfile.open(Path(place) / inner) as archive:
            for part in PARTS:
                texts, ratings = (lines(archive, f"{part}_{kind}.txt") for kind in ("GroundTruth", "anonDataRatings"))
                given = {line[0]: json.loads(line[3]) for line in ratings}
                for number, _, text in texts:
                    values = given[number]
                    if len(text) <= LONGEST:
                        found[text.strip()] = statistics.fmean(values[::2]), statistics.fmean(values[1::2])
    return list(found.items())


def agreement(ratings: dict[str, tuple[float, float]], records: list[dict[str, Any]], half: int) -> float:
    """The share of pairs that this half orders as they are."""
    return statistics.fmean(ratings[pair["chosen"]][half] > ratings[pair["rejected"]][half] for pair in records)


def begun(texts: Iterable[str]) -> Iterator[dict[str, str]]:
    """Sentences of enough words in two parts; of those that begin alike the first."""
    seen = set[str]()
    for text in texts:
        words = text.split()
        first = " ".join(words[:WORDS])
        if len(words) > 2 * WORDS and first not in seen:
            seen.add(first)
            yield {"prompt": first, "answer": f" {' '.join(words[WORDS:])}"}


def lines(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    """The cells of each line of a file."""
    file = archive.extractfile(f"hutto_ICWSM_2014/{name}")
    assert file is not None
    text = file.read().decode("utf-8-sig", errors="replace")
    return [line.split("\t") for line in text.splitlines() if line.strip()]


def is_test(text: str) -> bool:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 5 == 0


def pairs(sentences: list[Rated], half: int, count: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    """So many pairs of sentences whose ratings differ."""
    while count:
        (a, first), (b, second) = draw.sample(sentences, 2)
        gap = first[half] - second[half]
        if abs(gap) >= GAP:
            chosen, rejected = (a, b) if gap > 0 else (b, a)
            yield {"prompt": "", "chosen": chosen, "rejected": rejected, "margin": round(abs(gap), 3)}
            count -= 1


def write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records), encoding="utf-8")
    print(f"{path.stem}: {len(records):,}")


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) > 1 else sys.exit(__doc__)
