"""Debian's descriptions as text to text: three tasks in one form, told apart by a prefix; and French on its own.

    python configs/data/debian.py data/debian
    python configs/data/text_to_text.py data/debian data/text_to_text

Writes {"source", "target"} of translate, summarize and classify, as Raffel et al. (2020, section 2.4) put them, and
french, {"text"}: the French sides of the pairs. Each in .train, .valid and .test.jsonl as the first script parted
them. A package's descriptions are on the same side in all of them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

Record = dict[str, str]
MADE: dict[str, tuple[str, Callable[[Record], Record]]] = {
    "translate": (
        "translate",
        lambda r: {"source": f"translate English to French: {r['en']}", "target": r["fr"]},
    ),
    "summarize": ("synopsis", lambda r: {"source": f"summarize: {r['text']}", "target": r["summary"]}),
    "classify": ("section", lambda r: {"source": f"classify: {r['text']}", "target": r["label"]}),
    "french": ("translate", lambda r: {"text": r["fr"]}),
}
"""Of each data set: which one it is made of, and how."""


def main(data: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (made_of, make) in MADE.items():
        for side in ("train", "valid", "test"):
            lines = (data / f"{made_of}.{side}.jsonl").read_text(encoding="utf-8").splitlines()
            made = dict.fromkeys(json.dumps(make(json.loads(line)), ensure_ascii=False) for line in lines)
            (folder / f"{name}.{side}.jsonl").write_text("".join(f"{line}\n" for line in made), encoding="utf-8")
            print(f"{name}.{side}: {len(made):,}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3])) if len(sys.argv) > 2 else sys.exit(__doc__)
