"""One task of t5_multitask.py by itself, for a third of its steps: as many rows of that task as the mixture has.

    jaxformer train configs/t5_alone.py
    jaxformer train configs/t5_alone.py --name t5_summarize --data.files data/text_to_text/summarize.train.jsonl \
        --data.held-out-files data/text_to_text/summarize.valid.jsonl
    jaxformer train configs/t5_alone.py --name t5_classify --data.files data/text_to_text/classify.train.jsonl \
        --data.held-out-files data/text_to_text/classify.valid.jsonl

What came of them stands in t5_multitask.py.
"""

import runpy
from dataclasses import replace
from pathlib import Path

from jaxformer.experiment import Experiment
from jaxformer.text.corpus import DataConfig

DATA = "data/text_to_text/translate"


def config() -> Experiment:
    """That experiment on pairs of translations alone."""
    mixed: Experiment = runpy.run_path(str(Path(__file__).with_name("t5_multitask.py")))["config"]()
    data = DataConfig((f"{DATA}.train.jsonl",), held_out_files=(f"{DATA}.valid.jsonl",))
    return replace(mixed, name="t5_alone", data=data, steps=mixed.steps // 3, evaluate_every=100)
