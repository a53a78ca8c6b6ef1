"""Laws of what models say: the lens ends with the model's own logits, and losses of tokens add up to the task's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import Card
from jaxformer.inspect.predictions import choices, lens, losses
from jaxformer.inspect.taps import look, patch
from jaxformer.nn.model import Model
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.tasks.masked_lm import MaskedLM
from jaxformer.tasks.seq2seq import Seq2Seq, pairs_row
from jaxformer.testing import randomized, tiny_models

MODELS = {name: config for name, config in tiny_models().items() if config.head is not None}
CLOSE = {"rtol": 0, "atol": 2e-5}
MASK, START = 5, 2


def drawn(name):
    """(a tiny model, params of which every leaf is drawn, its inputs [2, 7])."""
    model = Model(MODELS[name], card=Card(generation={"decoder_start_token_id": START}))
    both = model.config.encoder is not None and model.config.decoder is not None
    tokens = [jax.random.randint(jax.random.key(n), (2, 7), 6, model.config.vocab) for n in range(1 + both)]
    params = jax.jit(model.init)(jax.random.key(0), *tokens)["params"]
    return model, randomized(params, jax.random.key(9)), tokens


@pytest.mark.parametrize("name", MODELS)
def test_the_last_layer_of_the_lens_is_the_model_and_a_layer_is_one_that_ends_there(name):
    model, params, tokens = drawn(name)
    given = {"mask": jnp.arange(7)[None] < jnp.array([[7], [5]])}
    found = jax.jit(lambda params: lens(model, params, *tokens, **given))(params)
    stack = getattr(model.config, model.config.main)
    assert found.shape == (stack.layers + 1, 2, 7, model.config.vocab)
    own = model.apply({"params": params}, *tokens, **given).logits
    np.testing.assert_allclose(found[-1], own, **CLOSE)
    path = f"{model.config.main}/blocks/residual"
    stream = look(model, params, *tokens, taps=[path], **given)[1][path]
    where = jnp.arange(stack.layers)[:, None, None, None] == stack.layers - 1
    ended, _ = look(model, params, *tokens, edits={path: patch(stream[0], where)}, **given)
    np.testing.assert_allclose(found[1], ended.logits, **CLOSE)
    assert not np.allclose(found[0], found[1], atol=1e-2)
    assert not np.allclose(found[1], found[-1], atol=1e-2)


def test_the_lens_keeps_what_is_read_of_each_layer():
    model, params, tokens = drawn("rotary")
    whole = lens(model, params, *tokens)
    kept = lens(model, params, *tokens, read=lambda logits: choices(logits, 3))
    assert kept.ids.shape == kept.probability.shape == (*whole.shape[:-1], 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), kept, choices(whole, 3))


def test_choices_are_the_likeliest_with_their_probabilities():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 11))
    found = choices(logits, 20)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_array_equal(found.ids, np.argsort(-p, axis=-1))
    np.testing.assert_allclose(found.probability, -np.sort(-p, axis=-1), rtol=1e-5)
    assert choices(logits, 2).ids.shape == (3, 4, 2)


def summed(task, model, params, batch):
    """(the sum of the task's loss, how many tokens it is of)."""
    return map(float, task.loss(model, train=False)(params, {}, batch, jax.random.key(0))[1]["loss"])


@pytest.mark.parametrize("name", [name for name, c in MODELS.items() if c.encoder is None])
def test_losses_of_a_decoder_add_up_to_the_loss_of_its_task(name):
    model, params, ((text, _),) = drawn(name)
    batch = {"tokens": text[None], "segments": jnp.ones((1, 7), int), "positions": jnp.arange(7)[None]}
    total, count = summed(CausalLM(), model, params, batch | {"weights": jnp.ones((1, 6))})
    said = jax.jit(lambda params: losses(model, params, text))(params)
    assert count == len(said.loss) == 6
    np.testing.assert_allclose(said.loss.sum(), total, rtol=1e-5)
    np.testing.assert_array_equal(said.tokens, text[1:])


@pytest.mark.parametrize("name", [name for name, c in MODELS.items() if c.encoder and c.decoder])
def test_losses_behind_an_encoder_add_up_to_the_loss_of_its_task(name):
    model, params, ((source, _), (target, _)) = drawn(name)
    row = pairs_row([np.asarray(source)], [np.asarray(target[:5])], 7, 5)
    total, count = summed(Seq2Seq(), model, params, {key: jnp.asarray(value)[None] for key, value in row.items()})
    said = losses(model, params, source, targets=target[:5])
    assert count == len(said.loss) == 5
    np.testing.assert_allclose(said.loss.sum(), total, rtol=1e-5)
    np.testing.assert_array_equal(said.tokens, target[:5])


@pytest.mark.parametrize("name", [name for name, c in MODELS.items() if c.decoder is None])
def test_losses_of_an_encoder_add_up_to_the_loss_of_each_token_masked_alone(name):
    model, params, ((text, _),) = drawn(name)
    total = 0.0
    for place in range(7):
        batch = {
            "tokens": text.at[place].set(MASK)[None],
            "segments": jnp.ones((1, 7), int),
            "positions": jnp.arange(7)[None],
            "places": jnp.array([[place]]),
            "targets": text[None, place : place + 1],
            "weights": jnp.ones((1, 1)),
        }
        total += next(summed(MaskedLM(), model, params, batch))
    said = losses(model, params, text, mask=MASK)
    np.testing.assert_allclose(said.loss.sum(), total, rtol=1e-5)
    np.testing.assert_array_equal(said.tokens, text)
    # What stood in the token's own place is not seen.
    other = losses(model, params, text.at[3].set(MASK + 1), mask=MASK)
    np.testing.assert_array_equal(other.choices.ids[3], said.choices.ids[3])


def test_a_token_that_was_a_choice_has_the_loss_of_its_probability():
    model, params, ((text, _),) = drawn("learned")
    said = losses(model, params, text, count=model.config.vocab)
    own = said.choices.probability[said.choices.ids == said.tokens[:, None]]
    np.testing.assert_allclose(own, np.exp(-said.loss), rtol=1e-5)
    np.testing.assert_allclose(said.choices.probability.sum(1), 1, rtol=1e-5)


def test_what_is_missing_or_too_much_is_said_at_once():
    model, params, ((text, other),) = drawn("learned")
    with pytest.raises(
        ValueError, match=r"(?s)targets is given: the model has a decoder.*mask is given.*got \(2, 7\)"
    ):
        losses(model, params, jnp.stack([text, other]), targets=other, mask=3)
    with pytest.raises(ValueError, match="a single one has none before it"):
        losses(model, params, text[:1])
    with pytest.raises(ValueError, match="rows of 65 tokens: the model's decoder has learned positions for 64"):
        losses(model, params, jnp.ones(66, int))
    without = dataclasses.replace(model, config=dataclasses.replace(model.config, head=None))
    with pytest.raises(ValueError, match="needs a head"):
        losses(without, params, text)
    model, params, ((text, _),) = drawn("encoder")
    with pytest.raises(ValueError, match="mask is missing: the model has an encoder"):
        losses(model, params, text)
    model, params, ((text, _), _) = drawn("relative")
    with pytest.raises(ValueError, match="targets is missing: the model has an encoder and a decoder"):
        losses(model, params, text)
