"""Laws of kernels in few bits: how far they are off, what they weigh, and that nothing of their size is ever made."""

import dataclasses
import functools
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from jaxformer import lora, quantize, source, tree
from jaxformer.generation import generate
from jaxformer.lora import ALL_LINEAR, LoraConfig
from jaxformer.losses import cross_entropy
from jaxformer.nn.linear import Linear, Quantized, grouped, product
from jaxformer.nn.model import Model
from jaxformer.sharding import abstract_params
from jaxformer.testing import randomized, tiny_models
from jaxformer.train.state import TrainState
from jaxformer.train.step import make_step

KINDS = ["rotary", "shared", "relative", "experts"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_width = pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 4), (4, 4), (4, 8)], ids=str)


@functools.cache
def case(kind):
    """(model, parameters, tokens), all parameters drawn at random."""
    model = Model(tiny_models()[kind], compute="float32")
    params = randomized(abstract_params(model), jax.random.key(0))
    two = model.config.encoder is not None and model.config.decoder is not None
    return model, params, jax.random.randint(jax.random.key(1), (1 + two, 2, 7), 0, model.config.vocab)


@functools.partial(jax.jit, static_argnums=0)
def hidden(model, variables, tokens):
    return model.apply(variables, *tokens, logits=False).hidden


def equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def few(params):
    return {path: leaf for path, leaf in tree.flatten(params).items() if isinstance(leaf, Quantized)}


def kernel_of(shape, seed=0):
    return {"heads": {"pooler": {"kernel": jnp.float32(np.random.default_rng(seed).normal(size=shape))}}}


# What is kept.


@hypothesis.given(
    inputs=st.sampled_from([8, 24]), outputs=st.integers(1, 4), seed=st.integers(0, 99), scale=st.floats(1e-6, 1e6)
)
@every_width
def test_a_weight_is_off_by_half_a_step_and_by_one_at_the_far_end(bits, group, inputs, outputs, seed, scale):
    params = jax.tree.map(lambda leaf: leaf * scale, kernel_of((inputs, outputs), seed))
    runs = np.asarray(params["heads"]["pooler"]["kernel"]).reshape(-1, group or inputs, outputs)
    got = quantize.dequantize(quantize.quantize(params, ("heads/pooler/kernel",), bits, group), "float32")
    off = np.abs(runs - np.asarray(got["heads"]["pooler"]["kernel"]).reshape(runs.shape))
    top = np.abs(runs).max(1, keepdims=True)
    step = top / 2 ** (bits - 1)
    far = np.abs(runs) > top - 1.5 * step
    assert (off <= step * (np.where(far, 1, 0.5) + 1e-4)).all()
    assert (off[np.abs(runs) == top] <= 1e-6 * top.max()).all()


def test_whole_numbers_within_reach_are_kept_to_the_bit():
    random = np.random.default_rng(0)
    for bits, least in ((8, -128), (4, -8)):
        kernel = random.integers(least, -least, (12, 6)).astype(np.float32)
        kernel[::4] = least  # every group reaches as far as it may
        params = quantize.quantize({"heads": {"pooler": {"kernel": jnp.asarray(kernel)}}}, ("**/kernel",), bits, 4)
        np.testing.assert_array_equal(quantize.dequantize(params, "float32")["heads"]["pooler"]["kernel"], kernel)


def test_a_kernel_of_zeros_stays_zero():
    for bits in (8, 4):
        params = quantize.quantize({"heads": {"pooler": {"kernel": jnp.zeros((8, 3))}}}, ("**/kernel",), bits, 8)
        assert not np.any(quantize.dequantize(params, "float32")["heads"]["pooler"]["kernel"])


@every_kind
def test_what_is_not_chosen_is_handed_on(kind):
    _, params, _ = case(kind)
    new = tree.flatten(quantize.quantize(params, ("**/down/kernel",)))
    assert new.keys() == tree.flatten(params).keys()
    for path, leaf in tree.flatten(params).items():
        assert isinstance(new[path], Quantized) if path.endswith("down/kernel") else new[path] is leaf
        assert new[path].shape == leaf.shape


# What is computed.


@every_kind
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 4)], ids=str)
def test_a_quantized_model_is_the_model_of_its_dequantized_kernels(kind, bits, group):
    model, params, tokens = case(kind)
    small = quantize.quantize(params, bits=bits, group=group)
    assert len(few(small)) >= 6
    got = hidden(model, {"params": small}, tokens)
    want = hidden(model, {"params": quantize.dequantize(small, "float32")}, tokens)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(jnp.abs(want).max()))


def test_outputs_stay_close_with_eight_bits_and_less_so_with_four():
    model, _, tokens = case("rotary")
    params = model.init(jax.random.key(0), tokens[0])["params"]
    want, off = hidden(model, {"params": params}, tokens), {}
    for bits, group in ((8, None), (4, 4)):
        got = hidden(model, {"params": quantize.quantize(params, bits=bits, group=group)}, tokens)
        off[bits] = float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))
    assert 0 < off[8] < 0.02
    assert 3 * off[8] < off[4] < 0.15


