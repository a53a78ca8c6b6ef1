import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import sharding, tree
from jaxformer.nn.model import Model
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.testing import randomized, tiny_models, tiny_tokenizer, with_dropout
from jaxformer.text.records import Document

TASK = CausalLM(label_smoothing=0.1, z_loss=0.01)
KEY = jax.random.key(5)


def batch_of(*rows, length=10):
    """Rows of documents, packed as text/ packs them: tokens, segments from 1, positions, weights of the targets."""
    shape = (len(rows), length + 1)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "segments", "positions")}
    for i, documents in enumerate(rows):
        at = 0
        for number, document in enumerate(documents, 1):
            span = slice(at, at + len(document))
            batch["tokens"][i, span], batch["segments"][i, span] = document, number
            batch["positions"][i, span] = np.arange(len(document))
            at += len(document)
    same = (batch["segments"][:, 1:] == batch["segments"][:, :-1]) & (batch["segments"][:, 1:] > 0)
    return batch | {"weights": same.astype(np.float32)}


FIRST, SECOND = [3, 1, 4, 1, 5, 9], [2, 6, 5, 3]


@pytest.fixture(scope="module", params=["learned", "rotary"])
def case(request):
    model = Model(tiny_models()[request.param], compute="float32")
    return model, randomized(sharding.abstract_params(model), jax.random.key(0))


def losses(model, task=CausalLM(), train=False):
    loss = task.loss(model, train=train)
    return jax.jit(lambda params, batch, frozen=None, key=KEY: loss(params, frozen, batch, key))


def test_a_document_stands_between_the_marks_that_the_tokenizer_has():
    tokenizer = tiny_tokenizer()
    (got,) = CausalLM().examples(Document("here", text="a b"), tokenizer)
    assert got["tokens"].tolist() == [tokenizer.bos, *tokenizer.encode("a b"), tokenizer.eos]
    assert got["tokens"].dtype == np.int32


def test_ready_made_tokens_are_taken_as_they_are():
    (got,) = CausalLM().examples(Document("here", tokens=np.asarray([5, 6], np.uint16)), None)
    assert got["tokens"].tolist() == [5, 6]


def test_the_loss_is_of_each_token_given_those_before_it(case):
    model, params = case
    batch = batch_of([FIRST])
    loss, metrics = losses(model)(params, batch)
    logits = model.apply({"params": params}, jnp.asarray([FIRST[:-1]])).logits
    logp = jax.nn.log_softmax(logits)[0]
    want = -np.mean([logp[i, target] for i, target in enumerate(FIRST[1:])])
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    assert float(metrics["loss"][1]) == len(FIRST) - 1


def test_packed_documents_give_the_sums_and_gradients_of_separate_rows(case):
    model, params = case
    loss = CausalLM().loss(model, train=False)
    run = jax.jit(jax.value_and_grad(lambda p, b: loss(p, None, b, KEY), has_aux=True))
    (_, packed), one = run(params, batch_of([FIRST, SECOND], [[]]))
    (_, apart), two = run(params, batch_of([FIRST], [SECOND]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), packed, apart)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max())), one, two)


def test_frozen_parameters_are_merged_and_those_alone_that_train_have_gradients(case):
    model, params = case
    batch = batch_of([FIRST, SECOND])
    frozen, trained = tree.split(params, ["embed/**", "**/attention/**"])
    loss = CausalLM().loss(model, train=False)
    gradients = jax.jit(jax.grad(lambda p: loss(p, {"params": frozen}, batch, KEY)[0]))(trained)
    assert tree.flatten(gradients).keys() == tree.flatten(trained).keys()
    np.testing.assert_allclose(
        losses(model)(trained, batch, {"params": frozen})[0], losses(model)(params, batch)[0], rtol=1e-6
    )
    with pytest.raises(ValueError, match="stand in two trees"):
        losses(model)(params, batch, {"params": frozen})


def test_an_adapter_acts_from_among_the_frozen(case):
    model, params = case
    batch, kernel = batch_of([FIRST]), params["decoder"]["blocks"]["mlp"]["down"]["kernel"]
    a, b = jnp.ones((2, kernel.shape[1], 1)) * 0.1, jnp.ones((2, 1, kernel.shape[2]))
    adapter = {"decoder": {"blocks": {"mlp": {"down": {"a": a, "b": b, "scale": jnp.ones(2)}}}}}
    merged = tree.unflatten(tree.flatten(params) | {"decoder/blocks/mlp/down/kernel": kernel + a @ b})
    got, want = losses(model)(params, batch, {"lora": adapter})[0], losses(model)(merged, batch)[0]
    assert float(got) == pytest.approx(float(want), rel=1e-5)


def test_smoothing_and_dropout_act_in_training_alone():
    config = tiny_models()["learned"]
    model = Model(with_dropout(config, 0.3), compute="float32")
    params, batch = randomized(sharding.abstract_params(model), jax.random.key(0)), batch_of([FIRST])
    quiet = losses(Model(config, compute="float32"))(params, batch)
    still = losses(model, TASK)
    np.testing.assert_allclose(still(params, batch)[0], quiet[0], rtol=1e-6)
    assert float(still(params, batch)[0]) == float(still(params, batch, key=jax.random.key(6))[0])
    training = losses(model, TASK, train=True)
    one, other = training(params, batch)[0], training(params, batch, key=jax.random.key(6))[0]
    assert float(one) == float(training(params, batch)[0])
    assert float(one) != float(other)


def test_bits_per_byte_count_every_byte_of_the_text():
    values = CausalLM().metrics({"loss": (200.0, 50.0), "accuracy": (10.0, 50.0)}, 400)
    bits = pytest.approx(200 / math.log(2) / 400)
    assert values == {"loss": 4.0, "accuracy": 0.2, "perplexity": pytest.approx(math.exp(4)), "bits_per_byte": bits}
    assert "bits_per_byte" not in CausalLM().metrics({"loss": (200.0, 50.0)}, 0)
