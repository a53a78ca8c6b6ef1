"""Log-probabilities of answers: what they are of, and what they do not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.align import answers
from jaxformer.align.exchange import Exchange, row
from jaxformer.generation import Sample, generate
from jaxformer.text.index import stack

KEY = jax.random.key(0)
PROMPTS = [[5, 9, 11], [7], [4, 8, 15, 16, 23]]
SAID = [[30, 31, 2], [40, 41, 42, 43, 2], [50]]
POLICIES = ["rotary", "learned", "encoder_decoder"]


def batched(prompt_length=6, answer_length=6, fill=0):
    both = [Exchange(np.array(p), np.array(a)) for p, a in zip(PROMPTS, SAID, strict=True)]
    made = stack([row(each, prompt_length, answer_length) for each in both])
    made["tokens"] = np.where(made["mask"], made["tokens"], fill)
    made["answers"] = np.where(made["written"], made["answers"], fill)
    return jax.tree.map(jnp.asarray, made)


def found(model, params, batch, **more):
    held = {"params": params}
    return answers.log_probs(model, held, answers.read(model, held, KEY, False, batch), batch["answers"], **more)


def alone(model, params, prompt, said):
    """Each token's log-probability from the logits of one row without padding."""
    if model.config.encoder is None:
        logits = model.apply({"params": params}, jnp.array([[*prompt, *said[:-1]]])).logits[0, len(prompt) - 1 :]
    else:
        logits = model.apply({"params": params}, jnp.array([prompt]), jnp.array([[1, *said[:-1]]])).logits[0]
    return jax.nn.log_softmax(logits)[jnp.arange(len(said)), jnp.array(said)]


@pytest.mark.parametrize("name", POLICIES)
def test_they_are_those_of_each_exchange_by_itself(made, name):
    model, params = made(name)
    batch = batched()
    ours = found(model, params, batch)
    for i, (prompt, said) in enumerate(zip(PROMPTS, SAID, strict=True)):
        np.testing.assert_allclose(ours[i, : len(said)], alone(model, params, prompt, said), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_padding_changes_nothing_and_has_no_gradient(made, name):
    model, params = made(name)

    def total(params, batch):
        return answers.summed(found(model, params, batch), batch["written"]).sum()

    one, pull = jax.value_and_grad(total)(params, batched())
    for other in (batched(fill=77), batched(9, 8)):
        two, pulled = jax.value_and_grad(total)(params, other)
        assert float(one) == pytest.approx(float(two), rel=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), pull, pulled)


@pytest.mark.parametrize("name", POLICIES)
def test_a_prompt_is_no_target(made, name):
    """What is added to the logits of its own tokens alone does not reach the answer's loss."""
    model, params = made(name)
    batch = batched()
    out = answers.read(model, {"params": params}, KEY, False, batch)
    assert out.hidden.shape[:2] == batch["answers"].shape

    def total(hidden):
        held = {"params": params}
        tokens = answers.log_probs(model, held, out.replace(hidden=hidden), batch["answers"])
        return answers.summed(tokens, batch["written"]).sum()

    pull = np.asarray(jax.grad(total)(out.hidden))
    assert np.abs(pull)[np.asarray(batch["written"])].max(-1).all()
    assert not np.abs(pull)[~np.asarray(batch["written"])].any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", POLICIES)
def test_the_trainers_numbers_are_the_samplers(made, name, temperature):
    model, params = made(name)
    drawn = generate(model, params, PROMPTS, 6, strategy=Sample(temperature), eos=2, key=jax.random.key(4))
    rows = [Exchange(np.array(p), said[:n]) for p, said, n in zip(PROMPTS, drawn.tokens, drawn.lengths, strict=True)]
    batch = jax.tree.map(jnp.asarray, stack([row(each, 5, 6) for each in rows]))
    ours = found(model, params, batch)
    there = np.asarray(batch["written"])
    np.testing.assert_allclose(np.where(there, ours, 0), drawn.scores, rtol=1e-4, atol=1e-4)
    cooled = np.asarray(found(model, params, batch, temperature=temperature))
    want = np.concatenate(
        [
            np.asarray(
                jax.nn.log_softmax(logits_of(model, params, p, said[:n]) / temperature)[jnp.arange(n), said[:n]]
            )
            for p, said, n in zip(PROMPTS, drawn.tokens, drawn.lengths, strict=True)
        ]
    )
    np.testing.assert_allclose(cooled[there], want, rtol=1e-4, atol=1e-4)


def logits_of(model, params, prompt, said):
    said = [int(id) for id in said]
    if model.config.encoder is None:
        return model.apply({"params": params}, jnp.array([[*prompt, *said[:-1]]])).logits[0, len(prompt) - 1 :]
    return model.apply({"params": params}, jnp.array([prompt]), jnp.array([[1, *said[:-1]]])).logits[0]


def test_means_and_sums_are_over_what_is_written():
    values, written = jnp.array([[1.0, 2.0, 9.0], [9.0, 9.0, 9.0]]), jnp.array([[True, True, False], [False] * 3])
    np.testing.assert_array_equal(answers.summed(values, written), [3, 0])
    np.testing.assert_array_equal(answers.averaged(values, written), [1.5, 0])
