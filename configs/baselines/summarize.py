"""ROUGE of a summarization run on descriptions that nothing was chosen by, beside their first sentence (lead-1).

    python configs/baselines/summarize.py data/debian runs/summarize_synopsis

Wants rouge-score: pip install "jaxformer[eval]". Prints a line for each, and some of what the model wrote.
"""

import json
import re
import sys
from pathlib import Path

import jaxformer
from jaxformer import scores
from jaxformer.tasks.seq2seq import cut, ended, write

ROWS, LENGTH, MOST, SHOWN = 64, 96, 32, 5
PREFIX = "summarize: "


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def main(data: Path, run: str) -> None:
    lines = (data / "synopsis.test.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    model, params, tokenizer = jaxformer.from_pretrained(run)
    ids = [cut(ended(tokenizer, PREFIX + record["text"]), LENGTH) for record in records]
    wanted = [record["summary"] for record in records]
    written = {
        "lead-1": [first_sentence(record["text"]) for record in records],
        "lead-1, 12 words": [" ".join(first_sentence(record["text"]).split()[:12]) for record in records],
        "model, greedy": write(model, {"params": params}, tokenizer, ids, ROWS, MOST),
    }
    print(f"{len(records)} held-out descriptions")
    for name, texts in written.items():
        found = scores.rouge(texts, wanted)
        print(f"{name:18}" + "  ".join(f"{kind} {found[kind]:.3f}" for kind in ("rouge1", "rouge2", "rougeL")))
    for record, text in list(zip(records, written["model, greedy"], strict=True))[:: len(records) // SHOWN][:SHOWN]:
        print(f"\n  {first_sentence(record['text'])}\n  own title: {record['summary']}\n  model:     {text}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 2 else sys.exit(__doc__)
