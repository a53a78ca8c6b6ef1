"""The names and titles of tag_brown.py by the same encoder, of which nothing was learned before: to compare.

    jaxformer train configs/tag_brown_scratch.py

Expect an entity F1 of 47.5% in 5,562 held-out sentences; from the pretrained encoder 57.8% in as many steps.
"""

import runpy
from dataclasses import replace
from pathlib import Path

from jaxformer.experiment import Experiment
from jaxformer.families import bert


def config() -> Experiment:
    """That experiment from scratch, with a tokenizer of the same kind and size."""
    here = Path(__file__)
    tuned: Experiment = runpy.run_path(str(here.with_name("tag_brown.py")))["config"]()
    pretrained = runpy.run_path(str(here.with_name("bert_mlm_debian.py")))
    head = {"architectures": ["BertForTokenClassification"], "num_labels": len(tuned.task.labels)}
    model, tokenizer = bert.config(pretrained["SIZES"] | head), pretrained["config"]().tokenizer
    return replace(tuned, name=here.stem, start=None, model=model, tokenizer=tokenizer)
