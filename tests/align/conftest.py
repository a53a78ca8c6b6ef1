"""Small models, tokenizers and pairs: what tests of alignment share."""

import dataclasses

import jax
import pytest

from jaxformer import sharding
from jaxformer.config import Card
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models, tiny_tokenizer
from jaxformer.text.corpus import open_documents
from jaxformer.text.index import EvaluationBatches
from jaxformer.text.prepare import prepare


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def made(tokenizer):
    """made(name, extra=()): (model, random params) of a tiny architecture over the tokenizer's vocabulary."""

    def make(name, extra=(), seed=3):
        config = dataclasses.replace(tiny_models()[name], vocab=tokenizer.vocab_size, extra=extra)
        if any(each.reads != "tokens" for each in extra):  # in place of the vocabulary's, as in published models
            config = dataclasses.replace(config, head=None)
        card = Card(config={"decoder_start_token_id": 1})
        model = Model(config, compute="float32", card=card)
        return model, randomized(sharding.abstract_params(model), jax.random.key(seed))

    return make


@pytest.fixture(scope="session")
def batch(tokenizer):
    """batch(task, records, length, size=None): the records as one batch of the task's rows."""

    def make(task, records, length, size=None):
        found = open_documents(records, task.columns)
        fields = task.fields(tokenizer.vocab_size)
        store = prepare(found, lambda each: task.examples(each, tokenizer), fields, repr(task))
        rows = task.rows(store, tokenizer, length, None)
        return EvaluationBatches(rows, size or rows.count).batch(0)

    return make
