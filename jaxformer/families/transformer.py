"""The Transformer of "Attention Is All You Need" (Vaswani et al., 2017, arXiv:1706.03762); published as Marian's."""

from jaxformer.config import ModelConfig
from jaxformer.families import marian, seq2seq_rows


def sized(vocab: int, width: int, mlp: int, heads: int, layers: int, dropout: float) -> ModelConfig:
    """That architecture in any size: so many layers in the encoder, and in the decoder."""
    sizes = seq2seq_rows.sizes(width, layers, mlp, heads) | {"vocab_size": vocab, "dropout": dropout}
    return marian.config(sizes | {"activation_function": "relu", "scale_embedding": True})


SIZES = {
    "transformer-base": sized(37_000, 512, 2048, 8, layers=6, dropout=0.1),
    "transformer-big": sized(37_000, 1024, 4096, 16, layers=6, dropout=0.3),
}
"""Table 3 of the paper, with the vocabulary of section 5.1 for English and German.

What the paper has not is a bias on the logits, zero from the start: freeze it (heads/lm/bias) to train as it did.
"""
