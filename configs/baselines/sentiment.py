"""How much better liked two policies are than the model that both began from, and how far they went for it.

    python configs/baselines/sentiment.py data/ratings runs benchmarks/results

Of runs/sft_sentiment, and of runs/ppo_sentiment and runs/dpo_sentiment with half and with all of their adapters: the
reward of 192 answers drawn to held-out prompts, by the model that they were trained with (of the raters at even
places) and by that of the other raters, which no policy has seen; the divergence from the model that they began from,
in nats an answer, log p - log q of the drawn answers; and their length. Writes sentiment.md and sentiment.png: reward
against divergence.
"""

import itertools
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from rich.progress import track

import jaxformer
from jaxformer.align import ModelReward, answers
from jaxformer.align.exchange import prompt_of
from jaxformer.align.rewards import Judges
from jaxformer.align.rollout import Prompt, Roller
from jaxformer.nn.model import Model
from jaxformer.objective import ADAPTER

COUNT, ROWS, PROMPT, ANSWER, PARTS = 192, 32, 12, 28, (0.5, 1.0)
JUDGES = {"trained with": "reward_sentiment", "other": "reward_sentiment_odd"}
POLICIES = {"PPO": "ppo_sentiment", "DPO": "dpo_sentiment"}
Found = dict[str, tuple[float, float]]
"""A mean and its standard error."""


def scaled(adapter: Mapping[str, Any], part: float) -> Any:
    """The adapter, its terms times `part`."""
    return jax.tree.map_with_path(lambda path, x: x * part if path[-1].key == "scale" else x, adapter)


def measured(model: Model, params: Any, adapter: Any, roller: Roller, prompts: list[Prompt], what: str) -> Found:
    """What the policy's answers are worth, and how far it is from `params` alone."""

    @jax.jit
    def total(held: Any, rows: Mapping[str, Array]) -> Array:
        out = answers.read(model, held, jax.random.key(0), False, rows)
        return answers.summed(answers.log_probs(model, held, out, rows["answers"]), rows["written"])

    first = {"params": params}
    held = first if adapter is None else first | {ADAPTER: adapter}
    values: dict[str, list[float]] = {}
    for start in track(range(0, len(prompts), ROWS), what):
        key = jax.random.fold_in(jax.random.key(0), start)
        drawn = roller(held, prompts[start : start + ROWS], np.ones(ROWS), 1, 1.0, key)
        rows = {name: drawn.rows[name] for name in ("tokens", "mask", "answers", "written")}
        apart = np.asarray(total(held, rows)) - np.asarray(total(first, rows))
        found = drawn.rewards | {"divergence": apart, "tokens": rows["written"].sum(1)}
        for name, some in found.items():
            values.setdefault(name, []).extend(map(float, some))
    return {name: (float(np.mean(x)), float(np.std(x) / math.sqrt(len(x)))) for name, x in values.items()}


def main(data: Path, runs: Path, results: Path) -> None:
    model, params, tokenizer = jaxformer.from_pretrained(runs / "sft_sentiment")
    assert tokenizer is not None
    with (data / "begun_test.jsonl").open(encoding="utf-8") as lines:
        asked = [json.loads(line)["prompt"] for line in lines]
    ids = ((each, prompt_of(tokenizer, each, encoder=False)) for each in asked)
    short = itertools.islice((pair for pair in ids if len(pair[1]) <= PROMPT), COUNT)
    prompts = [Prompt(each, text, {}) for text, each in short]
    judges = [
        ModelReward(str(runs / run / "model"), length=48, joined=True, name=name) for name, run in JUDGES.items()
    ]
    roller = Roller(model, tokenizer, Judges(tuple(judges)), PROMPT, ANSWER)
    found = {("SFT", 0.0): measured(model, params, None, roller, prompts, "SFT")}
    for name, run in POLICIES.items():
        _, adapter = jaxformer.load_adapter(runs / run / "adapter", model, params)
        for part in PARTS:
            what = f"{name}, {part:g} of its adapter"
            found[name, part] = measured(model, params, scaled(adapter, part), roller, prompts, what)
    columns = (*JUDGES, "divergence", "tokens")
    lines = [f"| policy | of its adapter | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for (name, part), values in found.items():
        cells = (f"{mean:.2f} ± {error:.2f}" for mean, error in map(values.__getitem__, columns))
        lines.append(f"| {name} | {part:g} | {' | '.join(cells)} |")
    command = f"python configs/baselines/sentiment.py {data} {runs} {results}"
    told = f"`{command}`: {len(prompts)} answers each, ± standard error."
    (results / "sentiment.md").write_text(f"# Reward against divergence\n\n{told}\n\n" + "\n".join(lines) + "\n")
    print(*lines, sep="\n")
    draw(found, results / "sentiment.png")


def draw(found: Mapping[tuple[str, float], Found], path: Path) -> None:
    figure = Figure(figsize=(10, 4.5), dpi=120, layout="constrained")
    for axes, judge in zip(figure.subplots(1, 2, sharey=True), JUDGES, strict=True):
        for i, name in enumerate(POLICIES):
            points = [values for (policy, _), values in found.items() if policy in ("SFT", name)]
            x, y, error = zip(*((each["divergence"][0], *each[judge]) for each in points), strict=True)
            axes.errorbar(x, y, error, fmt="o-", capsize=3, color=f"C{i}", label=f"{name}, by parts of its adapter")
        axes.set(
            title=f"the reward model {judge.replace('other', 'of other raters')}",
            xlabel="divergence (nats an answer)",
        )
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("reward")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:])) if len(sys.argv) == 4 else sys.exit(__doc__)
