"""Debian's package descriptions as data: prose, topics, summaries, translations.

    python configs/data/debian.py data/debian

Wants apt, as on Debian or in its containers. It fetches Debian's own lists into a folder beside the data and leaves
the system's alone. For each of these it writes .train, .valid and .test.jsonl:

    prose       {"text"}                  an English description, its title first
    section     {"text", "label"}         a description and the section of its package
    synopsis    {"text", "summary"}       a description and its one-line title
    translate   {"en", "fr"}              sentences and titles of descriptions that were translated

Packages are split by their source package, so that siblings (-dev, -data, -doc) stay together. Of valid and test
those are dropped whose text is nearly that of a training example: of which more than half of the runs of four words
stand in training text. Counts are printed.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HELD_OUT = 25
"""Of so many source packages one goes to valid, one to test."""
RUN = 4
Record = dict[str, str]


def fetch(folder: Path, language: str) -> dict[str, str]:
    """The texts of apt's lists: "packages", "en" and the language."""
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    options = [f"Acquire::Languages=en,{language}", f"Dir::State::Lists={folder.resolve()}"]
    subprocess.run(["apt-get", "update", "-q", *(word for option in options for word in ("-o", option))], check=True)
    found = {}
    for name, pattern in (("packages", "*_main_binary-*_Packages*"), ("en", "*-en*"), (language, f"*-{language}*")):
        files = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        read = (subprocess.check_output(["/usr/lib/apt/apt-helper", "cat-file", str(path)]) for path in files)
        found[name] = b"\n".join(read).decode()
    return found


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The blocks of a control file: field -> value, lines that continue it behind newlines."""
    for block in re.split(r"\n{2,}", text):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1] in " \t":
                fields[name] = f"{fields.get(name, '')}\n{line}"
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if "Package" in fields:
            yield fields


def parts(description: str) -> tuple[str, list[str]]:
    """(title, paragraphs of running text); lists and other lines that keep their form are left out."""
    title, *lines = description.split("\n")
    paragraphs = [[]] if lines else []
    for line in lines:
        if line.strip() == ".":
            paragraphs.append([])
        else:
            paragraphs[-1].append(line)
    running = (part for part in paragraphs if part and not any(re.match(r" [\s*+\-•]", line) for line in part))
    return title.strip(), [" ".join(line.strip() for line in part) for part in running]


def sentences(paragraph: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+(?=[A-ZÀ-ÖØ-Ý«\"(])", paragraph) if part.strip()]


def translations(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """Titles, and sentences of paragraphs that have as many in both languages."""
    (title, paragraphs), (other, others) = parts(ours), parts(theirs)
    yield title, other
    if len(paragraphs) == len(others):
        for one, two in zip(paragraphs, others, strict=True):
            pairs = sentences(one), sentences(two)
            if len(pairs[0]) == len(pairs[1]):
                yield from zip(*pairs, strict=True)


def is_translation(one: str, two: str) -> bool:
    return one != two and 0.4 < len(one) / max(len(two), 1) < 2 and 8 <= len(one) <= 300 and len(two) <= 400


def runs(text: str) -> set[tuple[str, ...]]:
    """Runs of four words, without case and digits; of a shorter text all its words."""
    words = re.findall(r"\w+", re.sub(r"\d", "0", text.lower()))
    return {tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}


def side(source: str) -> str:
    number = int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest()) % HELD_OUT
    return {0: "test", 1: "valid"}.get(number, "train")


def write(folder: Path, name: str, key: str, records: Iterable[tuple[str, Record]]) -> None:
    """One data set in three files; `key` is the field by which near duplicates are told."""
    of_side: dict[str, dict[str, Record]] = {"train": {}, "valid": {}, "test": {}}
    for source, record in records:
        of_side[side(source)].setdefault(json.dumps(record, ensure_ascii=False), record)
    known = set().union(*(runs(record[key]) for record in of_side["train"].values()))
    for which, found in of_side.items():
        near = {
            text
            for text, r in found.items()
            if which != "train" and 2 * len(runs(r[key]) & known) > len(runs(r[key]))
        }
        lines = [text for text in found if text not in near]
        (folder / f"{name}.{which}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{name}.{which}: {len(lines):,}" + (f", {len(near):,} near duplicates dropped" if near else ""))


def main(folder: Path, language: str = "fr") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    texts = fetch(folder / "lists", language)
    packages = {p["Package"]: p for p in stanzas(texts["packages"])}
    english = {e["Description-md5"]: e for e in stanzas(texts["en"]) if e["Package"] in packages}
    other = {t["Description-md5"]: t[f"Description-{language}"] for t in stanzas(texts[language])}

    def described() -> Iterator[tuple[str, str, dict[str, str], str]]:
        for md5, entry in english.items():
            package = packages[entry["Package"]]
            source = package.get("Source", entry["Package"]).split(" ")[0]
            yield md5, source, package, entry["Description-en"]

    def joined(description: str) -> str:
        return "\n".join(parts(description)[1])

    long = [(s, p, d) for _, s, p, d in described() if len(joined(d)) > 60]
    write(folder, "prose", "text", ((s, {"text": f"{parts(d)[0]}\n{joined(d)}"}) for s, _, d in long))
    write(folder, "section", "text", ((s, {"text": joined(d), "label": p["Section"]}) for s, p, d in long))
    write(folder, "synopsis", "text", ((s, {"text": joined(d), "summary": parts(d)[0]}) for s, _, d in long))
    pairs = ((s, pair) for md5, s, _, d in described() if md5 in other for pair in translations(d, other[md5]))
    write(folder, "translate", "en", ((s, {"en": a, language: b}) for s, (a, b) in pairs if is_translation(a, b)))


if __name__ == "__main__":
    os.environ.setdefault("DEBIAN_FRONTEND", "noninteractive")
    main(*map(Path, sys.argv[1:2]), *sys.argv[2:3]) if len(sys.argv) > 1 else sys.exit(__doc__)
