"""LLaMA 3 70B from scratch, for 128 v5p chips or a pod of 256 v6e.

    jaxformer plan configs/scale/llama_70b.py --topology v5p:4x4x8
    jaxformer train configs/scale/llama_70b.py --data.files FOLDER

Planned (docs/planning.md), never run: `data/text` stands for any folder of texts.
"""

from jaxformer.experiment import Experiment
from jaxformer.families import llama
from jaxformer.optimizer import OptimizerConfig
from jaxformer.sharding import MeshConfig
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig


def config() -> Experiment:
    """The experiment; `jaxformer train configs/scale/llama_70b.py --help` tells what can be changed."""
    return Experiment(
        name="llama_70b",
        model=llama.SIZES["llama-3-70b"],
        data=DataConfig(files=("data/text",)),
        tokenizer=TokenizerConfig("byte_bpe", 128_000),
        rows=128,
        length=8192,
        mesh=MeshConfig(data=1, fsdp=-1),
        remat="full",
        optimizer=OptimizerConfig(peak_lr=1.5e-4, warmup_steps=2000),
        steps=100_000,
        evaluate_every=1000,
        save_every=1000,
    )
