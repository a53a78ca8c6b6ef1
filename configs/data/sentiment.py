"""Sentences of reviews with what their writers felt: Kotzias et al., 2015, as the npm package sentiment has them.

    python configs/data/sentiment.py data/sentiment

Wants npm. 3,000 sentences about films, restaurants and things for sale, half of them pleased. Writes train.jsonl and
test.jsonl with {"text", "label"}; one sentence in five is for test, by its content.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "sentiment@5.0.2"
PARTS = ("amazon", "imdb", "yelp")
LABELS = ("negative", "positive")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=place, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(place).glob("*.tgz"))) as archive:
            files = [archive.extractfile(f"package/test/fixtures/{part}.json") for part in PARTS]
            sentences = [entry for file in files if file is not None for entry in json.load(file)]
    labelled = {(entry["text"].strip(), LABELS[entry["class"]]) for entry in sentences if entry["class"] in (0, 1)}
    sides: dict[str, list[str]] = {"train": [], "test": []}
    for text, label in sorted(labelled):
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        line = json.dumps({"text": text, "label": label}, ensure_ascii=False)
        sides["test" if int.from_bytes(digest) % 5 == 0 else "train"].append(line)
    for side, lines in sides.items():
        (folder / f"{side}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{side}: {len(lines):,}")


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) > 1 else sys.exit(__doc__)
