"""Text as it comes: nothing of a character before all of it, nothing lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    Card,
    MlpConfig,
    ModelConfig,
    RopeConfig,
    StackConfig,
)
from jaxformer.generation import Sample
from jaxformer.nn.model import Model
from jaxformer.stream_text import stream, until, whole_characters
from jaxformer.text.template import Template
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog, and the dog sleeps on: naïve café, 你好 🙂 déjà vu"] * 20
STORY = "the lazy fox: 🙂🙂 你好吗, naïve — \U0001f9d1\u200d\U0001f4bb over it"


class Bytes:
    """Ids are bytes, so that most characters take several; 0 starts, 1 ends."""

    vocab_size, bos, eos, pad, template = 256, 0, 1, None, Template()

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(id for id in ids if id > 1).decode(errors="replace")


@pytest.fixture(scope="module", params=["bytes", "sentencepiece", "byte_bpe"])
def tokenizer(request):
    if request.param == "bytes":
        return Bytes()
    return train_tokenizer(TokenizerConfig(request.param, vocab_size=350), TEXTS)


@pytest.mark.parametrize("split", [0, 1, 5])
def test_pieces_are_whole_characters_and_add_up_to_the_text(tokenizer, split):
    ids = tokenizer.encode(STORY)
    pieces = list(whole_characters(tokenizer, ids[:split], iter(ids[split:])))
    assert tokenizer.decode(ids[:split]) + "".join(pieces) == tokenizer.decode(ids) == STORY
    assert all("\N{REPLACEMENT CHARACTER}" not in piece and piece for piece in pieces)
    assert len(pieces) > 10


def test_a_text_may_end_within_a_character_or_hold_broken_ones():
    ids = [*b"a\xff\xe4b", *"你".encode()[:2]]
    assert "".join(whole_characters(Bytes(), [], iter(ids))) == Bytes().decode(ids)


def test_random_ids_add_up_too(tokenizer):
    random = np.random.default_rng(0)
    for _ in range(20):
        ids = random.integers(3, tokenizer.vocab_size, size=30).tolist()
        pieces = list(whole_characters(tokenizer, ids[:4], iter(ids[4:])))
        held = tokenizer.decode(ids[:4])
        assert (held + "".join(pieces)) == tokenizer.decode(ids) or held.endswith("\N{REPLACEMENT CHARACTER}")


@pytest.fixture(scope="module")
def model_and_params():
    block = BlockConfig(AttentionConfig(2, 2, 4, rope=RopeConfig()), MlpConfig(16))
    model = Model(ModelConfig(256, 8, decoder=StackConfig((block,), 1, True)), compute="float32")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    random = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(random.normal(0, 1, x.shape), x.dtype), shapes)


def test_a_stream_of_text_is_reproducible_and_may_be_closed(model_and_params):
    def run():
        return stream(*model_and_params, Bytes(), "", 40, Sample(), eos=(), key=jax.random.key(3))

    assert "".join(run()) == "".join(run())
    pieces = run()
    assert next(pieces)
    pieces.close()
    assert next(pieces, None) is None


def test_a_stream_ends_with_the_card_or_the_tokenizers_eos(model_and_params):
    model, params = model_and_params

    def give(model, **given):
        return list(stream(model, params, Bytes(), [65, 66], 20, **given))

    everything = tuple(range(256))
    assert len("".join(give(model, eos=everything))) <= 1
    assert give(model.clone(card=Card(config={"eos_token_id": everything}))) == give(model, eos=everything)
    assert give(model) == give(model, eos=1)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    "stop", [["dog"], ["over", "lazy"], ["zzz"], ["the"], ["g", "dog"], ["ooo", "oo"], []], ids=str
)
def test_a_text_stops_before_the_first_of_the_strings_that_is_complete(size, stop):
    """As far as `size` characters at a time show, whatever pieces it comes in."""
    text = "a fox jumps oover the lazy dog, ooo the doog"
    pieces, taken = [text[i : i + size] for i in range(0, len(text), size)], []
    found = list(until((taken.append(piece) or piece for piece in pieces), stop))
    ends = [(text.index(each) + len(each), text.index(each)) for each in stop if each in text]
    assert "".join(found) == (text[: min(ends)[1]] if ends else text)
    assert all(found)
    assert len(taken) == (-(-min(ends)[0] // size) if ends else len(pieces))  # nothing is asked for beyond


def test_nothing_is_given_out_that_may_belong_to_a_stop_string():
    assert list(until(iter(["ab", "c", "ab", "d", "ab"]), ["abd"])) == ["abc"]
    assert list(until(iter(["ab", "c", "ab"]), ["abd"])) == ["abc", "ab"]


def test_a_stream_stops_where_its_text_does(model_and_params):
    given = *model_and_params, Bytes(), "the ", 24, Sample(1.5)
    whole = "".join(stream(*given, key=jax.random.key(0), eos=()))
    assert len(whole) > 6
    for stop in (whole[3], whole[2:5], [whole[5], whole[3:5]]):
        first = min(whole.index(each) for each in ([stop] if isinstance(stop, str) else stop))
        assert "".join(stream(*given, key=jax.random.key(0), eos=(), stop=stop)) == whole[:first]
    with pytest.raises(ValueError, match="one character or more"):
        stream(*given, stop=["a", ""])
