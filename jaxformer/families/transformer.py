"""The Transformer of "Attention Is All You Need" (Vaswani et al., 2017, arXiv:1706.03762); published as Marian's."""

from jaxformer.config import ModelConfig
from jaxformer.families import marian, seq2seq_rows


def _size(width: int, mlp: int, heads: int, dropout: float) -> ModelConfig:
    sizes = seq2seq_rows.sizes(width, 6, mlp, heads) | {"vocab_size": 37_000, "dropout": dropout}
    return marian.config(sizes | {"activation_function": "relu", "scale_embedding": True})


SIZES = {
    "transformer-base": _size(512, 2048, 8, dropout=0.1),
    "transformer-big": _size(1024, 4096, 16, dropout=0.3),
}
"""Table 3 of the paper, with the vocabulary of section 5.1 for English and German.

What the paper has not is a bias on the logits, zero from the start: freeze it (heads/lm/bias) to train as it did.
"""
