"""The notebook that looks inside, on a model of which nothing is to be expected but that it can be looked into."""

import csv

import jax
import jax.numpy as jnp
import pytest

import jaxformer
from jaxformer import testing
from jaxformer.config import Card
from jaxformer.families import llama
from jaxformer.nn.model import Model

SMALL = {"08_look_inside": 'SOURCE, PROMPT, OTHER, WORD = "tiny", "a b c d", "a b e d", "dog"'}
PUBLISHED = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
PUBLISHED |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


def tiny(place):
    tokenizer = testing.tiny_tokenizer()
    config = PUBLISHED | {"vocab_size": tokenizer.vocab_size, "architectures": ["LlamaForCausalLM"]}
    model = Model(llama.config(config), card=Card("llama", config))
    params = model.init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
    params = testing.randomized(params, jax.random.key(1))
    jaxformer.save_pretrained(place / "tiny", model, params, tokenizer)


@pytest.mark.slow
def test_looking_inside_shows_pieces_heads_layers_losses_patches_and_neighbours(executed):
    done = executed("08_look_inside", SMALL["08_look_inside"], tiny)
    assert "byte" in done.text("pieces")
    assert done.text("attention").count("of its look") == 5
    for tag in ("attention", "lens", "losses", "patching", "ablation", "embeddings"):
        assert [picture.startswith(b"\x89PNG") for picture in done.pictures(tag)] == [True], tag
    for name, told in (("attention.html", '"tired"'), ("losses.html", '"tokens":')):
        assert told in (done.place / name).read_text()
    with (done.place / "projector" / "vectors.tsv").open() as file:
        assert len(list(csv.reader(file, delimiter="\t"))) == 40
    assert "1.00, " in done.text("embeddings")
