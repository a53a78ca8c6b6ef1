"""Adapters in peft's layout: what we write it reads, what it writes we read, and all else is refused by name."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxformer import families, lora, sharding, source, testing, tree
from jaxformer.config import Card
from jaxformer.lora import LoraConfig
from jaxformer.nn.model import Model
from jaxformer.weights.adapters import CONFIG, TENSORS

LLAMA = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 61, "hidden_size": 32},
    **{"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "pad_token_id": 0},
}
BERT = {
    **{"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 61, "hidden_size": 32},
    **{"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 24},
}
T5 = {
    **{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 61, "d_model": 32},
    **{"d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"},
    **{"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
}
GPT2 = {
    **{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 61, "n_embd": 32, "n_layer": 2},
    **{"n_head": 4, "n_positions": 24, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
}
BLOOM = {
    **{"model_type": "bloom", "architectures": ["BloomForCausalLM"], "vocab_size": 61, "hidden_size": 32},
    **{"n_layer": 2, "n_head": 4},
}
ROWS = {"llama": LLAMA, "bert": BERT, "t5": T5, "gpt2": GPT2, "bloom": BLOOM}
EVERY = ("**/{attention,cross}/{query,key,value,out}/kernel", "**/mlp/{up,gate,down}/kernel", "heads/lm/**/kernel")
every_row = pytest.mark.parametrize("name", ROWS)
SOME = LoraConfig(rank=3, alpha=5.0, targets=("**/attention/{query,value}/kernel", "**/mlp/down/kernel"))


@functools.cache
def published(name, head=None):
    """(model, parameters) of a row, all drawn at random."""
    hf = ROWS[name]
    if head is not None:
        hf = families.heads.with_head(hf, families.family(hf["model_type"]).ARCHITECTURES, head)
    model = Model(families.family(hf["model_type"]).config(hf), compute="float32", card=Card(hf["model_type"], hf))
    return model, testing.randomized(sharding.abstract_params(model), jax.random.key(0))


def targets(model):
    """EVERY, without what the model does not have."""
    paths = tree.flatten(sharding.abstract_params(model))
    return tuple(pattern for pattern in EVERY if any(tree.matches(pattern, path) for path in paths))


def drawn(config, params, seed=1):
    """An adapter of which both factors are drawn at random."""
    adapter = lora.init(config, params, jax.random.key(seed))
    factors, fixed = lora.split_scale(adapter)
    return lora.join_scale(testing.randomized(factors, jax.random.key(seed)), fixed)


def equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def tokens(model, seed=0):
    random = np.random.default_rng(seed)
    two = model.config.encoder is not None and model.config.decoder is not None
    return [random.integers(5, model.config.vocab, (2, 7)) for _ in range(1 + two)]


def outputs(model, params, adapter):
    out = jax.jit(model.apply)({"params": params, "lora": adapter}, *map(jnp.asarray, tokens(model)))
    return (
        out.hidden if out.logits is None and not out.extra else next(iter((out.extra or {"": out.logits}).values()))
    )


def settings(folder, **changes):
    """adapter_config.json, after some changes."""
    found = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(found))
    return found


# What is written is read, bit for bit.


@every_row
def test_an_adapter_written_and_read_is_the_same_to_the_bit(name, tmp_path):
    model, params = published(name)
    for config in (LoraConfig(3, 5.0, targets(model)), SOME):
        adapter = drawn(config, params)
        source.save_adapter(tmp_path, model, adapter)
        same, again = source.load_adapter(tmp_path, model, params)
        equal_trees(adapter, again)
        equal_trees(params, same)
        first = load_file(tmp_path / TENSORS), settings(tmp_path)
        source.save_adapter(tmp_path, model, again)
        equal_trees(first[0], load_file(tmp_path / TENSORS))
        assert first[1] == settings(tmp_path)


def test_a_new_adapter_keeps_its_parts_apart_although_its_second_factors_are_zero(tmp_path):
    model, params = published("gpt2")
    adapter = lora.init(LoraConfig(2), params, jax.random.key(0))
    source.save_adapter(tmp_path, model, adapter)
    equal_trees(adapter, source.load_adapter(tmp_path, model, params)[1])


def test_parts_of_a_fused_product_stand_side_by_side_against_zeros(tmp_path):
    model, params = published("gpt2")
    adapter = drawn(LoraConfig(2, targets=("**/attention/{query,value}/kernel",)), params)
    source.save_adapter(tmp_path, model, adapter)
    found = load_file(tmp_path / TENSORS)
    name = "base_model.model.transformer.h.1.attn.c_attn.lora_{}.weight"
    a, b = found[name.format("A")], found[name.format("B")]
    query, value = (adapter["decoder"]["blocks"]["attention"][part] for part in ("query", "value"))
    np.testing.assert_array_equal(a, np.concatenate([query["a"][1].T, value["a"][1].T]))
    zero = np.zeros((32, 2))
    np.testing.assert_array_equal(b, np.block([[query["b"][1].T, zero], [zero, zero], [zero, value["b"][1].T]]))
    about = settings(tmp_path)
    assert (about["r"], about["lora_alpha"], about["target_modules"]) == (4, 32, ["c_attn"])
    assert about["fan_in_fan_out"]


def test_parts_of_a_fused_product_may_differ_in_scale(tmp_path):
    model, params = published("gpt2")
    adapter = drawn(LoraConfig(2), params)
    attention = adapter["decoder"]["blocks"]["attention"]
    attention["key"]["scale"] *= 3.0
    source.save_adapter(tmp_path, model, adapter)
    _, again = source.load_adapter(tmp_path, model, params)
    wanted = outputs(model, params, adapter)
    np.testing.assert_allclose(outputs(model, params, again), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@every_row
def test_modules_are_chosen_by_the_shortest_end_that_is_theirs_alone(name, tmp_path):
    model, params = published(name)
    source.save_adapter(tmp_path, model, drawn(SOME, params))
    assert (
        settings(tmp_path)["target_modules"]
        == {
            "llama": ["down_proj", "q_proj", "v_proj"],
            "bert": ["bert.encoder.layer.0.output.dense", "bert.encoder.layer.1.output.dense", "query", "value"],
            "t5": ["SelfAttention.q", "SelfAttention.v", "wo"],
            "gpt2": ["c_attn", "mlp.c_proj"],
            "bloom": ["dense_4h_to_h", "query_key_value"],
        }[name]
    )


def test_products_that_share_their_first_factor_are_written_as_one(tmp_path):
    model, params = published("gpt2")
    adapter = drawn(LoraConfig(2), params)
    attention = adapter["decoder"]["blocks"]["attention"]
    attention |= {part: attention[part] | {"a": attention["query"]["a"]} for part in ("key", "value")}
    source.save_adapter(tmp_path, model, adapter)
    assert load_file(tmp_path / TENSORS)["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"].shape == (
        2,
        32,
    )
    equal_trees(adapter, source.load_adapter(tmp_path, model, params)[1])


def test_ranks_that_are_not_understood_change_no_number_that_comes_out(tmp_path):
    model, params = published("gpt2")
    adapter = drawn(LoraConfig(2), params)
    source.save_adapter(tmp_path, model, adapter)
    tensors = load_file(tmp_path / TENSORS)
    for ranks in (
        {},
        {"ranks": "]"},
        {"ranks": "[3]"},
        {"ranks": '{"transformer.h.{layer}.attn.c_attn": [9, 9, 9]}'},
    ):
        save_file(tensors, tmp_path / TENSORS, ranks)
        again = source.load_adapter(tmp_path, model, params)[1]
        assert again["decoder"]["blocks"]["attention"]["key"]["a"].shape == (2, 32, 6)
        close(outputs(model, params, again), outputs(model, params, adapter))


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_a_head_is_written_beside_its_adapter_and_read_into_the_parameters(name, tmp_path):
    model, params = published(name, "classify:3")
    adapter = drawn(LoraConfig(2, dropout=0.1), params)
    heads = {"heads": {"classify": jax.tree.map(lambda leaf: leaf + 1, params["heads"]["classify"])}}
    source.save_adapter(tmp_path, model, adapter, heads, base="somebody/something")
    trained, again = source.load_adapter(tmp_path, model, params)
    equal_trees(again, adapter)
    equal_trees(trained, params | {"heads": params["heads"] | heads["heads"]})
    assert settings(tmp_path)["base_model_name_or_path"] == "somebody/something"
    assert settings(tmp_path)["lora_dropout"] == 0.1


def test_an_adapter_of_a_model_without_its_head_serves_one_with_it(tmp_path):
    (bare, params), (model, whole) = published("llama", "embed"), published("llama")
    adapter = drawn(SOME, params)
    source.save_adapter(tmp_path, bare, adapter)
    assert "base_model.model.layers.0.mlp.down_proj.lora_A.weight" in load_file(tmp_path / TENSORS)
    equal_trees(adapter, source.load_adapter(tmp_path, model, whole)[1])


def test_half_precision_is_read_as_float32(tmp_path):
    model, params = published("llama")
    adapter = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), drawn(SOME, params))
    source.save_adapter(tmp_path, model, adapter)
    assert str(load_file(tmp_path / TENSORS).popitem()[1].dtype) == "bfloat16"
    again = source.load_adapter(tmp_path, model, params)[1]
    for name in ("a", "b"):
        got, want = (tree["decoder"]["blocks"]["mlp"]["down"][name] for tree in (again, adapter))
        np.testing.assert_array_equal(got, want.astype(jnp.float32))
        assert got.dtype == jnp.float32


def test_published_with_its_adapter_a_model_is_the_merged_one(tmp_path):
    model, params = published("gpt2")
    adapter = drawn(SOME, params)
    source.save_pretrained(tmp_path, model, params, adapter=adapter)
    equal_trees(source.from_pretrained(tmp_path)[1], lora.merge(params, adapter))


# What cannot be expressed is refused.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("peft_type", "IA3"),
        ("lora_bias", True),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["mlp.experts"]),
        ("trainable_token_indices", [1]),
        ("alora_invocation_tokens", [1]),
        ("init_lora_weights", "pissa_niter_4"),
        ("alpha_pattern", {"q_proj": "much"}),
        ("alpha_pattern", {"q_proj(": 1}),
        ("lora_alpha", None),
        ("mystery", 1),
    ],
)
def test_a_setting_that_cannot_be_expressed_is_refused_by_name(name, value, tmp_path):
    model, params = published("llama")
    source.save_adapter(tmp_path, model, drawn(SOME, params))
    settings(tmp_path, **{name: value})
    with pytest.raises(ValueError) as error:
        source.load_adapter(tmp_path, model, params)
    assert f"  - {name}={value!r} is not supported" in str(error.value).splitlines()


def test_tensors_that_do_not_fit_are_all_listed(tmp_path):
    model, params = published("llama")
    source.save_adapter(tmp_path, model, drawn(SOME, params))
    tensors, layer = load_file(tmp_path / TENSORS), "base_model.model.model.layers.0"
    tensors[f"{layer}.self_attn.q_proj.lora_A.weight"] = np.zeros((3, 31), np.float32)
    tensors[f"{layer}.mlp.down_proj.lora_B.weight"] = np.zeros((32, 3), np.int32)
    del tensors[f"{layer}.self_attn.v_proj.lora_B.weight"]
    more = ["model.embed_tokens.lora_embedding_A", "model.norm.weight", "model.layers.9.mlp.up_proj.lora_A.weight"]
    tensors |= {f"base_model.model.{name}": np.zeros((2, 2), np.float32) for name in more}
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(ValueError) as error:
        source.load_adapter(tmp_path, model, params)
    layer = "model.layers.0"
    assert str(error.value).splitlines()[1:] == sorted(
        [
            f"  - {layer}.mlp.down_proj.lora_B.weight: expected (32, 3) of floats, found (32, 3) int32",
            f"  - {layer}.self_attn.q_proj.lora_A.weight: expected (3, 32) of floats, found (3, 31) float32",
            f"  - {layer}.self_attn.v_proj.lora_B.weight: expected (16, 3) of floats, found none",
            "  - model.embed_tokens.lora_embedding_A: unknown",
            "  - model.layers.9.mlp.up_proj.lora_A.weight: unknown",
            "  - model.norm.weight: unknown",
        ]
    )


def test_a_missing_file_is_named(tmp_path):
    model, params = published("llama")
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is not there"):
        source.load_adapter(tmp_path, model, params)
    source.save_adapter(tmp_path, model, drawn(SOME, params))
    (tmp_path / TENSORS).unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors is not there"):
        source.load_adapter(tmp_path, model, params)


def test_what_no_folder_can_hold_is_not_written(tmp_path):
    model, _ = published("llama")
    strange = {"decoder": {"blocks": {"mlp": {"sideways": {"a": np.zeros(3)}}}}}
    with pytest.raises(ValueError, match="only kernels and heads: decoder/blocks/mlp/sideways/kernel, embed/embed"):
        source.save_adapter(tmp_path, model, strange, {"embed": {"embedding": np.zeros(3)}})
    with pytest.raises(ValueError, match="this adapter holds nothing"):
        source.save_adapter(tmp_path, model, {})
    assert list(tmp_path.iterdir()) == []


# Beside peft itself.

PEFT = ["llama", "bert", "t5", "gpt2", "bloom"]
MADE = {
    "llama": ["q_proj", "o_proj", "gate_proj", "down_proj"],
    "bert": ["query", "attention.output.dense", "intermediate.dense"],
    "t5": ["q", "v", "wi_0", "wo"],
    "gpt2": ["c_attn", "attn.c_proj", "mlp.c_fc"],
    "bloom": ["query_key_value", "dense_h_to_4h"],
}
deprecated = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers")


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def reference(name, folder, head=None):
    """The reference's model with the parameters of a row."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    model, params = published(name, head)
    source.save_pretrained(folder, model, params)
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder, attn_implementation="eager").eval()


