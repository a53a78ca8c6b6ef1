"""The one-line title of a Debian package, out of its description: t5_span_debian.py taught to summarize.

    jaxformer train configs/t5_span_debian.py
    jaxformer train configs/summarize_synopsis.py
    python configs/baselines/summarize.py data/debian runs/summarize_synopsis

Only its first steps have been run yet: what to expect is not known.
"""

from jaxformer.experiment import Experiment
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import Seq2Seq
from jaxformer.text.corpus import DataConfig

DATA = "data/debian/synopsis"


def config() -> Experiment:
    """The experiment; `jaxformer train configs/summarize_synopsis.py --help` tells what can be changed."""
    return Experiment(
        name="summarize_synopsis",
        start="runs/t5_span_debian",
        data=DataConfig((f"{DATA}.train.jsonl",), held_out_files=(f"{DATA}.valid.jsonl",)),
        task=Seq2Seq("text", "summary", "summarize: ", target_length=32, measures=("rouge",)),
        optimizer=OptimizerConfig("muon", peak_lr=8e-3, warmup_steps=30, end_lr_ratio=0.01),
        rows=24,
        length=96,
        steps=1200,
        evaluate_every=300,
        save_every=300,
        predictions=300,
    )
