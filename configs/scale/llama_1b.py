"""LLaMA 3.2 1B from scratch, for one v6e chip or a small slice.

    jaxformer plan configs/scale/llama_1b.py --topology v6e:1x1
    jaxformer train configs/scale/llama_1b.py --data.files FOLDER

Planned (docs/planning.md), never run: `data/text` stands for any folder of texts.
"""

from jaxformer.experiment import Experiment
from jaxformer.families import llama
from jaxformer.optimizer import OptimizerConfig
from jaxformer.sharding import MeshConfig
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig


def config() -> Experiment:
    """The experiment; `jaxformer train configs/scale/llama_1b.py --help` tells what can be changed."""
    return Experiment(
        name="llama_1b",
        model=llama.SIZES["llama-3.2-1b"],
        data=DataConfig(files=("data/text",)),
        tokenizer=TokenizerConfig("byte_bpe", 65536),
        rows=4,
        length=4096,
        accumulate=2,
        mesh=MeshConfig(data=1, fsdp=-1),
        remat="full",
        optimizer=OptimizerConfig(peak_lr=3e-4, warmup_steps=2000),
        steps=100_000,
        evaluate_every=1000,
        save_every=1000,
    )
