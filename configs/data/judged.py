"""Pairs of a model's own answers, by what a reward model says of them.

    python configs/data/judged.py runs/sft_sentiment/model runs/reward_sentiment/model data/ratings

Draws four answers to each of 512 prompts of DATA/begun_train.jsonl and 128 of begun_test.jsonl, and writes
DATA/judged_train.jsonl and judged_test.jsonl with {"prompt", "chosen", "rejected"}: the best and the worst of each,
among those that ended within 28 tokens.
"""

import itertools
import json
import sys
from pathlib import Path

import jax
from rich.progress import track

import jaxformer
from jaxformer.align import ModelReward
from jaxformer.align.rewards import Judges
from jaxformer.generation import Sample
from jaxformer.text.turns import begun

COUNTS, EACH, ROWS, LENGTH = {"train": 512, "test": 128}, 4, 16, 28


def main(policy: str, judge: str, data: Path) -> None:
    model, params, tokenizer = jaxformer.from_pretrained(policy)
    judges = Judges((ModelReward(judge, length=48, rows=32, joined=True),))
    for number, (side, count) in enumerate(COUNTS.items()):
        with (data / f"begun_{side}.jsonl").open(encoding="utf-8") as lines:
            prompts = [json.loads(line)["prompt"] for line in itertools.islice(lines, count)]
        key, pairs = jax.random.key(number), []
        for first in track(range(0, count, ROWS), side):
            asked = prompts[first : first + ROWS]
            ids = [begun(tokenizer, tokenizer.encode(prompt)) for prompt in asked]
            drawn = jax.random.fold_in(key, first)
            out = jaxformer.generate(model, params, ids, LENGTH, strategy=Sample(), samples=EACH, key=drawn)
            rows = [row[:size].tolist() for row, size in zip(out.tokens, out.lengths, strict=True)]
            texts = [tokenizer.decode(row) for row in rows]
            worth, _ = judges([prompt for prompt in asked for _ in range(EACH)], texts, [{}] * len(texts))
            for i, prompt in enumerate(asked):
                some = [j for j in range(EACH * i, EACH * (i + 1)) if rows[j][-1] == tokenizer.eos and texts[j]]
                if len({texts[j] for j in some}) > 1:
                    best, worst = max(some, key=worth.__getitem__), min(some, key=worth.__getitem__)
                    pairs.append({"prompt": prompt, "chosen": texts[best], "rejected": texts[worst]})
        path = data / f"judged_{side}.jsonl"
        path.write_text("".join(f"{json.dumps(pair, ensure_ascii=False)}\n" for pair in pairs), encoding="utf-8")
        print(f"{path.stem}: {len(pairs):,}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3])) if len(sys.argv) > 3 else sys.exit(__doc__)
