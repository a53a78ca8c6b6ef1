"""A small code model on the Python standard library of this machine, in under 10 minutes on two CPU cores.

    jaxformer train configs/quickstart.py

Expect about 1.32 bits per byte on the held-out files, over all their bytes (Python 3.11.7: 37 of 731 files; zlib
1.91, lzma 1.58, lzma that has read the training files 1.14). It took 8:45, compilation and compressors included.
"""

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    StackConfig,
)
from jaxformer.experiment import Experiment
from jaxformer.optimizer import OptimizerConfig
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig

VOCAB, WIDTH, LAYERS, HEADS = 4096, 192, 4, 4


def config() -> Experiment:
    """The experiment; `jaxformer train configs/quickstart.py --help` tells what can be changed."""
    norm = NormConfig("rms", 1e-5)
    attention = AttentionConfig(HEADS, HEADS // 2, WIDTH // HEADS, rope=RopeConfig())
    block = BlockConfig(attention, MlpConfig(512, "silu", gated=True, bias=False), norm)
    return Experiment(
        name="quickstart",
        model=ModelConfig(
            VOCAB,
            WIDTH,
            decoder=StackConfig((block,), LAYERS, causal=True, final_norm=norm),
            head=HeadConfig(tied=True),
        ),
        data=DataConfig(files=("stdlib",)),
        tokenizer=TokenizerConfig("sentencepiece", VOCAB, across_words=False),
        optimizer=OptimizerConfig("muon", peak_lr=1.6e-2, warmup_steps=30, end_lr_ratio=0.01),
        steps=1100,
        rows=8,
        length=256,
        evaluate_every=200,
        save_every=200,
        evaluation_stride=128,
        remat="full",
        prompts=(
            "def read_lines(path):",
            "class Stack:\n    def push(self, item):",
            "import os\n\nfor name in",
        ),
        compressors=True,
    )
