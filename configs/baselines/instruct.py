"""A tuned assistant beside the one that it began from: its answers, its turns, and what it knew before.

    python configs/baselines/instruct.py data runs/smollm2_instruct_lora

Before and after: loss on the answers of data/docstrings/test.jsonl; perplexity on text that has nothing to do with
them, package descriptions and sentences of reviews (data/debian, data/sentiment); and how many questions, written by
the tokenizer's chat template, get an answer that ends its turn within 64 tokens. Prints a few answers, too.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

import jaxformer
from jaxformer.commands import evaluate
from jaxformer.evaluating import recorded
from jaxformer.text import chat

KNOWN = {"debian/prose.test.jsonl": 60, "sentiment/test.jsonl": 400}
"""How many texts of each file."""
ASKED, SHOWN, MOST = 24, 2, 64
OTHER = ("What is the capital of France?", "Write one sentence about the sea.")


def first(file: Path, count: int) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return list(itertools.islice(lines, count))


def measured(place: str, folder: Path, *options: str) -> dict[str, float]:
    """What `jaxformer evaluate` says."""
    out = folder / "values.json"
    evaluate.main([place, *options, "--rows", "4", "--out", str(out)])
    found: dict[str, float] = json.loads(out.read_text())["values"]
    return found


def answers(place: str, questions: list[str]) -> list[tuple[str, bool]]:
    """The greedy answer to each question, and whether it ends its turn."""
    model, params, tokenizer = jaxformer.from_pretrained(place)
    texts = [chat.prompt(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    out = jaxformer.generate(model, params, [tokenizer.encode(text) for text in texts], MOST, eos=tokenizer.eos)
    rows = [row[:size].tolist() for row, size in zip(out.tokens, out.lengths, strict=True)]
    return [(tokenizer.decode(row), row[-1] == tokenizer.eos) for row in rows]


def main(data: Path, run: str) -> None:
    start = recorded(Path(run)).start
    assert start is not None, f"{run} began from no model"
    test = data / "docstrings/test.jsonl"
    asked = [json.loads(line)["messages"][0]["content"] for line in first(test, 10**9)]
    asked = [*asked[:: len(asked) // ASKED][:ASKED], *OTHER]
    lines = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, model in (("before", start), ("after", f"{run}/model")):
            told = measured(model, folder, "--task", "instruct", "--data.files", str(test), "--length", "160")
            line = f"{name:7} loss on answers {told['loss']:.3f}"
            for file, count in KNOWN.items():
                some = folder / "some.jsonl"
                some.write_text("".join(first(data / file, count)), encoding="utf-8")
                known = measured(model, folder, "--data.files", str(some), "--length", "256")
                line += f", perplexity of {Path(file).parent} {known['perplexity']:.2f}"
            written = answers(model, asked)
            ended = sum(end for _, end in written[:ASKED])
            lines.append(f"{line}, {ended} of {ASKED} answers end within {MOST} tokens")
            shown = (*range(SHOWN), *range(ASKED, len(asked)))
            lines += [f"    {asked[i]}\n      -> {written[i][0]!r}" for i in shown]
    print(*lines, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 2 else sys.exit(__doc__)
