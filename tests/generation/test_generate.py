"""The laws of generation, on two small models that between them use every part of the cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import sharding
from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    Card,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    StackConfig,
)
from jaxformer.generation import Greedy, Sample, decode, generate, layout, prompts, stream_tokens
from jaxformer.nn.model import Model
from jaxformer.sharding import MeshConfig

VOCAB, WIDTH, LAYERS, NEW = 61, 16, 2, 12
PROMPTS = [[5, 9, 2, 33], [7], [60, 1, 1, 8, 20, 14, 3]]
FIRST, SECOND = jax.random.key(1), jax.random.key(2)


def learned():
    attention = AttentionConfig(4, 4, 4, bias=("query", "key", "value", "out"))
    block = BlockConfig(attention, MlpConfig(32, "gelu_tanh"))
    return StackConfig((block,), LAYERS, True, InputConfig(LearnedConfig(24)), NormConfig())


def rotary():
    attention = AttentionConfig(4, 2, 4, rope=RopeConfig())
    block = BlockConfig(attention, MlpConfig(24, "silu", gated=True, bias=False), NormConfig("rms"))
    return StackConfig((block,), LAYERS, True, final_norm=NormConfig("rms"))


def drawn(model, seed=0):
    """Parameters with none at its neutral initial value, large enough for the rows to differ."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.5, x.shape), x.dtype), shapes)


@pytest.fixture(scope="module", params=[learned, rotary], ids=["learned", "rotary"])
def case(request):
    model = Model(ModelConfig(VOCAB, WIDTH, decoder=request.param()), compute="float32")
    return model, drawn(model)


@pytest.fixture(scope="module")
def one():
    model = Model(ModelConfig(VOCAB, WIDTH, decoder=rotary()), compute="float32")
    return model, drawn(model)


def stacked(monkeypatch):
    monkeypatch.setattr(layout, "per_layer", lambda variables: variables)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


@pytest.mark.parametrize("form", ["listed", "scanned"])
def test_greedy_tokens_are_those_of_full_passes(case, form, monkeypatch):
    """One pass over prompt and new tokens checks every step: each has the largest logit before it."""
    model, params = case
    if form == "scanned":
        stacked(monkeypatch)
    result = generate(model, params, PROMPTS, NEW, eos=())
    for prompt, new, scores in zip(PROMPTS, result.tokens, result.scores, strict=True):
        row = np.asarray([[*prompt, *new]], np.int32)
        room = np.pad(row, ((0, 0), (0, 24 - row.shape[1])))  # one shape for all; the future is not seen
        logits = np.asarray(jax.jit(model.apply)({"params": params}, room).logits)[0, len(prompt) - 1 :][:NEW]
        assert new.tolist() == logits.argmax(-1).tolist()
        chosen = np.take_along_axis(log_softmax(logits), new[:, None], -1)[:, 0]
        np.testing.assert_allclose(scores, chosen, atol=1e-4)
    assert result.lengths.tolist() == [NEW] * 3


def test_a_prompt_that_is_seen_as_a_whole_is_continued_as_by_full_passes(case):
    model, params = case
    result = generate(model, params, PROMPTS, NEW, eos=(), prefix=True)
    for prompt, new, scores in zip(PROMPTS, result.tokens, result.scores, strict=True):
        row = np.pad(np.asarray([[*prompt, *new]], np.int32), ((0, 0), (0, 24 - len(prompt) - NEW)))
        prefix = np.arange(24)[None] < len(prompt)
        logits = np.asarray(jax.jit(model.apply)({"params": params}, row, prefix=prefix).logits)[0, len(prompt) - 1 :]
        assert new.tolist() == logits[:NEW].argmax(-1).tolist()
        np.testing.assert_allclose(scores, log_softmax(logits[:NEW]).max(-1), atol=1e-4)
    streamed = np.stack(list(stream_tokens(model, params, PROMPTS, NEW, eos=(), prefix=True)), 1)
    np.testing.assert_array_equal(streamed, result.tokens)
    assert np.abs(generate(model, params, PROMPTS, NEW, eos=()).scores - result.scores).max() > 1e-3


