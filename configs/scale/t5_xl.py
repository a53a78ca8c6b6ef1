"""T5 1.1 XL from scratch, on spans of 512 tokens, for 16 v5e chips.

    jaxformer plan configs/scale/t5_xl.py --topology v5e:4x4
    jaxformer train configs/scale/t5_xl.py --data.files FOLDER

Planned (docs/planning.md), never run: `data/text` stands for any folder of texts.
"""

from jaxformer.experiment import Experiment
from jaxformer.families import t5
from jaxformer.optimizer import OptimizerConfig
from jaxformer.sharding import MeshConfig
from jaxformer.tasks import SpanCorruption
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig


def config() -> Experiment:
    """The experiment; `jaxformer train configs/scale/t5_xl.py --help` tells what can be changed."""
    return Experiment(
        name="t5_xl",
        model=t5.SIZES["t5-v1_1-xl"],
        data=DataConfig(files=("data/text",)),
        tokenizer=TokenizerConfig("sentencepiece", 32_000),
        task=SpanCorruption(),
        rows=128,
        length=512,
        mesh=MeshConfig(data=1, fsdp=-1),
        remat="full",
        optimizer=OptimizerConfig("adafactor", peak_lr=1e-2, schedule="inverse_sqrt", warmup_steps=10_000),
        steps=1_000_000,
        evaluate_every=5000,
        save_every=5000,
    )
