"""A small T5 learns to fill in spans of Debian's package descriptions, English with a quarter of French.

    python configs/data/debian.py data/debian
    python configs/data/text_to_text.py data/debian data/text_to_text
    jaxformer train configs/t5_span_debian.py

Half of the tokens are hidden, in spans of ten; T5 hides 15% in spans of three, which gives a short run less to learn.
The French, which t5_multitask.py is to write, is there for the vocabulary too. Expect a loss of 4.85 on all that is
held out, 4.94 on 1,874 English descriptions and 4.57 on 2,154 French sentences, after 5.23 at step 500 (on a few
rows): it is far from learned out. It took 35 minutes on one core with other work beside it.
"""

from jaxformer.experiment import Experiment
from jaxformer.families import t5
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import SpanCorruption
from jaxformer.text.corpus import DataConfig
from jaxformer.text.mixture import Part
from jaxformer.text.tokenizer import TokenizerConfig

VOCAB = 4096
SIZES = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 512, "num_layers": 2, "vocab_size": VOCAB}
OTHERWISE = {"feed_forward_proj": "relu", "dropout_rate": 0.0, "scale_decoder_outputs": False}


def config() -> Experiment:
    """The experiment; `jaxformer train configs/t5_span_debian.py --help` tells what can be changed."""
    parts = (("english", "data/debian/prose", 0.75), ("french", "data/text_to_text/french", 0.25))
    return Experiment(
        name="t5_span_debian",
        model=t5.config(SIZES | OTHERWISE),
        data=DataConfig(
            mixture=tuple(
                Part(name, (f"{file}.train.jsonl",), weight, held_out_files=(f"{file}.valid.jsonl",))
                for name, file, weight in parts
            )
        ),
        tokenizer=TokenizerConfig("sentencepiece", VOCAB),
        task=SpanCorruption(density=0.5, span=10.0, sentinels=32),
        optimizer=OptimizerConfig("muon", peak_lr=1.2e-2, warmup_steps=50, end_lr_ratio=0.01),
        rows=16,
        length=128,
        steps=2500,
        evaluate_every=500,
        save_every=500,
    )