def test_padding_changes_nothing(case):
    model, params = case
    together = generate(model, params, PROMPTS, NEW, eos=())
    for i, prompt in enumerate(PROMPTS):
        alone = generate(model, params, [prompt], NEW, eos=())
        assert alone.tokens[0].tolist() == together.tokens[i].tolist()
        np.testing.assert_allclose(alone.scores[0], together.scores[i], rtol=1e-5, atol=1e-5)


def test_a_masked_array_is_the_same_on_either_side(one):
    model, params = one
    width = 9
    left, right = np.full((3, width), 4), np.full((3, width), 8)
    left_mask, right_mask = np.zeros((3, width), bool), np.zeros((3, width), bool)
    for i, prompt in enumerate(PROMPTS):
        left[i, width - len(prompt) :], left_mask[i, width - len(prompt) :] = prompt, True
        right[i, : len(prompt)], right_mask[i, : len(prompt)] = prompt, True
    expected = generate(model, params, PROMPTS, NEW, eos=()).tokens
    for tokens, mask in (
        (left, left_mask),
        (right, right_mask),
        (jnp.asarray(right), jnp.asarray(right_mask)),
    ):
        np.testing.assert_array_equal(generate(model, params, tokens, NEW, mask, eos=()).tokens, expected)


def test_a_row_ends_with_its_eos_and_pad_follows(one):
    model, params = one
    free = generate(model, params, PROMPTS, NEW, eos=())
    ends = tuple({int(free.tokens[0, 3]), int(free.tokens[2, 5])})
    result = generate(model, params, PROMPTS, NEW, eos=ends, pad=-1)
    for row, before, scores, length in zip(result.tokens, free.tokens, result.scores, result.lengths, strict=True):
        stops = [i for i, token in enumerate(before) if token in ends]
        expected = stops[0] + 1 if stops else NEW
        assert length == expected
        assert row.tolist() == [*before[:expected], *[-1] * (NEW - expected)]
        assert not scores[expected:].any()
    assert result.lengths[0] <= 4


def test_the_loop_stops_when_every_row_is_done(one):
    model, params = one
    arguments = None, Greedy(), tuple(range(VOCAB)), None, None, 1, FIRST, None
    state, request = decode.start(model, params, PROMPTS, NEW, *arguments)
    assert int(decode.steps(model, state, request, np.int32(NEW)).step) == 1


def test_eos_and_pad_come_from_the_card(one):
    model, params = one
    free = generate(model, params, [PROMPTS[0]], NEW, eos=()).tokens[0]
    card = Card(generation={"eos_token_id": [int(free[2])]}, config={"pad_token_id": 44})
    carded = dataclasses.replace(model, card=card)
    result = generate(carded, params, [PROMPTS[0]], NEW)
    first = free.tolist().index(free[2])
    assert result.lengths == [first + 1]
    assert result.tokens[0].tolist() == [*free[: first + 1], *[44] * (NEW - first - 1)]
    assert generate(carded, params, [PROMPTS[0]], NEW, eos=()).lengths == [NEW]
    assert generate(carded, params, [PROMPTS[0]], NEW, eos=int(free[0])).lengths == [1]


def test_a_seed_reproduces_and_no_key_differs(one):
    model, params = one

    def run(key):
        return generate(model, params, PROMPTS, NEW, strategy=Sample(), eos=(), key=key)

    np.testing.assert_array_equal(run(FIRST).tokens, run(FIRST).tokens)
    assert (run(FIRST).tokens != run(SECOND).tokens).any()
    one_call, another = run(None), run(None)
    assert (one_call.tokens != another.tokens).any()
    np.testing.assert_array_equal(run(one_call.key).tokens, one_call.tokens)


def test_temperature_zero_and_top_k_one_are_greedy(one):
    model, params = one
    greedy = generate(model, params, PROMPTS, NEW, eos=()).tokens
    for strategy in (Sample(0.0), Sample(0, 5, 0.5), Sample(top_k=1), Sample(top_p=1e-6)):
        np.testing.assert_array_equal(generate(model, params, PROMPTS, NEW, strategy=strategy, eos=()).tokens, greedy)


