"""A small decoder learns sums from a text in which three answers of ten are wrong: where grpo_arithmetic begins.

    python configs/data/sums.py data/sums
    jaxformer train configs/sums_noisy.py

Expect a held-out loss of 1.234 nats a token after 6 to 7 minutes on two cores. It has 0.9 million parameters, and
its text five lines for each of 9,000 sums. Where grpo_arithmetic begins, 65 to 70% of what it draws is right.
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

VOCAB, WIDTH, LAYERS, HEADS, DATA = 260, 128, 4, 4, "data/sums"


def config() -> Experiment:
    """The experiment; `jaxformer train configs/sums_noisy.py --help` tells what can be changed."""
    norm = NormConfig("rms", 1e-5)
    attention = AttentionConfig(HEADS, HEADS, WIDTH // HEADS, rope=RopeConfig())
    block = BlockConfig(attention, MlpConfig(384, "silu", gated=True, bias=False), norm)
    return Experiment(
        name="sums_noisy",
        model=ModelConfig(
            VOCAB,
            WIDTH,
            decoder=StackConfig((block,), LAYERS, causal=True, final_norm=norm),
            head=HeadConfig(tied=True),
        ),
        data=DataConfig((f"{DATA}/noisy.jsonl",)),
        tokenizer=TokenizerConfig("byte_bpe", VOCAB, add_bos=True),  # bytes, and no pieces of more than one
        optimizer=OptimizerConfig("muon", peak_lr=1e-2, warmup_steps=30, end_lr_ratio=0.01),
        steps=600,
        rows=16,
        length=256,
        evaluate_every=100,
        save_every=200,
        prompts=("27+58=", "40+2="),
        prompt_tokens=4,
    )