def test_layers_as_a_list_compute_the_same():
    model, params, tokens = case("rotary")
    small = quantize.quantize(params, bits=4, group=4)
    blocks = [jax.tree.map(lambda leaf: leaf[i], small["decoder"]["blocks"]) for i in range(2)]
    looped = small | {"decoder": small["decoder"] | {"blocks": blocks}}
    np.testing.assert_allclose(
        hidden(model, {"params": looped}, tokens), hidden(model, {"params": small}, tokens), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_width
def test_a_product_is_in_the_dtype_of_what_comes_in(bits, group, dtype):
    params = quantize.quantize(kernel_of((8, 2, 3)), ("**/kernel",), bits, group)
    x = jnp.ones((5, 8), dtype)
    y = Linear((8,), (2, 3)).apply({"params": params["heads"]["pooler"]}, x)
    assert (y.dtype, y.shape) == (jnp.dtype(dtype), (5, 2, 3))


@every_width
def test_the_gradient_of_what_comes_in_is_that_of_the_dequantized_kernel(bits, group):
    random = np.random.default_rng(0)
    path, pattern = "decoder/blocks/attention/out/kernel", ("**/out/kernel",)
    small = quantize.quantize(
        tree.unflatten({path: jnp.float32(random.normal(size=(1, 4, 2, 6)))}), pattern, bits, group
    )
    one = jax.tree.map(lambda leaf: leaf[0], tree.flatten(small)[path])
    dense = tree.flatten(quantize.dequantize(small, "float32"))[path][0]
    x = jnp.float32(random.normal(size=(3, 4, 2)))
    total = lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel, 2)))
    got, want = jax.jit(jax.grad(total))(x, one), jax.grad(total)(x, dense)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@every_width
def test_so_is_that_of_rows_in_groups(bits, group):
    random = np.random.default_rng(0)
    path, pattern = "decoder/blocks/mlp/experts/up/kernel", ("**/up/kernel",)
    small = quantize.quantize(
        tree.unflatten({path: jnp.float32(random.normal(size=(1, 3, 8, 6)))}), pattern, bits, group
    )
    one = jax.tree.map(lambda leaf: leaf[0], tree.flatten(small)[path])
    dense = tree.flatten(quantize.dequantize(small, "float32"))[path][0]
    x, sizes = jnp.float32(random.normal(size=(7, 8))), jnp.array([2, 0, 5])
    total = lambda x, kernel: jnp.sum(jnp.sin(grouped(x, kernel, sizes)))
    got, want = jax.jit(jax.grad(total))(x, one), jax.grad(total)(x, dense)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


# Under an adapter.


@pytest.mark.parametrize("kind", ["rotary", "experts"])
def test_an_adapters_gradient_is_that_beside_the_dequantized_kernels(kind):
    model, params, tokens = case(kind)
    small = quantize.quantize(params, bits=4, group=4)
    targets = ("**/attention/{query,out}/kernel",) if kind == "experts" else ALL_LINEAR
    factors, fixed = lora.split_scale(lora.init(LoraConfig(2, targets=targets), small, jax.random.key(0)))
    factors = randomized(factors, jax.random.key(3))

    @jax.jit
    def gradient(factors, params):
        total = lambda factors: jnp.sum(
            jnp.sin(hidden(model, {"params": params, "lora": lora.join_scale(factors, fixed)}, tokens))
        )
        return jax.grad(total)(factors)

    got, want = (tree.flatten(gradient(factors, base)) for base in (small, quantize.dequantize(small, "float32")))
    for path, leaf in got.items():
        assert np.any(leaf), path
        np.testing.assert_allclose(leaf, want[path], rtol=0, atol=1e-3 * float(jnp.abs(want[path]).max()))


def test_a_quantized_kernel_takes_no_adapter_in():
    _, params, _ = case("rotary")
    adapter = lora.init(LoraConfig(), params, jax.random.key(0))
    with pytest.raises(
        ValueError, match="attention/query/kernel is quantized: merge into the kernels that it was made of"
    ):
        lora.merge(quantize.quantize(params), adapter)


def test_quantized_kernels_are_not_published(tmp_path):
    model, params, _ = case("rotary")
    with pytest.raises(ValueError, match="quantized kernels are not published: decoder/blocks/attention/key/kernel"):
        source.save_pretrained(tmp_path, model, quantize.quantize(params, ("**/key/kernel",)))


# What it weighs.


