"""The one-line title of a Debian package, out of its description: t5_span_debian.py taught to summarize.

    jaxformer train configs/t5_span_debian.py
    jaxformer train configs/summarize_synopsis.py
    python configs/baselines/summarize.py data/debian runs/summarize_synopsis

Of 1,853 held-out descriptions the first sentence (lead-1) has ROUGE-1 0.302, ROUGE-2 0.146 and ROUGE-L 0.267. This
run has not been done yet: what it gives is not known.
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
