"""The Transformer of 2017, small, from English to French: titles and sentences of Debian's package descriptions.

    python configs/data/debian.py data/debian
    jaxformer train configs/transformer_en_fr.py
    python configs/baselines/translate.py data/debian runs/transformer_en_fr

As in the paper: post-norm blocks, sinusoids, one vocabulary for both languages and the logits, label smoothing 0.1,
a warm-up and then the root of the step, the mean of the last five checkpoints. Unlike it: three layers of width 192,
muon in place of Adam, and no dropout. 34 minutes of training on two cores, of which a quarter of the steps had other
work beside them. Expect, on 2,053 pairs of packages that neither training nor any choice has seen (sacrebleu,
nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0):

    copying the source   BLEU  6.48
    nearest neighbour    BLEU  7.33
    model, greedy        BLEU 32.18
    model, 4 beams       BLEU 33.53

This is one run; its curve is benchmarks/results/transformer_en_fr.png.
"""

from jaxformer.experiment import Experiment
from jaxformer.families.transformer import sized
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import Seq2Seq
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig

DATA, VOCAB = "data/debian/translate", 6144


def config() -> Experiment:
    """The experiment; `jaxformer train configs/transformer_en_fr.py --help` tells what can be changed."""
    return Experiment(
        name="transformer_en_fr",
        model=sized(VOCAB, width=192, mlp=768, heads=4, layers=3, dropout=0.0),
        data=DataConfig((f"{DATA}.train.jsonl",), held_out_files=(f"{DATA}.valid.jsonl",)),
        tokenizer=TokenizerConfig("sentencepiece", VOCAB),
        freeze=("heads/lm/bias",),
        task=Seq2Seq("en", "fr", target_length=256, label_smoothing=0.1, measures=("bleu", "chrf")),
        optimizer=OptimizerConfig("muon", peak_lr=1.2e-2, schedule="inverse_sqrt", warmup_steps=100, b2=0.98),
        rows=16,
        length=192,
        steps=1050,
        evaluate_every=150,
        save_every=50,
        keep=5,
        average=5,
    )