def their_outputs(module, model):
    import torch

    names = ["input_ids", "decoder_input_ids"]
    with torch.no_grad():
        out = module(**{name: torch.tensor(ids) for name, ids in zip(names, tokens(model), strict=False)})
    return out.logits.numpy()


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * float(np.abs(want).max()))


@pytest.mark.parametrize("name", PEFT)
@pytest.mark.parity
@deprecated
def test_peft_reads_what_we_write_and_computes_the_same(name, peft, tmp_path):
    model, params = published(name)
    for config in (LoraConfig(3, 5.0, targets(model)), SOME):
        adapter = drawn(config, params)
        source.save_adapter(tmp_path / "adapter", model, adapter)
        adapted = peft.PeftModel.from_pretrained(reference(name, tmp_path / "base"), tmp_path / "adapter")
        close(their_outputs(adapted, model), outputs(model, params, adapter))
        assert not np.allclose(outputs(model, params, adapter), outputs(model, params, {}), atol=1e-2)


@pytest.mark.parametrize("name", PEFT)
@pytest.mark.parity
@deprecated
def test_what_peft_writes_we_read_and_compute_the_same(name, peft, tmp_path):
    model, params = published(name)
    patterns = {"rank_pattern": {MADE[name][-1]: 2}, "alpha_pattern": {MADE[name][0]: 3}}
    for changes in ({}, {"use_rslora": True, "layers_to_transform": [1]}, patterns):
        asked = {"r": 4, "lora_alpha": 6, "target_modules": MADE[name], "init_lora_weights": False}
        about = peft.LoraConfig(**asked, fan_in_fan_out=name == "gpt2", **changes)
        made = peft.get_peft_model(reference(name, tmp_path / "base"), about)
        made.eval().save_pretrained(tmp_path / "adapter")
        same, adapter = source.load_adapter(tmp_path / "adapter", model, params)
        equal_trees(params, same)
        close(outputs(model, params, adapter), their_outputs(made, model))
        source.save_adapter(tmp_path / "again", model, adapter)
        again = peft.PeftModel.from_pretrained(reference(name, tmp_path / "base"), tmp_path / "again")
        close(their_outputs(again, model), their_outputs(made, model))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parity
@deprecated
def test_a_head_trained_with_an_adapter_goes_both_ways(name, peft, tmp_path):
    model, params = published(name, "classify:3")
    about = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=MADE[name], init_lora_weights=False, fan_in_fan_out=name == "gpt2"
    )
    made = peft.get_peft_model(reference(name, tmp_path / "base", "classify:3"), about)
    for path, parameter in made.named_parameters():
        if "modules_to_save" in path:
            parameter.data += 0.5
    made.eval().save_pretrained(tmp_path / "adapter")
    trained, adapter = source.load_adapter(tmp_path / "adapter", model, params)
    close(outputs(model, trained, adapter), their_outputs(made, model))
    assert not np.allclose(outputs(model, params, adapter), outputs(model, trained, adapter), atol=1e-2)
    source.save_adapter(tmp_path / "again", model, adapter, {"heads": {"classify": trained["heads"]["classify"]}})
    again = peft.PeftModel.from_pretrained(reference(name, tmp_path / "base", "classify:3"), tmp_path / "again")
    close(their_outputs(again, model), their_outputs(made, model))