def tall(layers=12, width=128, inner=512):
    """A model of which the kernels are nearly all, and its parameters."""
    config = tiny_models()["rotary"]
    (block,) = config.decoder.pattern
    attention = dataclasses.replace(block.attention, heads=4, kv_heads=4, head_dim=width // 4)
    block = dataclasses.replace(block, attention=attention, mlp=dataclasses.replace(block.mlp, width=inner))
    stack = dataclasses.replace(config.decoder, pattern=(block,), layers=layers)
    return Model(dataclasses.replace(config, width=width, decoder=stack), compute="float32")


@pytest.mark.parametrize(("bits", "share"), [(8, 1 / 4), (4, 1 / 8 + 1 / 32)])
def test_bytes_fall_as_the_bits_do(bits, share):
    model = tall()
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_params(model))
    small = quantize.quantize(params, bits=bits)
    kernels = {path: params for path, params in tree.flatten(params).items() if path in few(small)}
    before, after = quantize.nbytes(kernels), quantize.nbytes(few(small))
    assert quantize.nbytes(params) - before == quantize.nbytes(small) - after < 0.02 * before
    assert share <= after / before < share * 1.04  # beside the values, one scale an output or a group


@pytest.mark.parametrize(("bits", "remat"), [(8, "none"), (4, "none"), (8, "full"), (4, "dots")])
def test_a_training_step_makes_no_stack_of_kernels(bits, remat):
    model = dataclasses.replace(tall(), remat=remat)
    params = jax.eval_shape(lambda params: quantize.quantize(params, bits=bits), abstract_params(model))
    adapter = jax.eval_shape(lambda: lora.init(LoraConfig(2, targets=ALL_LINEAR), params, jax.random.key(0)))
    factors, fixed = lora.split_scale(adapter)

    def loss_fn(factors, frozen, tokens, key):
        held = frozen | {"lora": lora.join_scale(factors, frozen["lora"])}
        unembed = model.apply(held, method="unembedding")
        return cross_entropy(model.apply(held, tokens, logits=False).hidden, unembed, tokens, jnp.ones(tokens.shape))

    optimizer = optax.sgd(1e-3)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), factors, jax.eval_shape(optimizer.init, factors))
    frozen, tokens = {"params": params, "lora": fixed}, jax.ShapeDtypeStruct((1, 4), jnp.int32)
    step = jax.jit(make_step(loss_fn, optimizer), donate_argnums=0).lower(state, frozen, tokens).compile()
    stack = 12 * 128 * 512  # of the widest kernel
    assert step.memory_analysis().temp_size_in_bytes < 4 * stack
    found = re.findall(r"(?:f32|bf16|s8|s32)\[(12,[\d,]+)\]", step.as_text())
    stacked = {tuple(map(int, sizes.split(","))) for sizes in found}
    assert max(map(np.prod, stacked - {leaf.values.shape for leaf in few(params).values()})) < stack / 4


def test_a_stack_of_plain_kernels_would_be_seen():
    """The measure of the law above: parameters that are cast whole."""
    cast = jax.jit(lambda x: jnp.sum(jnp.sin(x.astype(jnp.float32)) @ jnp.ones((512, 1))))
    step = cast.lower(jax.ShapeDtypeStruct((12, 128, 512), jnp.int8)).compile()
    assert "f32[12,128,512]" in step.as_text()


# What is refused.


def test_all_that_cannot_be_quantized_is_said_at_once():
    _, params, _ = case("rotary")
    params = quantize.quantize(params, ("**/value/kernel",))
    with pytest.raises(ValueError) as error:
        quantize.quantize(params, ("embed/embedding", "heads/lm/kernel", "**/{value,query,down}/kernel"), 4, 5)
    only = "only kernels of layers are, no embedding, norm or bias, and not heads/lm/kernel"
    assert str(error.value).splitlines()[1:] == [
        "  - decoder/blocks/attention/query/kernel has 16 inputs, no multiple of group 5",
        "  - decoder/blocks/attention/value/kernel is quantized already",
        "  - decoder/blocks/mlp/down/kernel has 24 inputs, no multiple of group 5",
        f"  - embed/embedding: {only}",
        f"  - heads/lm/kernel: {only}",
    ]
    with pytest.raises(ValueError, match="bits is 3: make it 8 or 4"):
        quantize.quantize(params, ("**/query/kernel",), 3)
    with pytest.raises(ValueError, match="no parameter's path matches"):
        quantize.quantize(params, ("**/qery/kernel",))
    with pytest.raises(ValueError, match="an odd last axis of inputs, 7: two of them share a byte"):
        quantize.quantize(kernel_of((7, 4)), ("**/kernel",), 4, 7)


@pytest.mark.parametrize("bits", [8, 4])
def test_generation_reads_kernels_in_few_bits_as_it_reads_their_values(bits):
    model, params, _ = case("rotary")
    params = quantize.quantize(params, bits=bits, group=4)
    few, plain = (
        generate(model, p, [[3, 1, 4]], 6, eos=()) for p in (params, quantize.dequantize(params, "float32"))
    )
    np.testing.assert_array_equal(few.tokens, plain.tokens)
    np.testing.assert_allclose(few.scores, plain.scores, atol=1e-5)
