"""Checkpoints of the reference, written to GGUF as its converter does, compute the same here."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import families, sharding
from jaxformer.families import gguf_rows
from jaxformer.nn.model import Model
from jaxformer.weights import convert, gguf

package = pytest.importorskip("gguf", reason="not installed: gguf")


SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWED = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 4.0, 8.0]}
CHECKPOINTS = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 12}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama-yarn": ("llama", {"rope_scaling": YARN}),
    "llama-3": (
        "llama",
        {"rope_theta": 5e5, "head_dim": 16, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192}},
    ),
    "llama-3-of-another-length": (
        "llama",
        {"rope_theta": 1e4, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2-yarn": ("qwen2", {"rope_scaling": YARN}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", WINDOWED),
    "gemma3": ("gemma3_text", {**WINDOWED, "sliding_window_pattern": 6, "num_hidden_layers": 7}),
    "gemma3-linear": (
        "gemma3_text",
        {**WINDOWED, "num_hidden_layers": 7, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "phi3": ("phi3", {"sliding_window": 4, "pad_token_id": 0}),
    "phi3-long": ("phi3", {"rope_scaling": LONG, "original_max_position_embeddings": 16}),
    "phi3-partial": ("phi3", {"partial_rotary_factor": 0.5}),
}
"""name: (model_type, attributes)."""


def publish(theirs, given, path):
    """Writes a model of the reference as llama.cpp's converter does; the package knows the names."""
    import torch

    hf, architecture = theirs.config, theirs.config.model_type.removesuffix("_text")
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    scaling = given.get("rope_scaling", {})
    keys = {
        "context_length": hf.max_position_embeddings,
        "embedding_length": hf.hidden_size,
        "block_count": hf.num_hidden_layers,
        "feed_forward_length": hf.intermediate_size,
        "attention.head_count": hf.num_attention_heads,
        "attention.head_count_kv": hf.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": hf.rms_norm_eps,
        "rope.freq_base": given.get("rope_theta", 1e6 if "gemma3" in architecture else 1e4),
    }
    if architecture in ("llama", "phi3"):
        keys["rope.dimension_count"] = int(head_dim * given.get("partial_rotary_factor", 1.0))
    if "head_dim" in given:
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if given.get("sliding_window"):
        keys["attention.sliding_window"] = given["sliding_window"]
    if architecture == "gemma2":
        keys |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if scaling.get("rope_type") in ("linear", "yarn"):
        keys |= {"rope.scaling.type": scaling["rope_type"], "rope.scaling.factor": scaling["factor"]}
    original = given.get("original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
    if architecture == "phi3" or scaling.get("rope_type") == "yarn":
        keys["rope.scaling.original_context_length"] = original or hf.original_max_position_embeddings

    names = package.get_tensor_name_map(
        {name: arch for arch, name in package.MODEL_ARCH_NAMES.items()}[architecture], hf.num_hidden_layers
    )
    tensors = {}
    for name, tensor in theirs.state_dict().items():
        if name == "lm_head.weight" and hf.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = hf.num_attention_heads if "q_proj" in name else hf.num_key_value_heads
            values = values.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if "gemma" in architecture and name.endswith("norm.weight"):
            values = values + 1
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = values
    if scaling.get("rope_type") == "llama3":
        plain = keys["rope.freq_base"] ** (-torch.arange(0, head_dim, 2) / head_dim)
        tensors["rope_freqs.weight"] = (plain / theirs.model.rotary_emb.inv_freq).numpy()
    if "long_factor" in scaling:
        scale = hf.max_position_embeddings / original
        keys["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original))
        for kind in ("long", "short"):
            tensors[f"rope_factors_{kind}.weight"] = np.float32(scaling[f"{kind}_factor"])
    writer = package.GGUFWriter(path, architecture)
    for key, value in keys.items():
        writer.add_key_value(f"{architecture}.{key}", value, package.GGUFValueType.get_type(value))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parity
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_went_through_gguf_computes_the_same(tmp_path, name):
    import torch
    import transformers

    model_type, given = CHECKPOINTS[name]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(model_type, **SIZES | given), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    path = tmp_path / "a.gguf"
    publish(theirs, given, path)
    tokens = np.random.default_rng(0).integers(3, 40, (2, 12))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    found = gguf.read(path)
    family = families.family(found.config["model_type"])
    model = Model(family.config(found.config))
    shapes = sharding.abstract_params(model, None)
    params = convert.load(family.gguf(model.config), shapes, found.tensors, ignored=gguf_rows.IGNORED)
    with jax.default_matmul_precision("highest"):
        logits = model.apply({"params": params}, jnp.asarray(tokens)).logits
    assert np.abs(logits - expected).max() < 1e-4 * max(1, np.abs(expected).max() / 30)

    # The config that was made is the reference's own, too.
    again = transformers.AutoConfig.for_model(**found.config)
    reopened = transformers.AutoModelForCausalLM.from_config(again, attn_implementation="eager").eval()
    reopened.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        same = reopened(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(same, expected, atol=1e-4)
