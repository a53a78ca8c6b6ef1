"""A decoder that was taught wrong sums learns by reward which of its answers are right.

    python configs/data/sums.py data/sums
    jaxformer train configs/sums_noisy.py
    jaxformer train configs/grpo_arithmetic.py
    jaxformer train configs/grpo_arithmetic.py --seed 1 --name grpo_arithmetic_1
    jaxformer train configs/grpo_arithmetic.py --seed 2 --name grpo_arithmetic_2
    python configs/baselines/before_after.py configs/grpo_arithmetic.py

Expect 98.0% of the drawn answers to 1,000 sums that it has never read to be right, 98.2% and 96.4% with the other
seeds; the first ones that are drawn to training's sums are right 65 to 70 times in 100. Each run took 6 to 8 minutes
on two cores that had other work too; 13 to 14% of the steps' time were rollout, rewards less than 1%.
"""

from jaxformer.align import GRPO, FunctionReward
from jaxformer.experiment import Experiment
from jaxformer.optimizer import OptimizerConfig
from jaxformer.text.corpus import DataConfig

DATA, BEGIN = "data/sums", "runs/sums_noisy"


def config() -> Experiment:
    """The experiment; `jaxformer train configs/grpo_arithmetic.py --help` tells what can be changed."""
    return Experiment(
        name="grpo_arithmetic",
        start=BEGIN,
        data=DataConfig((f"{DATA}/train.jsonl",), held_out_files=(f"{DATA}/test.jsonl",)),
        task=GRPO((FunctionReward("exact"),), given=("target",), answer_length=5, held_out_temperature=1.0),
        optimizer=OptimizerConfig(
            peak_lr=2e-4, warmup_steps=5, schedule="linear", end_lr_ratio=0.0, weight_decay=0.0
        ),
        rows=32,
        length=16,
        steps=500,
        evaluate_every=50,
        evaluate_batches=8,
        save_every=100,
    )