def test_samples_stand_side_by_side(one):
    model, params = one
    several = generate(model, params, PROMPTS, NEW, eos=(), samples=2)
    expected = np.repeat(generate(model, params, PROMPTS, NEW, eos=()).tokens, 2, axis=0)
    np.testing.assert_array_equal(several.tokens, expected)
    drawn = generate(model, params, PROMPTS, NEW, strategy=Sample(), eos=(), samples=2, key=FIRST).tokens
    assert (drawn[::2] != drawn[1::2]).any(axis=1).all()


def test_the_first_token_follows_the_models_softmax(one):
    model, params = one
    logits = np.asarray(jax.jit(model.apply)({"params": params}, np.asarray([PROMPTS[0]], np.int32)).logits)[0, -1]
    probability, rows = np.exp(log_softmax(logits)), 4000
    result = generate(model, params, [PROMPTS[0]], 1, strategy=Sample(), eos=(), samples=rows, key=FIRST)
    counts, expected = np.bincount(result.tokens[:, 0], minlength=VOCAB), rows * probability
    assert expected.min() > 5  # below that, chi-square says nothing
    chi_square, degrees = np.sum((counts - expected) ** 2 / expected), VOCAB - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)  # the mean, and four standard deviations
    np.testing.assert_allclose(result.scores[:, 0], np.log(probability)[result.tokens[:, 0]], atol=1e-4)


def test_an_adapter_applied_equals_an_adapter_merged(one):
    model, params = one
    random = np.random.default_rng(3)
    kernel = params["decoder"]["blocks"]["attention"]["query"]["kernel"]
    a, b = random.normal(0, 1, (LAYERS, WIDTH, 2)), random.normal(0, 1, (LAYERS, 2, 16))
    lora = {"a": jnp.float32(a), "b": jnp.float32(b), "scale": jnp.float32([0.7, 0.3])}
    term = np.einsum("ldr,lro,l->ldo", a, b, [0.7, 0.3]).reshape(kernel.shape)
    merged = jax.tree.map(lambda leaf: leaf, params)
    merged["decoder"]["blocks"]["attention"]["query"]["kernel"] = kernel + jnp.float32(term)
    adapter = {"decoder": {"blocks": {"attention": {"query": lora}}}}
    applied = generate(model, params, PROMPTS, NEW, eos=(), adapter=adapter)
    expected = generate(model, merged, PROMPTS, NEW, eos=())
    np.testing.assert_array_equal(applied.tokens, expected.tokens)
    np.testing.assert_allclose(applied.scores, expected.scores, atol=1e-4)
    assert (applied.tokens != generate(model, params, PROMPTS, NEW, eos=()).tokens).any()


def test_a_stream_is_generate_token_by_token(one):
    model, params = one
    expected = generate(model, params, PROMPTS, NEW, strategy=Sample(), eos=(3, 4), pad=0, key=FIRST, samples=2)
    columns = list(
        stream_tokens(model, params, PROMPTS, NEW, strategy=Sample(), eos=(3, 4), key=FIRST, samples=2, pad=0)
    )
    seen = np.stack(columns, axis=1)
    np.testing.assert_array_equal(seen, expected.tokens[:, : seen.shape[1]])
    assert seen.shape[1] == expected.lengths.max()


def test_a_closed_stream_computes_nothing_more(one, monkeypatch):
    model, params = one
    calls, steps = [], decode.steps
    monkeypatch.setattr(decode, "steps", lambda *given: calls.append(1) or steps(*given))
    tokens = stream_tokens(model, params, PROMPTS, NEW, eos=())
    next(tokens)
    tokens.close()
    assert calls == []


def test_sharded_parameters_give_the_same_tokens(one):
    model, params = one
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))

    def spread(leaf):
        axis = "tensor" if leaf.shape[-1] % 2 == 0 else None
        return jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(*[None] * (leaf.ndim - 1), axis)))

    sharded = jax.tree.map(spread, params)
    expected = generate(model, params, PROMPTS, NEW, eos=())
    np.testing.assert_array_equal(generate(model, sharded, PROMPTS, NEW, eos=()).tokens, expected.tokens)


