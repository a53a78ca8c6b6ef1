import dataclasses

import jax
import numpy as np
import pytest

from jaxformer import sharding
from jaxformer.config import Card, Sentences
from jaxformer.sharding import MeshConfig
from jaxformer.tasks.embed import Embed
from jaxformer.testing import with_dropout
from jaxformer.text.rows import padded

TASK = Embed()
ALONE = Embed(text="document", other=None)
RECORDS = [
    {"query": "who ?", "document": "anna sees a dog"},
    {"query": "where ?", "document": "in rome"},
    {"query": "red", "document": "the fox is red"},
    {"query": "blue", "document": "it is blue or red"},
    {"query": "the dog", "document": "a lazy dog"},
    {"query": "jumps over", "document": "a quick brown fox jumps over it"},
    {"query": "lazy", "document": "who is it ?"},
    {"query": "brown", "document": "a brown dog sees anna in rome"},
]


def vectors(kit, model, params, tokenizer, name, pooling):
    """The vectors of some texts, pooled one by one."""
    made = [wordpiece_row(tokenizer, each[name]) for each in RECORDS]
    tokens, sizes = np.array([padded(ids, 12) for ids in made]), [len(ids) for ids in made]
    mask = np.arange(12)[None] < np.array(sizes)[:, None]
    hidden = np.asarray(kit.apply(model, params, tokens=tokens, mask=mask).hidden)
    pools = {"mean": lambda h: h.mean(0), "first": lambda h: h[0], "max": lambda h: h.max(0), "last": lambda h: h[-1]}
    found = [pools[pooling](h[:size]) for h, size in zip(hidden, sizes, strict=True)]
    return np.stack([vector / np.linalg.norm(vector) for vector in found])


def wordpiece_row(tokenizer, text):
    cls, sep = (tokenizer.specials[role] for role in ("cls", "sep"))
    return [cls, *tokenizer.encode(text), sep]


def test_a_row_holds_both_texts_between_special_tokens(kit, wordpiece):
    row = kit.rows(TASK, RECORDS[:1], wordpiece, 10).row(0)
    for side, name in enumerate(("query", "document")):
        assert row["tokens"][side][row["mask"][side]].tolist() == wordpiece_row(wordpiece, RECORDS[0][name])
    assert row["tokens"].shape == row["mask"].shape == row["token_types"].shape == (2, 10)
    assert not row["token_types"].any()
    same = kit.rows(ALONE, RECORDS[:1], wordpiece, 10).row(0)
    np.testing.assert_array_equal(same["tokens"], row["tokens"][[1, 1]])


@pytest.mark.parametrize("pooling", ["mean", "first", "max", "last"])
def test_vectors_are_made_as_the_card_says_and_have_length_one(kit, wordpiece, pooling):
    model = dataclasses.replace(kit.model("encoder", wordpiece), card=Card(sentences=Sentences(pooling)))
    params, documents = kit.random_params(model), kit.documents(TASK, RECORDS[:3])
    found = TASK.predict(model, {"params": params}, wordpiece, documents, 2, 12)
    wanted = [vectors(kit, model, params, wordpiece, name, pooling)[:3] for name in ("query", "document")]
    np.testing.assert_allclose(np.stack(found, 1), wanted, atol=1e-5)


def test_the_card_goes_out_with_how_vectors_are_made():
    assert TASK.card(Card("x")).sentences == Sentences("mean", normalize=True)
    given = Sentences("first", length=64)
    assert TASK.card(Card(sentences=given)).sentences == dataclasses.replace(given, normalize=True)


def test_the_loss_is_of_the_own_row_among_all_of_the_batch(kit, wordpiece):
    model = kit.model("encoder", wordpiece)
    params, batch = kit.random_params(model), kit.batch(TASK, RECORDS, wordpiece, 12)
    a, b = (vectors(kit, model, params, wordpiece, name, "mean") for name in ("query", "document"))
    scores = 20 * a @ b.T
    both = [-np.diag(jax.nn.log_softmax(x)).mean() for x in (scores, scores.T)]
    (loss, metrics), _ = kit.gradients(TASK, model, params, batch)
    assert float(loss) == pytest.approx(np.mean(both), rel=1e-4)
    assert float(metrics["accuracy"][0]) == (scores.argmax(1) == np.arange(8)).sum()
    assert float(metrics["accuracy"][1]) == 8


