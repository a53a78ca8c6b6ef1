"""Laws of every family that need no reference: a new family is a file of rows beside this one."""

import runpy
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import families, sharding, source, tree
from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    SinusoidConfig,
    StackConfig,
)
from jaxformer.nn.model import Model
from jaxformer.sharding import MeshConfig
from jaxformer.weights import convert

FILES = [runpy.run_path(str(path)) for path in sorted(Path(__file__).parent.glob("rows_*.py"))]
ROWS = {name: hf for file in FILES for name, hf in file["ROWS"].items()}
FIRST = {hf["model_type"]: hf for hf in reversed(ROWS.values())}
GPT2, LLAMA = FIRST["gpt2"], FIRST["llama"]
every_row = pytest.mark.parametrize("hf", ROWS.values(), ids=ROWS.keys())
one_of_each = pytest.mark.parametrize("hf", FIRST.values(), ids=FIRST.keys())


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


@one_of_each
def test_a_run_from_scratch_may_say_how_long_its_rows_were(hf):
    config = architecture(hf)
    stacks = (stack for stack in (config.encoder, config.decoder) if stack is not None)
    if any(isinstance(stack.input.positions, LearnedConfig) for stack in stacks):
        pytest.skip("a table of positions has that size")
    model_type, written = families.publish(config)
    assert families.family(model_type).config(written | {"max_position_embeddings": 128}) == config


# Without the reference: what we write we read, and write again.


@every_row
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
    family, config = families.family(hf["model_type"]), architecture(hf)
    model, params = drawn(config)
    rows = family.names(config)
    published = convert.export(rows, params)
    for row in rows:
        published |= {name: published[row.published] for name in row.also if "{" not in name}
    published |= {pattern.replace("*", "1"): np.ones((1, 1), np.bool_) for pattern in family.IGNORED}
    bare = {name.removeprefix(family.PREFIX): tensor for name, tensor in published.items()}
    for tensors in (published, bare):
        loaded = convert.load(
            rows, sharding.abstract_params(model), tensors, prefix=family.PREFIX, ignored=family.IGNORED
        )
        equal_trees(params, loaded)


@every_row
def test_no_tensor_of_a_stack_is_taken_for_that_of_another_head(hf):
    rows, named = families.family(hf["model_type"]).names(architecture(hf)), families.head_tensors(hf)
    assert not any("{" in name for name in named)
    own = {row.published.replace("{layer}", "0") for row in rows if not row.path.startswith(("embed/", "heads/"))}
    assert [name for name in own for pattern in named if fnmatchcase(name, pattern)] == []


def test_what_another_head_may_leave_are_tensors_of_heads_and_tied_matrices():
    assert families.head_tensors(GPT2 | {"architectures": ["GPT2ForSequenceClassification"]}) == (
        *("classifier.bias", "classifier.weight", "lm_head.weight", "qa_outputs.bias", "qa_outputs.weight"),
    )


# config.json


@every_row
def test_an_architecture_survives_being_published(hf):
    config = architecture(hf)
    model_type, written = families.publish(config)
    assert model_type == written["model_type"]
    assert architecture(written) == config
    assert architecture(families.family(hf["model_type"]).hf_config(config)) == config


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.MODEL_TYPES[0])
def test_published_sizes_survive_being_published(family):
    for name, config in family.SIZES.items():
        model_type, written = families.publish(config)  # by the first family that can say it
        assert families.family(model_type).config(written) == config, name
        assert family.config(family.hf_config(config)) == config, name


@pytest.mark.parametrize("hf", [GPT2, LLAMA], ids=["gpt2", "llama"])
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


REFUSED = [(ROWS[row], name, value) for file in FILES for row, name, value in file["REFUSED"]]


@pytest.mark.parametrize(
    ("hf", "name", "value"), REFUSED, ids=[f"{hf['model_type']} {n}={v}" for hf, n, v in REFUSED]
)
def test_an_attribute_that_cannot_be_expressed_is_refused_by_name(hf, name, value):
    with pytest.raises(ValueError) as error:
        architecture(hf | {name: value})
    assert f"{hf['model_type']}: {name}={value!r} is not supported" in str(error.value).splitlines()


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
    with pytest.raises(ValueError, match=r"'mamba' is not known; known are albert, bart, bert, .*gpt2"):
        families.family("mamba")


def test_what_no_family_expresses_is_said_for_each():
    attention = AttentionConfig(4, 4, 8)
    block = BlockConfig(attention, MlpConfig(48), norms="post")
    stack = StackConfig((block,), 2, causal=False, input=InputConfig(SinusoidConfig()))
    with pytest.raises(ValueError, match=r"gpt2: it is one decoder.*\n.*llama: it is one decoder"):
        families.publish(ModelConfig(61, 32, encoder=stack))
    unscaled = architecture(LLAMA)
    (block,) = unscaled.decoder.pattern
    block = replace(block, attention=replace(block.attention, scale=0.3))
    with pytest.raises(ValueError, match=r"llama: decoder.pattern\[0\].attention.scale is 0.3, would come back as"):
        families.publish(replace(unscaled, decoder=replace(unscaled.decoder, pattern=(block,))))
