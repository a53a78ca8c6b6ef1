"""A small T5 that was taught to write the titles of packages learns from how much of the real ones its own hold.

    python configs/data/debian.py data/debian
    jaxformer train configs/t5_span_debian.py
    jaxformer train configs/summarize_synopsis.py
    jaxformer train configs/grpo_t5_summaries.py
    python configs/baselines/before_after.py configs/grpo_t5_summaries.py

Expect the mean of ROUGE-1, 2 and L of drawn titles, 8 to each of 64 held-out descriptions, to rise from 0.033 (90%
interval 0.028 to 0.037) to 0.055 (0.050 to 0.060); that of the likeliest title of all 990 is 0.113 at the end. It
writes more often what titles hold ("development files", "library for"), and copies no better than before. 120 steps
took 4 minutes on two cores; 15% of the time were rollout, 3% ROUGE.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxformer.align import GRPO, FunctionReward, reward
from jaxformer.align.rewards import rouge
from jaxformer.experiment import Experiment
from jaxformer.optimizer import OptimizerConfig
from jaxformer.text.corpus import DataConfig

DATA = "data/debian/synopsis"


@reward("title")
def title(prompts: Sequence[Any], answers: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Sequence[float]:
    """ROUGE of an answer beside its package's own title, 0 to 1."""
    return rouge(prompts, answers, [{"target": record["summary"]} for record in records])


def config() -> Experiment:
    """The experiment; `jaxformer train configs/grpo_t5_summaries.py --help` tells what can be changed."""
    return Experiment(
        name="grpo_t5_summaries",
        start="runs/summarize_synopsis",
        data=DataConfig((f"{DATA}.train.jsonl",), held_out_files=(f"{DATA}.valid.jsonl",)),
        task=GRPO(
            (FunctionReward("title"),),
            prompt="text",
            prefix="summarize: ",
            given=("summary",),
            encoder=True,
            answer_length=24,
            beta=0.02,
        ),
        optimizer=OptimizerConfig(
            peak_lr=1e-4, warmup_steps=5, schedule="linear", end_lr_ratio=0.1, weight_decay=0.0
        ),
        rows=16,
        length=96,
        steps=120,
        evaluate_every=40,
        evaluate_batches=20,
        save_every=40,
    )
