"""From records to batches, and a few steps on them: what tests of tasks share."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import sharding
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models, tiny_tokenizer
from jaxformer.text.corpus import open_documents
from jaxformer.text.index import EvaluationBatches
from jaxformer.text.prepare import prepare
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

KEY = jax.random.key(7)
WORDS = "the quick brown fox jumps over a lazy dog ; where is it , and who sees red or blue ? anna in rome ."


def documents(task, records):
    return list(open_documents(records, task.columns))


def store(task, records, tokenizer):
    found = open_documents(records, task.columns)
    return prepare(
        found, lambda document: task.examples(document, tokenizer), task.fields(tokenizer.vocab_size), repr(task)
    )


def rows(task, records, tokenizer, length, seed=None):
    return task.rows(store(task, records, tokenizer), tokenizer, length, seed)


def batch(task, records, tokenizer, length, size=None):
    found = rows(task, records, tokenizer, length)
    return EvaluationBatches(found, size or found.count).batch(0)


def model(name, tokenizer, extra=(), head=None, **more):
    config = dataclasses.replace(tiny_models()[name], vocab=tokenizer.vocab_size, extra=extra, head=head, **more)
    return Model(config, compute="float32")


def random_params(model):
    return randomized(sharding.abstract_params(model), jax.random.key(3))


@functools.cache
def applied(model):
    return jax.jit(model.apply)


def apply(model, params, **given):
    """What the model gives, compiled once for inputs of one shape."""
    return applied(model)({"params": params}, **given)


def overfit(task, model, data, steps=60, rate=1e-2):
    """Parameters after some steps on one batch, and the loss there."""
    optimizer, loss_fn = optax.adam(rate), task.loss(model, train=True)
    params = sharding.init(model, jax.random.key(0))

    @jax.jit
    def step(params, state):
        gradients, metrics = jax.grad(lambda p: loss_fn(p, None, data, KEY), has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, metrics

    state = optimizer.init(params)
    for _ in range(steps):
        params, state, metrics = step(params, state)
    return params, float(metrics["loss"][0] / metrics["loss"][1])


def gradients(task, model, params, data, frozen=None):
    """(loss, metrics), and the gradient of each parameter."""
    return compiled(task, model)(params, frozen, data)


@functools.cache
def compiled(task, model):
    loss_fn = task.loss(model, train=False)
    return jax.jit(jax.value_and_grad(lambda params, frozen, data: loss_fn(params, frozen, data, KEY), has_aux=True))


def assert_equal_sums(task, model, params, one, *others):
    """All batches give the same metrics and the same gradients."""
    (_, first), ours = gradients(task, model, params, one)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * max(1, float(jnp.abs(b).max())))
    for other in others:
        (_, second), theirs = gradients(task, model, params, other)
        jax.tree.map(close, first, second)
        jax.tree.map(close, ours, theirs)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))
    assert any(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ours))


@pytest.fixture(scope="session")
def kit():
    """The functions of this file."""
    names = (documents, store, rows, batch, model, random_params, apply, overfit, gradients, assert_equal_sums)
    return SimpleNamespace(**{each.__name__: each for each in names})


@pytest.fixture(scope="session")
def wordpiece():
    """A tokenizer with [CLS] and [SEP], of whole words."""
    return train_tokenizer(TokenizerConfig("wordpiece", 200), [WORDS] * 3)


@pytest.fixture(scope="session")
def plain():
    """A tokenizer with bos and eos that loses nothing."""
    return tiny_tokenizer()
