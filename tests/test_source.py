"""Models from a published folder, a hub id or a run, and back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import codec, families, sharding, source, tree
from jaxformer.config import Card
from jaxformer.nn.model import Model
from jaxformer.sharding import MeshConfig
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.state import TrainState

TEXTS = [
    "def read_lines(path):\n    return [line for line in open(path)]\n",
    "Hello world, hello 2026. Grüße, 世界!",
] * 9
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 48,
}


def small(vocab=48, card=None):
    config = families.family("llama").config(LLAMA | {"vocab_size": vocab})
    return Model(config, card=card or Card())


def drawn(model, seed=0, dtype=None):
    rng, shapes = np.random.default_rng(seed), sharding.abstract_params(model, dtype)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.3, 0.3, leaf.shape), leaf.dtype), shapes)


def equal_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def json_of(path):
    return json.loads(path.read_text())


# Runs of ours.


def run_folder(folder, *, meta=None, dtype=None):
    model = small()
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (1, 2):
            state = TrainState(step=jnp.int32(step), params=drawn(model, step, dtype), opt_state={})
            checkpoints.save(state, data={}, meta={"model": codec.to_json(model.config)} | (meta or {}))
    return model


def test_a_run_gives_its_newest_checkpoint_and_its_tokenizer(tmp_path):
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), TEXTS)
    tokenizer.save(tmp_path / "tokenizer")
    model = run_folder(tmp_path)
    loaded, params, again = source.from_pretrained(tmp_path)
    assert loaded == model
    assert again.fingerprint() == tokenizer.fingerprint()
    equal_trees(params, drawn(model, 2))


def test_a_run_keeps_its_card_and_is_published_by_it(tmp_path):
    card = Card("llama", {**LLAMA, "initializer_range": 0.5}, {"eos_token_id": 5})
    run_folder(tmp_path, meta={"card": codec.to_json(card)})
    model, params, tokenizer = source.from_pretrained(tmp_path)
    assert model.card == card
    assert tokenizer is None
    source.save_pretrained(tmp_path / "model", model, params)
    assert json_of(tmp_path / "model" / "config.json")["initializer_range"] == 0.5


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_run_is_read_in_another_dtype_and_onto_a_mesh(dtype, tmp_path):
    model = run_folder(tmp_path, dtype="float16")
    mesh = sharding.make_mesh(MeshConfig(fsdp=8))
    _, params, _ = source.from_pretrained(tmp_path, dtype=dtype, mesh=mesh)
    equal_trees(params, jax.tree.map(lambda leaf: leaf.astype(dtype or "float16"), drawn(model, 2, "float16")))
    homes = tree.flatten(sharding.shardings(mesh, params))
    assert {path: leaf.sharding for path, leaf in tree.flatten(params).items()} == homes


def test_a_finished_run_gives_its_published_model(tmp_path):
    model = run_folder(tmp_path)
    source.save_pretrained(tmp_path / "model", model, drawn(model, 7))
    equal_trees(source.from_pretrained(tmp_path)[1], drawn(model, 7))


def test_a_folder_with_no_model_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"looked for config.json .*, model/ and checkpoints/"):
        source.from_pretrained(tmp_path)


# Asking.


def test_another_head_is_drawn_and_nothing_else(tmp_path, caplog):
    model = small()
    params = drawn(model)
    source.save_pretrained(tmp_path / "model", model, params)
    other, loaded, _ = source.from_pretrained(tmp_path / "model", head="classify:5")
    assert "drawn anew: heads/classify/output/kernel" in caplog.text
    assert loaded["heads"]["classify"]["output"]["kernel"].shape == (16, 5)
    assert other.config.head is None
    jax.tree.map(np.testing.assert_array_equal, params["decoder"], loaded["decoder"])
    source.save_pretrained(tmp_path / "classifier", other, loaded)
    caplog.clear()
    again = source.from_pretrained(tmp_path / "classifier")[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, again)
    assert caplog.text == ""


@pytest.mark.parametrize("head", ["classify", "classify:0", "classify:x", "answer:2", "sing"])
def test_a_head_that_the_family_does_not_have_is_refused(head, tmp_path):
    model = small()
    source.save_pretrained(tmp_path / "model", model, drawn(model))
    with pytest.raises(ValueError, match=f"head='{head}': of llama there are lm, classify:N"):
        source.from_pretrained(tmp_path / "model", head=head)


def test_an_unknown_dtype_is_refused_before_anything_is_opened():
    with pytest.raises(ValueError, match="dtype 'int4'"):
        source.from_pretrained("nowhere", dtype="int4")


def test_attributes_and_tensors_that_do_not_fit_are_errors(tmp_path):
    model = small()
    source.save_pretrained(tmp_path / "model", model, drawn(model))
    config = json_of(tmp_path / "model" / "config.json")
    for change, told in (
        ({"rope_scaling": {"type": "spiral", "factor": 2.0}}, r"llama: rope_scaling=.* is not supported"),
        ({"num_hidden_layers": 3}, r"model.layers.2.mlp.up_proj.weight: missing"),
        ({"num_hidden_layers": 1}, r"model.layers.1.mlp.up_proj.weight: unknown"),
        (
            {"intermediate_size": 32},
            r"model.layers.0.mlp.up_proj.weight: expected shape \(32, 16\), found \(24, 16\)",
        ),
        ({"model_type": "mamba"}, r"model_type 'mamba' is not known"),
    ):
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=told):
            source.from_pretrained(tmp_path / "model")


def test_a_folder_whose_sentences_cannot_be_made_is_refused_unless_only_the_model_is_wanted(tmp_path):
    model = small()
    source.save_pretrained(tmp_path / "model", model, drawn(model))
    (tmp_path / "model" / "modules.json").write_text('[{"type": "models.Dense", "path": "2_Dense"}]')
    with pytest.raises(ValueError, match=r"modules.json: .*found Dense"):
        source.from_pretrained(tmp_path / "model")
    assert source.from_pretrained(tmp_path / "model", head="lm")[0].card.sentences is None


# Publishing.


def test_a_model_from_scratch_is_published_with_the_ids_of_its_tokenizer(tmp_path):
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), TEXTS)
    model = small(tokenizer.vocab_size, Card(config={"max_position_embeddings": 512}, generation={"top_k": 5}))
    source.save_pretrained(tmp_path / "model", model, drawn(model, dtype="bfloat16"), tokenizer)
    config, ids = (
        json_of(tmp_path / "model" / "config.json"),
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
    )
    assert config.items() >= {**ids, "torch_dtype": "bfloat16", "max_position_embeddings": 512}.items()
    assert json_of(tmp_path / "model" / "generation_config.json") == ids | {"top_k": 5}
    loaded, _, again = source.from_pretrained(tmp_path / "model")
    assert loaded.card.special("eos") == (tokenizer.eos,)
    assert again.fingerprint() == tokenizer.fingerprint()


def test_a_card_of_another_architecture_is_not_written(tmp_path):
    model, other = small(card=Card("llama", LLAMA)), small(vocab=50)
    with pytest.raises(ValueError, match="describes another architecture"):
        source.save_pretrained(tmp_path / "model", model.clone(config=other.config), drawn(other))
    source.save_pretrained(tmp_path / "model", model, drawn(model))


def test_what_no_family_expresses_leaves_nothing_behind(tmp_path):
    model = small()
    params = drawn(model)
    odd = dataclasses.replace(model.config, head=dataclasses.replace(model.config.head, softcap=3.0))
    with pytest.raises(ValueError, match=r"head.softcap is 3.0, would come back as None"):
        source.save_pretrained(tmp_path / "model", Model(odd), params)
    with pytest.raises(ValueError, match="rows must name each parameter"):
        source.save_pretrained(tmp_path / "model", model, {"embed": params["embed"]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["sentencepiece", "byte_bpe"])
def test_the_reference_opens_model_and_tokenizer_with_equal_ids_and_logits(kind, tmp_path):
    import torch
    import transformers

    tokenizer = train_tokenizer(TokenizerConfig(kind, vocab_size=300), TEXTS)
    model = small(tokenizer.vocab_size)
    params = drawn(model)
    source.save_pretrained(tmp_path / "model", model, params, tokenizer)

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    for text in (*TEXTS[:2], "  two spaces, a tab\t and \u2581", "x = 'naïve' # 𝄞"):
        assert their_tokenizer.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    for role in ("bos", "eos", "pad"):
        id = getattr(tokenizer, role)
        assert [
            getattr(they, f"{role}_token_id") for they in (their_tokenizer, theirs.config, theirs.generation_config)
        ] == [id] * 3
    tokens = np.array([tokenizer.encode(TEXTS[0])])
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(model.apply)({"params": params}, tokens).logits
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max() / 30))
    again, loaded, _ = source.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    equal_trees(params, loaded)
