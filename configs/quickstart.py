"""A small code model on the Python standard library of this machine."""

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

VOCAB, WIDTH, LAYERS, HEADS = 4096, 256, 4, 4


def config() -> Experiment:
    """The experiment; `jaxformer train configs/quickstart.py --help` tells what can be changed."""
    norm = NormConfig("rms", 1e-5)
    attention = AttentionConfig(HEADS, HEADS // 2, WIDTH // HEADS, rope=RopeConfig())
    block = BlockConfig(attention, MlpConfig(3 * WIDTH, "silu", gated=True, bias=False), norm)
    return Experiment(
        name="quickstart",
        model=ModelConfig(
            VOCAB,
            WIDTH,
            decoder=StackConfig((block,), LAYERS, causal=True, final_norm=norm),
            head=HeadConfig(tied=True),
        ),
        data=DataConfig(files=("stdlib",)),
        tokenizer=TokenizerConfig("sentencepiece", VOCAB),
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=50, end_lr_ratio=0.02, weight_decay=0.1),
        steps=600,
        rows=16,
        length=256,
        evaluate_every=100,
        save_every=100,
        prompts=(
            "def read_lines(path):",
            "class Stack:\n    def push(self, item):",
            "import os\n\nfor name in ",
        ),
        compressors=True,
    )
