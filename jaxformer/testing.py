"""Tiny models and a tokenizer, for our tests and yours. They build in a blink and lack no part of the large ones."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    SinusoidConfig,
    StackConfig,
)
from jaxformer.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.\n",
    "def double(x):\n    return 2 * x\n",
    "Äpfel, 日本語\n",
)


def tiny_models() -> dict[str, ModelConfig]:
    """Architectures by what sets them apart.

    - learned: a decoder with learned positions, biases and layer norms, its head tied;
    - rotary: a decoder with rotary positions, fewer key heads, gated feed-forward and rms norms, its head its own;
    - windowed: the same, where each second of its four layers sees three tokens alone;
    - encoder: norms after each sublayer and on the input, nothing causal;
    - encoder_decoder: sinusoid positions, norms after each sublayer, cross attention.
    """
    every: tuple[Literal["query", "key", "value", "out"], ...] = ("query", "key", "value", "out")
    plain, grouped = AttentionConfig(4, 4, 4, bias=every), AttentionConfig(4, 2, 4, rope=RopeConfig())
    rms, head = NormConfig("rms"), HeadConfig(tied=False)
    pre = BlockConfig(plain, MlpConfig(32, "gelu_tanh"))
    post = BlockConfig(plain, MlpConfig(24, "relu"), norms="post")
    gated = BlockConfig(grouped, MlpConfig(24, "silu", gated=True, bias=False), rms)
    near = dataclasses.replace(gated, attention=dataclasses.replace(grouped, window=3))
    crossed, sines = dataclasses.replace(post, cross=plain), InputConfig(SinusoidConfig())

    def decoder(stack: StackConfig, head: HeadConfig = HeadConfig()) -> ModelConfig:
        return ModelConfig(37, 16, decoder=stack, head=head)

    return {
        "learned": decoder(StackConfig((pre,), 2, True, InputConfig(LearnedConfig(64)), NormConfig())),
        "rotary": decoder(StackConfig((gated,), 2, True, final_norm=rms), head),
        "windowed": decoder(StackConfig((gated, near), 4, True, final_norm=rms), head),
        "encoder": ModelConfig(
            37,
            16,
            encoder=StackConfig((post,), 2, False, InputConfig(LearnedConfig(64, offset=2), NormConfig())),
        ),
        "encoder_decoder": ModelConfig(
            37,
            16,
            encoder=StackConfig((post,), 2, False, sines),
            decoder=StackConfig((crossed,), 2, True, sines),
        ),
    }


def with_dropout(config: ModelConfig, rate: float) -> ModelConfig:
    """The same architecture, dropping this share of its input and of what each sublayer gives."""

    def dropping(stack: StackConfig) -> StackConfig:
        pattern = tuple(dataclasses.replace(block, dropout=rate) for block in stack.pattern)
        return dataclasses.replace(stack, pattern=pattern, input=dataclasses.replace(stack.input, dropout=rate))

    return dataclasses.replace(
        config,
        encoder=config.encoder and dropping(config.encoder),
        decoder=config.decoder and dropping(config.decoder),
    )


def randomized(params: Any, key: Array) -> Any:
    """Parameters of these shapes and dtypes, every one drawn at random: at their initial values scales are 1 and
    biases 0, and hide mistakes.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def draw(path: Any, leaf: Any) -> Array:
        middle = 1.0 if jax.tree_util.keystr(path).endswith("['scale']") else 0.0
        return jnp.asarray(random.normal(middle, 0.3, leaf.shape), leaf.dtype)

    return jax.tree.unflatten(structure, [draw(path, leaf) for path, leaf in leaves])


def tiny_tokenizer() -> Tokenizer:
    """A tokenizer with bos, eos and pad that can write any text in at most 320 pieces."""
    return train_tokenizer(TokenizerConfig("sentencepiece", 320), [sentence * 3 for sentence in SENTENCES])
