"""FLOPs from the architecture against what XLA counts, and against the formula of papers."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxformer import sharding, tree
from jaxformer.config import ExpertsConfig, ModelConfig
from jaxformer.families import llama
from jaxformer.flops import step_flops
from jaxformer.nn.model import Model
from jaxformer.testing import tiny_models

ROWS, LENGTH, TARGETS = 2, 64, 32


def widened(config: ModelConfig) -> ModelConfig:
    """The architecture at a size where its products are nearly all that it computes."""

    def attention(a):
        return a and dataclasses.replace(a, head_dim=a.head_dim * 16)

    def stack(s):
        if s is None:
            return None
        pattern = tuple(
            dataclasses.replace(
                block,
                attention=attention(block.attention),
                cross=attention(block.cross),
                mlp=dataclasses.replace(block.mlp, width=block.mlp.width * 16),
            )
            for block in s.pattern
        )
        return dataclasses.replace(s, pattern=pattern, groups=None)  # shared layers are an inner scan

    return dataclasses.replace(
        config,
        vocab=512,
        width=config.width * 16,
        embedding_width=config.embedding_width and config.embedding_width * 16,
        encoder=stack(config.encoder),
        decoder=stack(config.decoder),
    )


def counted(config: ModelConfig, remat: str = "none") -> float:
    """What XLA counts of the same step, its layers unrolled: a scanned body would count once."""
    layers = sum(stack.layers for stack in (config.encoder, config.decoder) if stack is not None)
    model = Model(config, "float32", remat=remat, unroll=layers, kernel="einsum")
    both = config.encoder is not None and config.decoder is not None
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    given = (tokens, jax.ShapeDtypeStruct((ROWS, TARGETS), jnp.int32)) if both else (tokens,)

    def loss(params, *tokens):
        out = model.apply({"params": params}, *tokens)
        sums = [x.sum() for x in (out.logits, out.pooled, *(out.extra or {}).values()) if x is not None]
        return sum(sums)

    lowered = jax.jit(jax.value_and_grad(loss)).lower(sharding.abstract_params(model), *given)
    return lowered.cost_analysis()["flops"]


def ours(config: ModelConfig, remat: str = "none") -> float:
    both = config.encoder is not None and config.decoder is not None
    return step_flops(config, ROWS, LENGTH, TARGETS if both else None, remat=remat).hardware


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("name", sorted(set(tiny_models()) - {"experts"}))
def test_flops_from_the_config_are_those_that_xla_counts(name, remat):
    """XLA counts a few elementwise operations more: up to 2% at this size."""
    config = widened(tiny_models()[name])
    assert 1 < counted(config, remat) / ours(config, remat) < 1.02


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_of_experts_those_count_that_a_token_takes(remat):
    """On the CPU every expert is computed for every row, so that XLA counts each product as often as there are."""
    config = widened(tiny_models()["experts"])
    mlp = config.decoder.pattern[0].mlp
    assert isinstance(mlp, ExpertsConfig)
    one_pass = 2 * ROWS * LENGTH * config.width * 3 * mlp.top_k * mlp.width * config.decoder.layers
    passes = 3 if remat == "none" else 4
    idle = (mlp.experts - 1) * passes * one_pass
    assert 1 < counted(config, remat) / (ours(config, remat) + idle) < 1.02


def test_a_published_decoder_takes_6n_and_12ldt_a_token():
    config, length = llama.SIZES["llama-3-8b"], 8192
    shapes = tree.flatten(sharding.abstract_params(Model(config)))
    products = sum(leaf.size for path, leaf in shapes.items() if path.endswith("kernel"))
    attention = 12 * 32 * 4096 * length
    assert step_flops(config, 4, length).model == 4 * length * (6 * products + attention)


def test_a_causal_mask_halves_attention_and_a_window_leaves_what_it_shows():
    config = tiny_models()["windowed"]  # each second layer of four sees three tokens
    whole, half = (step_flops(config, 1, 100, causal=kind).forward for kind in ("whole", "half"))
    per_pair = 4 * 4 * 4
    assert whole.attention == 4 * per_pair * 100**2
    assert half.attention == 2 * per_pair * (5050 + (1 + 2 + 98 * 3))
    assert (half.blocks, half.head) == (whole.blocks, whole.head)


def test_an_encoder_is_never_halved_and_its_head_sees_what_is_predicted():
    config = tiny_models()["encoder"]
    whole = step_flops(config, 2, 64)
    assert step_flops(config, 2, 64, causal="half") == whole
    few = step_flops(config, 2, 64, predicted=8).forward
    assert few.head * 8 == whole.forward.head