def test_what_is_remembered_lies_split_over_the_devices_of_rows_and_heads(one):
    """From the prompt on: where all rows lie on each device, they soon need more memory than the parameters."""
    model, params = one
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    spread = jax.device_put(params, sharding.shardings(mesh, params))
    with jax.set_mesh(mesh):
        arguments = None, Greedy(), (), None, None, 2, FIRST, None
        first, request = decode.start(model, spread, [*PROMPTS, [1]], NEW, *arguments)
        last = decode.steps(model, jax.tree.map(jnp.copy, first), request, np.int32(NEW))
    for leaf in jax.tree.leaves((first.cache.layers, last.cache.layers)):
        assert {shard.data.size * 8 for shard in leaf.addressable_shards} == {leaf.size}


def test_views_of_layers_share_the_memory_of_the_stack(one):
    """One copy of the weights, and numpy arrays are taken as well."""
    _, params = one
    layers = layout.per_layer({"params": params})["params"]["decoder"]["blocks"]
    stack = params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    for i, layer in enumerate(layers):
        view = layer["mlp"]["up"]["kernel"]
        assert view.unsafe_buffer_pointer() == stack.unsafe_buffer_pointer() + i * view.nbytes
    hosted = layout.per_layer({"params": jax.tree.map(np.asarray, params)})["params"]["decoder"]["blocks"]
    np.testing.assert_array_equal(hosted[1]["mlp"]["up"]["kernel"], stack[1])


@pytest.mark.parametrize("form", ["listed", "scanned"])
def test_decoding_keeps_no_copy_of_the_parameters(form, monkeypatch):
    """Temporaries at batch 1 and 128 slots stay under 20% of the parameters."""
    block = BlockConfig(AttentionConfig(8, 8, 32), MlpConfig(1024))
    model = Model(
        ModelConfig(4096, 256, decoder=StackConfig((block,), 12, True, final_norm=NormConfig())),
        compute="float32",
    )
    if form == "scanned":
        stacked(monkeypatch)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    arguments = None, Greedy(), (), None, None, 1, FIRST, None
    state, request = decode.start(model, params, [[1] * 64], 64, *arguments)
    assert state.cache.slots == 128
    compiled = decode.steps.lower(model, state, request, np.int32(64)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.2 * total


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tokens": [[1], []]}, "prompt 1 has no token"),
        ({"tokens": []}, "there is no prompt"),
        ({"tokens": [[1, VOCAB], [-1]]}, r"prompt 0 holds 61.*\n.*prompt 1 holds -1"),
        ({"tokens": [1, 2]}, r"write \[tokens\]"),
        ({"tokens": np.ones((2, 3), int), "mask": np.eye(2, 3, -1, bool)}, "prompt 0 has no token"),
        ({"tokens": np.ones((2, 3), int), "mask": np.ones((2, 2))}, "mask of the same shape"),
        ({"tokens": np.ones((2, 3))}, "expected integers"),
        ({"tokens": [[1]], "mask": np.ones((1, 1))}, "a mask belongs to an array"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"max_new_tokens": 24}, "1 prompt tokens and 24 new ones do not fit: the model has learned 24"),
        ({"strategy": Sample(-1.0)}, "temperature is -1"),
        ({"decoder_tokens": [[1]]}, "decoder_tokens given"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_cannot_be_done_is_said_before_any_work(given, said, monkeypatch):
    monkeypatch.setattr(decode, "prefill", None)
    model = Model(ModelConfig(VOCAB, WIDTH, decoder=learned()), compute="float32")
    with pytest.raises(ValueError, match=f"(?s){said}"):
        generate(**{"model": model, "params": {}, "tokens": [[1]], "max_new_tokens": 4} | given)


def test_an_encoder_alone_is_refused():
    encoder = dataclasses.replace(rotary(), causal=False)
    model = Model(ModelConfig(VOCAB, WIDTH, encoder=encoder))
    with pytest.raises(ValueError, match="this model cannot generate: it lacks a decoder"):
        generate(model, {}, PROMPTS, NEW)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100, 129, 300, 1000, 5000])
def test_a_bucket_holds_its_length_and_little_more(length):
    size = prompts.bucket(length)
    assert length <= size <= max(32, length + 31, 1.34 * length)
    assert prompts.bucket(size) == size
