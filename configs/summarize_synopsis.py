"""The one-line title of a Debian package, out of its description: t5_span_debian.py taught to summarize.

    jaxformer train configs/t5_span_debian.py
    jaxformer train configs/summarize_synopsis.py
    python configs/baselines/summarize.py data/debian runs/summarize_synopsis

19 minutes on one core beside other work. On 1,853 held-out descriptions it stays far behind their first sentence:

    lead-1            rouge1 0.302  rouge2 0.146  rougeL 0.267
    lead-1, 12 words  rouge1 0.313  rouge2 0.147  rougeL 0.281
    model, greedy     rouge1 0.125  rouge2 0.028  rougeL 0.118

What it writes has a title's form and hardly ever the words of its own text: it has not learned to copy. docs/log.md
says what slows a small T5 down.
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
        steps=2400,
        evaluate_every=600,
        save_every=600,
        predictions=300,
    )
