"""BLEU of a translation run on pairs that nothing was chosen by, greedily and by beams, beside what takes no model.

    python configs/baselines/translate.py data/debian runs/transformer_en_fr

Copying gives back the source; the nearest neighbour is the translation of the training source that shares the most
words, the rarer the more they weigh. Prints a line for each, with sacrebleu's signature.
"""

import collections
import json
import math
import re
import sys
from pathlib import Path

import numpy as np

import jaxformer
from jaxformer import scores
from jaxformer.generation import Beam
from jaxformer.tasks.seq2seq import cut, ended, write

ROWS, LENGTH, MOST = 32, 192, 192


def read(file: Path) -> list[tuple[str, str]]:
    records = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [(record["en"], record["fr"]) for record in records]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def nearest(training: list[tuple[str, str]], sources: list[str]) -> list[str]:
    """The translation of each source's nearest neighbour, by the weight of shared words over that of all of both."""
    holding: dict[str, list[int]] = collections.defaultdict(list)
    for i, (source, _) in enumerate(training):
        for word in words(source):
            holding[word].append(i)
    weight = {word: math.log(len(training) / len(found)) for word, found in holding.items()}
    own = np.array([sum(weight[word] for word in words(source)) for source, _ in training])
    found = []
    for source in sources:
        shared, all_of_it = np.zeros(len(training)), 0.0
        for word in words(source):
            all_of_it += weight.get(word, math.log(len(training)))
            shared[holding.get(word, [])] += weight.get(word, 0.0)
        found.append(training[int((shared / np.maximum(own + all_of_it - shared, 1e-9)).argmax())][1])
    return found


def main(data: Path, run: str) -> None:
    training, test = read(data / "translate.train.jsonl"), read(data / "translate.test.jsonl")
    sources, references = [source for source, _ in test], [target for _, target in test]
    model, params, tokenizer = jaxformer.from_pretrained(run)
    ids = [cut(ended(tokenizer, source), LENGTH) for source in sources]
    written = {
        "copying the source": lambda: sources,
        "nearest neighbour": lambda: nearest(training, sources),
        "model, greedy": lambda: write(model, {"params": params}, tokenizer, ids, ROWS, MOST),
        "model, 4 beams": lambda: write(model, {"params": params}, tokenizer, ids, ROWS, MOST, strategy=Beam(4)),
    }
    for name, make in written.items():
        bleu = scores.bleu(make(), references)
        print(f"{name:20} BLEU {bleu.score:5.2f}  {bleu.signature}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 2 else sys.exit(__doc__)
