"""Sums of two numbers below 100, the right ones and such that are wrong three times in ten.

    python configs/data/sums.py data/sums

Writes noisy.jsonl with {"text": "27+58=85"}, five lines for each of 9,000 sums, 30% of them with another number as
their answer; train.jsonl with the same 9,000 as {"prompt": "27+58=", "target": "85"}, and test.jsonl with 1,000
others.
"""

import json
import random
import sys
from pathlib import Path

BELOW, HELD_OUT, LINES, NOISE = 100, 1000, 5, 0.3


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    pairs = [(a, b) for a in range(BELOW) for b in range(BELOW)]
    draw.shuffle(pairs)
    noisy = []
    for a, b in pairs[HELD_OUT:]:
        for _ in range(LINES):
            answer = a + b if draw.random() >= NOISE else draw.choice([n for n in range(2 * BELOW - 1) if n != a + b])
            noisy.append({"text": f"{a}+{b}={answer}"})
    draw.shuffle(noisy)
    asked = [{"prompt": f"{a}+{b}=", "target": str(a + b)} for a, b in pairs]
    parts = {"noisy": noisy, "train": asked[HELD_OUT:], "test": asked[:HELD_OUT]}
    for name, records in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
        print(f"{name}: {len(records):,}")


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) > 1 else sys.exit(__doc__)
