"""Parameters laid out to be decoded say the same."""

import jax
import numpy as np
import pytest

from jaxformer import sharding
from jaxformer.generation import Beam, Lookup, for_decoding, generate, remember, stream_tokens
from jaxformer.nn import linear
from jaxformer.nn.linear import Quantized, Turned
from jaxformer.nn.model import Model
from jaxformer.quantize import quantize
from jaxformer.testing import randomized, tiny_models

PROMPTS = [[5, 6, 7, 8], [9, 10], [3]]


def made(name):
    model = Model(tiny_models()[name], compute="float32")
    return model, randomized(sharding.abstract_params(model), jax.random.key(0))


@pytest.mark.parametrize("rows", [1, linear.FEW, linear.FEW + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (2, 1), (1, 2)])
def test_a_turned_kernel_gives_the_same_product(rows, inputs, outputs):
    shape = (3, 5, 2, 4)[: inputs + outputs]
    x, kernel = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((rows, *shape[:inputs]), shape))
    order = (*range(inputs, len(shape)), *range(inputs))
    found = linear.product(x, Turned(kernel.transpose(order)), inputs)
    np.testing.assert_allclose(found, linear.product(x, kernel, inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["learned", "rotary", "relative"])
def test_generations_are_those_of_the_parameters_as_they_come(name):
    model, params = made(name)
    laid = for_decoding(params)
    start = {} if model.config.encoder is None else {"decoder_tokens": [[0]] * 3}
    plain, found = (generate(model, each, PROMPTS, 6, eos=(), **start) for each in (params, laid))
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-4, atol=1e-5)


def test_every_way_to_generate_takes_them():
    model, params = made("rotary")
    laid = for_decoding(params)
    past = remember(model, laid, [5, 6])
    wanted = generate(model, params, PROMPTS[:1], 5, eos=()).tokens
    columns = list(stream_tokens(model, laid, PROMPTS[:1], 5, eos=(), past=past))
    np.testing.assert_array_equal(np.stack(columns, 1), wanted)
    np.testing.assert_array_equal(generate(model, laid, PROMPTS[:1], 5, strategy=Lookup(), eos=()).tokens, wanted)
    np.testing.assert_array_equal(generate(model, laid, PROMPTS[:1], 5, strategy=Beam(1), eos=()).tokens, wanted)


def test_every_kernel_of_a_dense_block_is_turned_once():
    _, params = made("rotary")
    laid = for_decoding(params)
    block = laid["decoder"]["blocks"][0]
    is_kernel = lambda leaf: isinstance(leaf, Turned)
    leaves = jax.tree.leaves_with_path(block, is_leaf=is_kernel)
    assert {is_kernel(leaf) for path, leaf in leaves if "kernel" in jax.tree_util.keystr(path)} == {True}
    assert laid["embed"] is params["embed"]
    assert jax.tree.map(id, for_decoding(laid)) == jax.tree.map(id, laid)


def test_kernels_in_few_bits_stay_as_they_are():
    _, params = made("rotary")
    few = quantize(params)
    laid = for_decoding(few)
    assert isinstance(laid["decoder"]["blocks"]["mlp"]["up"]["kernel"], Quantized)
