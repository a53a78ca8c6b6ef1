"""Names and titles in the Brown corpus, found word by word by the encoder of bert_mlm_debian.py.

    python configs/data/brown.py data/brown
    jaxformer train configs/bert_mlm_debian.py
    jaxformer train configs/tag_brown.py
    jaxformer train configs/tag_brown_scratch.py
    python configs/baselines/logistic.py names data/brown

Expect an entity F1 of 57.8% in 5,562 held-out sentences (names 67.3, titles 37.9; 97.5% of the words) after 8,000
training sentences, where the same encoder from scratch has 47.5% (500 steps each, 105 seconds on one core). TF-IDF
and logistic regression on as many sentences, by the characters of a word and its neighbours, have 70.5%.
"""

from jaxformer.experiment import Experiment
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import Tag
from jaxformer.text.corpus import DataConfig

DATA = "data/brown"


def config() -> Experiment:
    """The experiment; `jaxformer train configs/tag_brown.py --help` tells what can be changed."""
    return Experiment(
        name="tag_brown",
        start="runs/bert_mlm_debian",
        data=DataConfig((f"{DATA}/train.jsonl",), held_out_files=(f"{DATA}/test.jsonl",)),
        task=Tag(labels=("O", "B-NAME", "I-NAME", "B-TITLE", "I-TITLE")),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=50, schedule="linear", end_lr_ratio=0.0),
        rows=16,
        length=64,
        steps=500,
        evaluate_every=100,
        evaluate_batches=20,
        save_every=250,
        predictions=6000,
    )
