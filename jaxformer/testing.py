"""Tiny models and a tokenizer, for our tests and yours. They build in a blink and lack no part of the large ones."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer.config import (
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    ExpertsConfig,
    ExtraHeadConfig,
    HeadConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RelativeConfig,
    RopeConfig,
    SinusoidConfig,
    StackConfig,
    TransformConfig,
)
from jaxformer.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.\n",
    "def double(x):\n    return 2 * x\n",
    "Äpfel, 日本語\n",
)


EVERY: tuple[Literal["query", "key", "value", "out"], ...] = ("query", "key", "value", "out")
PLAIN, GROUPED = AttentionConfig(4, 4, 4, bias=EVERY), AttentionConfig(4, 2, 4, rope=RopeConfig())
RMS = NormConfig("rms")


def tiny_models() -> dict[str, ModelConfig]:
    """Architectures by what sets them apart; between them they have every part there is.

    - learned: a decoder with learned positions, biases and layer norms, its head tied;
    - rotary: a decoder with rotary positions, fewer key heads, gated feed-forward and rms norms, its head its own;
    - windowed: the same, where each second of its four layers sees three tokens alone;
    - sandwich: norms around each sublayer, on queries and on keys, scales counted from one, soft-caps, a scaled
      input; three layers of a pattern in which two see little, and a fourth that is left of it;
    - parallel: attention and feed-forward side by side, half of each head turning, in neighbouring pairs;
    - alibi: distances counted on the scores, norms on what sublayers give, a norm on the input, a head with a bias;
    - experts: four feed-forwards of which each token takes two;
    - encoder: norms after each sublayer and on the input, nothing causal;
    - shared: an encoder of one layer run three times over a narrow embedding, segments, a pooler, four heads;
    - encoder_decoder: sinusoid positions, norms after each sublayer, cross attention;
    - relative: the same with buckets of distances, norms before each sublayer, a scaled head.
    """
    return {name: ModelConfig(37, 16, **parts) for name, parts in (_decoders() | _with_encoders()).items()}


def _decoders() -> dict[str, dict[str, Any]]:
    pre = BlockConfig(PLAIN, MlpConfig(32, "gelu_tanh"))
    gated = BlockConfig(GROUPED, MlpConfig(24, "silu", gated=True, bias=False), RMS)
    near = dataclasses.replace(gated, attention=dataclasses.replace(GROUPED, window=3))
    one = NormConfig("rms", offset=1.0)
    wide = AttentionConfig(4, 1, 6, 0.3, rope=RopeConfig(), qk_norm=one, softcap=2.0)
    narrow = dataclasses.replace(wide, window=3, rope=RopeConfig(100.0))
    around = [
        BlockConfig(a, MlpConfig(24, "gelu_tanh", True, False), one, "sandwich") for a in (narrow, narrow, wide)
    ]
    half = dataclasses.replace(PLAIN, bias=(), rope=RopeConfig(dim=2, interleaved=True))
    after = BlockConfig(PLAIN, MlpConfig(32, "gelu_tanh"), norms="branch")
    mixture = dataclasses.replace(gated, mlp=ExpertsConfig(8, 4, 2))

    def stack(*pattern: BlockConfig, layers: int = 2, **more: Any) -> StackConfig:
        return StackConfig(pattern, layers, True, **({"final_norm": pattern[0].norm} | more))

    return {
        "learned": {"decoder": stack(pre, input=InputConfig(LearnedConfig(64)))},
        "rotary": {"decoder": stack(gated), "head": HeadConfig(tied=False)},
        "windowed": {"decoder": stack(gated, near, layers=4), "head": HeadConfig(tied=False)},
        "sandwich": {
            "decoder": stack(*around, layers=4, input=InputConfig(scale=4.0)),
            "head": HeadConfig(softcap=7.0),
        },
        "parallel": {
            "decoder": stack(dataclasses.replace(pre, attention=half, parallel=True)),
            "head": HeadConfig(tied=False, bias=True),
        },
        "alibi": {
            "decoder": stack(after, bias=AlibiConfig(), input=InputConfig(norm=NormConfig())),
            "head": HeadConfig(bias=True),
        },
        "experts": {"decoder": stack(mixture)},
    }


def _with_encoders() -> dict[str, dict[str, Any]]:
    post = BlockConfig(PLAIN, MlpConfig(24, "relu"), norms="post")
    free = AttentionConfig(4, 4, 4, scale=1.0)
    before = BlockConfig(free, MlpConfig(24, "relu", bias=False), RMS)
    sines, buckets = InputConfig(SinusoidConfig()), RelativeConfig(8, 16)
    narrow = InputConfig(LearnedConfig(64), NormConfig(), segments=2)
    return {
        "encoder": {
            "encoder": StackConfig((post,), 2, False, InputConfig(LearnedConfig(64, offset=2), NormConfig()))
        },
        "shared": {
            "encoder": StackConfig((post,), 3, False, narrow, groups=1),
            "embedding_width": 8,
            "head": HeadConfig(bias=True, transform=TransformConfig("gelu", NormConfig())),
            "pooler": "tanh",
            "extra": (
                ExtraHeadConfig("classify", 3, "pooled"),
                ExtraHeadConfig("tag", 5, hidden="relu"),
                ExtraHeadConfig("rank", 1, "last", bias=False),
            ),
        },
        "encoder_decoder": {
            "encoder": StackConfig((post,), 2, False, sines),
            "decoder": StackConfig((dataclasses.replace(post, cross=PLAIN),), 2, True, sines),
        },
        "relative": {
            "encoder": StackConfig((before,), 2, False, final_norm=RMS, bias=buckets),
            "decoder": StackConfig((dataclasses.replace(before, cross=free),), 2, True, final_norm=RMS, bias=buckets),
            "head": HeadConfig(scale=0.25),
        },
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
