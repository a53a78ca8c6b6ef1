"""How often a denoiser gives back the very word that one mask hides, in texts that nothing was chosen by.

    python configs/baselines/fill.py data/debian runs/bart_denoise

One word of each description's beginning is hidden; the model writes the text anew, and its word is what stands there
between what came before the mask and what came after it. Beside it: the most frequent word of the training texts.
"""

import collections
import json
import re
import sys
from pathlib import Path

import numpy as np

import jaxformer
from jaxformer.tasks.denoise import fill

ROWS, MOST, CHARACTERS, SHOWN = 64, 64, 160, 8
WORD = r"[^\W\d_]+"


def texts(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"][:CHARACTERS].rsplit(" ", 1)[0] for line in lines]


def hide(text: str, random: np.random.Generator) -> tuple[str, str, str] | None:
    """(what comes before, the word, what comes after), of a word between two spaces; None where there is none."""
    places = list(re.finditer(rf"(?<= ){WORD}(?= )", text))
    if not places:
        return None
    place = places[random.integers(len(places))]
    return text[: place.start()], place[0], text[place.end() :]


def between(text: str, before: str, after: str) -> str:
    """What the text has between the ends of both, "" where they are not there."""
    left, right = before[-12:], after[:12]
    found = re.search(f"{re.escape(left)}(.*?){re.escape(right)}", text, re.DOTALL)
    return "" if found is None else found[1]


def main(data: Path, run: str) -> None:
    random = np.random.default_rng(0)
    hidden = [found for text in texts(data / "prose.test.jsonl") if (found := hide(text, random))]
    words = collections.Counter(word for text in texts(data / "prose.train.jsonl") for word in re.findall(WORD, text))
    most = words.most_common(1)[0][0]
    model, params, tokenizer = jaxformer.from_pretrained(run)
    masked = [f"{before}<mask>{after}" for before, _, after in hidden]
    written = fill(model, {"params": params}, tokenizer, masked, ROWS, MOST)
    given = [between(text, before, after) for text, (before, _, after) in zip(written, hidden, strict=True)]
    right = [word == one for one, (_, word, _) in zip(given, hidden, strict=True)]
    usual = [word == most for _, word, _ in hidden]
    print(f"{len(hidden)} held-out texts, one word of each hidden")
    print(f"always {most!r}: {np.mean(usual):.1%}   model: {np.mean(right):.1%}")
    for text, one, (_, word, _) in list(zip(masked, given, hidden, strict=True))[:: len(hidden) // SHOWN][:SHOWN]:
        print(f"\n  {text!r}\n  hidden: {word!r}  written: {one!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 2 else sys.exit(__doc__)
