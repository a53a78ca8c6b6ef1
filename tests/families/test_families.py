"""One battery over all families: a new family is a few rows of VARIANTS."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxformer import families, sharding, source, tree
from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    InputConfig,
    MlpConfig,
    ModelConfig,
    SinusoidConfig,
    StackConfig,
)
from jaxformer.nn.model import Model
from jaxformer.sharding import MeshConfig
from jaxformer.weights import convert

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
VARIANTS = {
    "gpt2": GPT2,
    "gpt2 narrow mlp, other eps": GPT2 | {"n_inner": 48, "layer_norm_epsilon": 1e-3},
    "gpt2 unscaled, relu": GPT2 | {"scale_attn_weights": False, "activation_function": "relu"},
    "gpt2 exact gelu, untied": GPT2 | {"activation_function": "gelu", "tie_word_embeddings": False},
    "gpt2 one layer": GPT2 | {"n_layer": 1},
    "llama grouped heads": LLAMA,
    "llama tied, all heads": LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": None},
    "llama one key head": LLAMA | {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    "llama head_dim 6": LLAMA | {"head_dim": 6},
    "llama biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama base 500000, gelu": LLAMA | {"rope_theta": 500000.0, "hidden_act": "gelu"},
}
every_variant = pytest.mark.parametrize("hf", VARIANTS.values(), ids=VARIANTS.keys())
one_of_each = pytest.mark.parametrize("hf", [GPT2, LLAMA], ids=["gpt2", "llama"])


def architecture(hf):
    return families.family(hf["model_type"]).config(hf)


def drawn(config, dtype=None):
    """A model with every parameter drawn far from its initial value."""
    model = Model(config)
    flat = tree.flatten(sharding.abstract_params(model, dtype))
    rng = np.random.default_rng(0)
    return model, tree.unflatten(
        {path: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for path, leaf in flat.items()}
    )


def equal_trees(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


def bits(x):
    return np.asarray(x).view(f"u{x.dtype.itemsize}")


def equal_folders(a, b):
    files = sorted(path.name for path in a.iterdir())
    assert files == sorted(path.name for path in b.iterdir())
    assert [name for name in files if (a / name).read_bytes() != (b / name).read_bytes()] == []


# Without the reference: what we write we read, and write again.


@every_variant
def test_a_folder_written_and_read_is_written_again_byte_for_byte(hf, tmp_path):
    model, params = drawn(architecture(hf))
    source.save_pretrained(tmp_path / "first", model, params)
    again, loaded, tokenizer = source.from_pretrained(tmp_path / "first")
    assert again.config == model.config
    assert tokenizer is None
    equal_trees(params, loaded)
    source.save_pretrained(tmp_path / "second", again, loaded)
    equal_folders(tmp_path / "first", tmp_path / "second")


@one_of_each
def test_files_in_shards_hold_the_same_parameters(hf, tmp_path):
    model, params = drawn(architecture(hf))
    source.save_pretrained(tmp_path / "shards", model, params, max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 2
    equal_trees(params, source.from_pretrained(tmp_path / "shards")[1])


@one_of_each
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_of_the_file_is_kept_unless_another_is_asked_for(hf, dtype, tmp_path):
    model, params = drawn(architecture(hf), dtype)
    source.save_pretrained(tmp_path / "half", model, params)
    again, loaded, _ = source.from_pretrained(tmp_path / "half")
    equal_trees(params, loaded)
    source.save_pretrained(tmp_path / "again", again, loaded)
    equal_folders(tmp_path / "half", tmp_path / "again")
    wide, widened, _ = source.from_pretrained(tmp_path / "half", dtype=jnp.float32)
    equal_trees(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), widened)
    assert wide.card.config["torch_dtype"] == "float32"


@one_of_each
@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=8), MeshConfig(data=1, fsdp=4, tensor=2)], ids=["fsdp", "tensor"])
def test_a_mesh_gets_the_same_parameters_each_shard_in_its_place(hf, mesh, tmp_path):
    model, params = drawn(architecture(hf))
    source.save_pretrained(tmp_path / "model", model, params)
    mesh = sharding.make_mesh(mesh)
    _, loaded, _ = source.from_pretrained(tmp_path / "model", mesh=mesh)
    equal_trees(params, loaded)
    homes = tree.flatten(sharding.shardings(mesh, params))
    assert {path: leaf.sharding for path, leaf in tree.flatten(loaded).items()} == homes
    assert any(not home.is_fully_replicated for home in homes.values())


@one_of_each
def test_files_without_the_prefix_with_buffers_and_the_tied_head_are_read(hf):
    hf = hf | {"tie_word_embeddings": True}
    family, config = families.family(hf["model_type"]), architecture(hf)
    model, params = drawn(config)
    rows = family.names(config)
    published = convert.export(rows, params)
    (tied,) = (row for row in rows if row.also)
    published |= dict.fromkeys(tied.also, published[tied.published])
    published |= {pattern.replace("*", "1"): np.ones((1, 1), np.bool_) for pattern in family.IGNORED}
    bare = {name.removeprefix(family.PREFIX): tensor for name, tensor in published.items()}
    for tensors in (published, bare):
        loaded = convert.load(
            rows, sharding.abstract_params(model), tensors, prefix=family.PREFIX, ignored=family.IGNORED
        )
        equal_trees(params, loaded)


# config.json


@every_variant
def test_an_architecture_survives_being_published(hf):
    config = architecture(hf)
    model_type, written = families.publish(config)
    assert model_type == hf["model_type"] == written["model_type"]
    assert architecture(written) == config


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.MODEL_TYPES[0])
def test_published_sizes_survive_being_published(family):
    assert [families.publish(config)[0] in family.MODEL_TYPES for config in family.SIZES.values()] == [True] * len(
        family.SIZES
    )


@one_of_each
def test_dropout_is_published(hf):
    config = architecture(hf)
    (block,) = config.decoder.pattern
    stack = replace(
        config.decoder,
        pattern=(replace(block, dropout=0.25),),
        input=replace(config.decoder.input, dropout=0.5),
    )
    config = replace(config, decoder=stack)
    assert architecture(families.publish(config)[1]) == config


REFUSED = [
    (GPT2, "reorder_and_upcast_attn", True),
    (GPT2, "scale_attn_by_inverse_layer_idx", True),
    (GPT2, "add_cross_attention", True),
    (GPT2, "activation_function", "quick_gelu"),
    (GPT2, "n_head", 5),
    (GPT2, "n_layer", "3"),
    (GPT2, "n_layer", True),
    (GPT2, "quantization_config", {"bits": 4}),
    (LLAMA, "rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
    (LLAMA, "rope_scaling", {"type": "linear", "factor": 2.0}),
    (LLAMA, "rope_parameters", {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.0}),
    (LLAMA, "rope_parameters", {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}),
    (LLAMA, "rope_interleaved", True),
    (LLAMA, "hidden_act", "xielu"),
    (LLAMA, "hidden_size", 0),
    (LLAMA, "sliding_window", 128),
]


@pytest.mark.parametrize(
    ("hf", "name", "value"), REFUSED, ids=[f"{hf['model_type']} {n}={v}" for hf, n, v in REFUSED]
)
def test_an_attribute_that_cannot_be_expressed_is_refused_by_name(hf, name, value):
    with pytest.raises(ValueError) as error:
        architecture(hf | {name: value})
    assert str(error.value) == f"{hf['model_type']}: {name}={value!r} is not supported"


def test_all_attributes_that_cannot_be_expressed_are_listed_at_once():
    with pytest.raises(ValueError) as error:
        architecture(GPT2 | {"reorder_and_upcast_attn": True, "mystery": 1, "activation_function": "tanh"})
    assert [line.split("=")[0] for line in str(error.value).splitlines()] == [
        "gpt2: activation_function",
        "gpt2: mystery",
        "gpt2: reorder_and_upcast_attn",
    ]


def test_an_unknown_attribute_that_is_null_says_nothing():
    assert architecture(GPT2 | {"mystery": None}) == architecture(GPT2)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 50_000},
        {"rope_theta": 50_000.0, "rope_scaling": None},
        {"rope_theta": 50_000.0, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_theta": 50_000.0, "rope_type": "default"}},
        {"rope_theta": 50_000.0, "rope_parameters": {"rope_type": "default"}},
    ],
    ids=str,
)
def test_every_spelling_of_the_rotary_base_is_read(spelling):
    assert architecture(LLAMA | spelling).decoder.pattern[0].attention.rope.base == 50_000.0


def test_what_early_versions_wrote_is_read():
    early = {
        **{"architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "n_ctx": 1024, "n_special": 0},
        **{"predict_special_tokens": True, "summary_type": "cls_index", "model_type": "gpt2"},
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }
    assert architecture(early) == families.family("gpt2").SIZES["gpt2"]


def test_an_unknown_model_type_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'mamba' is not known; known are gpt2, llama"):
        families.family("mamba")


def test_what_no_family_expresses_is_said_for_each():
    attention = AttentionConfig(4, 4, 8)
    block = BlockConfig(attention, MlpConfig(48), norms="post")
    stack = StackConfig((block,), 2, causal=False, input=InputConfig(SinusoidConfig()))
    with pytest.raises(ValueError, match=r"gpt2: it is one decoder.*\n.*llama: it is one decoder"):
        families.publish(ModelConfig(61, 32, encoder=stack))
    windowed = architecture(LLAMA)
    (block,) = windowed.decoder.pattern
    block = replace(block, attention=replace(block.attention, window=16))
    with pytest.raises(
        ValueError, match=r"llama: decoder.pattern\[0\].attention.window is 16, would come back as None"
    ):
        families.publish(replace(windowed, decoder=replace(windowed.decoder, pattern=(block,))))


# Against the reference.


def reference(hf, folder, dtype="float32", **save):
    """A model of the reference with every parameter drawn at random, and saved."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model(**hf)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and not name.endswith("bias")
            parameter.copy_(noise * 0.3 + (1.0 if is_scale else 0.0))
    model.to(getattr(torch, dtype)).save_pretrained(folder, **save)
    return model


