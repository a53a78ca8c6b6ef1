"""A small BERT that learns from Debian's package descriptions which words were hidden: to fine-tune it on tasks.

    python configs/data/debian.py data/debian
    jaxformer train configs/bert_mlm_debian.py

Expect 26.9% of the hidden words' pieces in 1,874 held-out descriptions (loss 4.97 nats, from 8.7). It took 9 minutes
on one core, tokenizer and compilation included. The 4.1 million tokens that it reads, most of an epoch, are few for a
BERT: the loss still falls.

classify_section.py and tag_brown.py go on from this model.
"""

from jaxformer.experiment import Experiment
from jaxformer.families import bert
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import MaskedLM
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig

DATA, VOCAB, WIDTH, LAYERS = "data/debian/prose", 6144, 128, 2
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH // 32,
    "intermediate_size": 4 * WIDTH,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
}


def config() -> Experiment:
    """The experiment; `jaxformer train configs/bert_mlm_debian.py --help` tells what can be changed."""
    return Experiment(
        name="bert_mlm_debian",
        model=bert.config(SIZES),
        data=DataConfig((f"{DATA}.train.jsonl",), held_out_files=(f"{DATA}.valid.jsonl",)),
        tokenizer=TokenizerConfig("wordpiece", VOCAB, lowercase=False),
        task=MaskedLM(whole_words=True),
        optimizer=OptimizerConfig("muon", peak_lr=4e-3, warmup_steps=100, end_lr_ratio=0.01),
        rows=16,
        length=128,
        steps=2000,
        evaluate_every=250,
        save_every=500,
    )
