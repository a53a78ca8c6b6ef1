"""Translate, summarize and classify with one model, which a prefix of the text tells what to do.

    jaxformer train configs/t5_span_debian.py
    jaxformer train configs/t5_multitask.py

Its tasks have as many rows each; t5_alone.py learns one of them from as many rows, to compare. 9 minutes on one core
beside other work. Expect, on what is held out, in one model and each task alone (its third of the steps):

    translate    loss 4.15 and 4.09
    summarize    loss 4.91 and 4.75
    classify     loss 1.12 and 0.96, 14.0% and 17.2% right

The mixture stays within 0.16 nats a token of each. None of them is learned out: t5_span_debian.py has not learned
enough in its half hour for a few hundred steps to build on.
"""

from jaxformer.experiment import Experiment
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import Seq2Seq
from jaxformer.text.corpus import DataConfig
from jaxformer.text.mixture import Part

DATA = "data/text_to_text"
MEASURES = ("bleu", "chrf", "rouge", "exact")


def config() -> Experiment:
    """The experiment; `jaxformer train configs/t5_multitask.py --help` tells what can be changed."""
    return Experiment(
        name="t5_multitask",
        start="runs/t5_span_debian",
        data=DataConfig(
            mixture=tuple(
                Part(name, (f"{DATA}/{name}.train.jsonl",), 1.0, held_out_files=(f"{DATA}/{name}.valid.jsonl",))
                for name in ("translate", "summarize", "classify")
            )
        ),
        task=Seq2Seq(target_length=48, measures=MEASURES),
        optimizer=OptimizerConfig("muon", peak_lr=8e-3, warmup_steps=30, end_lr_ratio=0.01),
        rows=24,
        length=96,
        steps=900,
        evaluate_every=300,
        save_every=300,
        predictions=500,
    )
