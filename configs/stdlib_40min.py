"""A larger code model on the Python standard library of this machine: the quickstart's text, four times its time.

    jaxformer train configs/stdlib_40min.py

Expect about 1.11 bits per byte on the held-out files (Python 3.11.7: 37 of 731 files; zlib 1.91, lzma 1.58): better
than lzma that has read the training files before, 1.14. It is sized for about 40 minutes on two CPU cores; the run
that was measured shared them with other work and took 61, or 91 minutes of CPU time.
"""

from jaxformer.config import AttentionConfig, BlockConfig, MlpConfig, ModelConfig, NormConfig, RopeConfig, StackConfig
from jaxformer.experiment import Experiment
from jaxformer.optimizer import OptimizerConfig
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig

VOCAB, WIDTH, LAYERS, HEADS = 4096, 256, 6, 4


def config() -> Experiment:
    """The experiment; `jaxformer train configs/stdlib_40min.py --help` tells what can be changed."""
    norm = NormConfig("rms")
    attention = AttentionConfig(HEADS, HEADS // 2, WIDTH // HEADS, rope=RopeConfig())
    block = BlockConfig(attention, MlpConfig(3 * WIDTH, "silu", gated=True, bias=False), norm)
    return Experiment(
        name="stdlib_40min",
        model=ModelConfig(VOCAB, WIDTH, decoder=StackConfig((block,), LAYERS, causal=True, final_norm=norm)),
        data=DataConfig(files=("stdlib",)),
        tokenizer=TokenizerConfig("sentencepiece", VOCAB, across_words=False),
        optimizer=OptimizerConfig("muon", peak_lr=1.2e-2, warmup_steps=50, end_lr_ratio=0.01),
        steps=1250,
        rows=8,
        length=512,
        evaluate_every=250,
        evaluation_stride=256,
        save_every=125,
        remat="full",
        prompts=("def read_lines(path):", "class Stack:\n    def push(self, item):", "import os\n\nfor name in"),
        compressors=True,
    )
