"""The sections of classify_section.py by the same encoder, of which nothing was learned before: to compare.

    jaxformer train configs/classify_section_scratch.py

Expect 36.1% of 1,848 held-out descriptions; from the pretrained encoder 43.9% in as many steps.
"""

import runpy
from dataclasses import replace
from pathlib import Path

from jaxformer.experiment import Experiment
from jaxformer.families import bert


def config() -> Experiment:
    """That experiment from scratch, with a tokenizer of the same kind and size."""
    here = Path(__file__)
    tuned: Experiment = runpy.run_path(str(here.with_name("classify_section.py")))["config"]()
    pretrained = runpy.run_path(str(here.with_name("bert_mlm_debian.py")))
    head = {"architectures": ["BertForSequenceClassification"], "num_labels": len(tuned.task.labels)}
    model, tokenizer = bert.config(pretrained["SIZES"] | head), pretrained["config"]().tokenizer
    return replace(tuned, name=here.stem, start=None, model=model, tokenizer=tokenizer)