def largest_error(model, params, theirs, tokens, mask=None):
    """(error, tolerance 1e-4 * max(1, largest logit / 30)) over the tokens that count."""
    import torch

    seen = np.ones(tokens.shape, bool) if mask is None else mask
    positions = np.maximum(np.cumsum(seen, 1) - 1, 0)
    with torch.no_grad():
        tensors = {"input_ids": tokens, "attention_mask": seen, "position_ids": positions}
        expected = theirs(**{name: torch.tensor(value) for name, value in tensors.items()}).logits.numpy()
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(model.apply)({"params": params}, tokens, mask=mask).logits
    return np.abs(np.asarray(ours) - expected)[seen].max(), 1e-4 * max(1, np.abs(expected[seen]).max() / 30)


@pytest.mark.parity
@every_variant
def test_logits_are_those_of_the_reference(hf, tmp_path):
    theirs = reference(hf, tmp_path)
    model, params, _ = source.from_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 61, (3, 9))
    padded = np.ones((3, 9), bool)
    padded[1, :4], padded[2, 5:] = False, False
    for mask in (None, padded):
        error, tolerance = largest_error(model, params, theirs, tokens, mask)
        print(f"largest error {error:.1e} of {tolerance:.1e}")
        assert error < tolerance


@pytest.mark.parity
@every_variant
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_published_in_equals_published_out(hf, dtype, tmp_path):
    reference(hf, tmp_path / "theirs", dtype)
    model, params, _ = source.from_pretrained(tmp_path / "theirs")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    source.save_pretrained(tmp_path / "ours", model, params)
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    equal_trees(theirs, ours)
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


@pytest.mark.parity
@one_of_each
def test_sharded_files_of_the_reference_are_read(hf, tmp_path):
    reference(hf, tmp_path / "one")
    reference(hf, tmp_path / "many", max_shard_size="20KB")
    assert json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())["weight_map"]
    equal_trees(source.from_pretrained(tmp_path / "one")[1], source.from_pretrained(tmp_path / "many")[1])


@pytest.mark.parity
@every_variant
def test_the_reference_opens_what_is_published_from_scratch(hf, tmp_path):
    import transformers

    model, params = drawn(architecture(hf))
    params = jax.tree.map(lambda leaf: leaf * 0.3, params)
    source.save_pretrained(tmp_path / "model", model, params, max_shard_size="20KB")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    tokens = np.random.default_rng(1).integers(0, 61, (2, 9))
    error, tolerance = largest_error(model, params, theirs.eval(), tokens)
    assert error < tolerance