@pytest.mark.parametrize("name", ["encoder", "learned"])
def test_eight_pairs_are_learnt_and_found(kit, wordpiece, name):
    model = kit.model(name, wordpiece)
    params, loss = kit.overfit(TASK, model, kit.batch(TASK, RECORDS, wordpiece, 12))
    assert loss < 0.05
    documents = kit.documents(TASK, RECORDS)
    found = TASK.predict(model, {"params": params}, wordpiece, documents, 3, 12)
    assert TASK.score(found, documents) == {"recall@1": 1.0, "recall@10": 1.0, "mrr": 1.0}


def test_padding_empty_texts_and_rows_of_weight_zero_change_nothing(kit, plain):
    model = kit.model("encoder", plain)
    params = kit.random_params(model)
    alone = kit.batch(TASK, RECORDS[:3], plain, 32)
    blank = kit.batch(TASK, RECORDS[:3], plain, 40, size=5)
    others = kit.batch(TASK, RECORDS[:5], plain, 40) | {"weights": np.float32([1, 1, 1, 0, 0])}
    kit.assert_equal_sums(TASK, model, params, alone, blank, others)


def test_a_text_alone_meets_itself_under_other_dropout(kit, wordpiece):
    model = kit.model("shared", wordpiece)
    model = dataclasses.replace(model, config=with_dropout(model.config, 0.3))
    params, batch = kit.random_params(model), kit.batch(ALONE, RECORDS, wordpiece, 12)
    losses = (jax.jit(ALONE.loss(model, train=train)) for train in (True, False))
    loud, still = (float(loss(params, None, batch, jax.random.key(0))[0]) for loss in losses)
    assert loud > still
    assert ALONE.score([np.eye(2)], kit.documents(ALONE, RECORDS[:1])) == {}


def test_rows_on_several_devices_all_meet(kit, wordpiece):
    model = kit.model("encoder", wordpiece)
    params, batch = kit.random_params(model), kit.batch(TASK, RECORDS, wordpiece, 12)
    (wanted, _), _ = kit.gradients(TASK, model, params, batch)
    mesh = sharding.make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh):
        loss_fn = TASK.loss(model, train=False)
        placed = jax.device_put(params, sharding.shardings(mesh, params))
        documents = kit.documents(TASK, RECORDS)
        spread = TASK.predict(model, {"params": placed}, wordpiece, documents, 8, 12)
        found = jax.jit(loss_fn)(placed, None, sharding.place_batch(batch, mesh), jax.random.key(0))[0]
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    one = TASK.predict(model, {"params": params}, wordpiece, documents, 3, 12)
    np.testing.assert_allclose(np.stack(spread), np.stack(one), atol=1e-5)


def test_ranks_worked_out_by_hand(kit):
    texts = ["a", "b", "b", "c"]
    documents = kit.documents(TASK, [{"query": "q", "document": text} for text in texts])
    theirs = np.eye(4, dtype=np.float32)
    theirs[2] = theirs[1]
    ours = np.float32([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0.5]])
    found = TASK.score([*np.stack([ours, theirs], 1)], documents)
    # the third: its own 0, those of a 1 and of c 0; the fourth: its own 0.5, a and twice b before it
    assert found == {"recall@1": 0.5, "recall@10": 1.0, "mrr": pytest.approx((1 + 1 + 1 / 3 + 1 / 4) / 4)}
    nothing = [np.ones((2, 4), np.float32)] * 4
    assert TASK.score(nothing, documents)["recall@1"] == 0


def test_problems_and_columns(kit, wordpiece):
    assert TASK.problems(kit.model("encoder", wordpiece).config, 12) == []
    assert len(TASK.problems(kit.model("learned", wordpiece).config, 65)) == 1
    assert len(TASK.problems(kit.model("encoder_decoder", wordpiece).config, 12)) == 1
    assert (TASK.columns, ALONE.columns, TASK.head) == (("query", "document"), ("document",), "embed")
