"""A reward model: what it reads, its likelihood, its verdicts, and how it is published."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxformer
from jaxformer.align import Reward
from jaxformer.align.reward import BINS, calibration
from jaxformer.config import Card, ExtraHeadConfig
from jaxformer.source import from_pretrained, save_pretrained
from jaxformer.text.corpus import open_documents
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

KEY = jax.random.key(0)
RECORDS = [
    {"prompt": "the quick brown", "chosen": " fox jumps", "rejected": " dog"},
    {"prompt": "anna", "chosen": " lives in rome", "rejected": " is red or blue"},
    {"prompt": "where is it ?", "chosen": " here", "rejected": " who knows , and who asks ?"},
]
SCORE = (ExtraHeadConfig("classify", 1, reads="last", bias=False),)


def valued(task, model, params, batch, train=False):
    (loss, metrics), pull = jax.value_and_grad(task.loss(model, train=train), has_aux=True)(params, {}, batch, KEY)
    return float(loss), metrics, pull


def alone(model, params, ids):
    """The reward of ids [T], of a row of their own."""
    return float(model.apply({"params": params}, jnp.asarray(ids)[None]).extra["classify"][0, 0])


@pytest.fixture(scope="module")
def judge(made):
    return made("rotary", SCORE)


def test_the_reward_is_that_of_the_last_real_token(judge, batch, tokenizer):
    model, params = judge
    task = Reward()
    loss, metrics, _ = valued(task, model, params, batch(task, RECORDS, 40))
    differences = []
    for document in open_documents(RECORDS, task.columns):
        sides = [task.reading(tokenizer, *each)[0] for each in task.texts(document)]
        assert all(ids[-1] == tokenizer.eos for ids in sides)
        differences.append(alone(model, params, sides[0]) - alone(model, params, sides[1]))
    want = np.mean([math.log1p(math.exp(-d)) for d in differences])
    assert loss == pytest.approx(want, rel=1e-4)
    means = task.metrics(metrics, 0)
    assert means["accuracy"] == pytest.approx(np.mean(np.array(differences) > 0))
    assert means["difference"] == pytest.approx(np.mean(differences), rel=1e-3, abs=1e-4)


def test_margin_smoothing_and_centre_act_in_training_and_the_metric_stays_plain(judge, batch):
    model, params = judge
    records = [each | {"by": float(i)} for i, each in enumerate(RECORDS)]
    task = Reward(margin="by", label_smoothing=0.2, center=0.1)
    plain = valued(Reward(), model, params, batch(Reward(), RECORDS, 40))
    loss, metrics, _ = valued(task, model, params, batch(task, records, 40), train=True)
    assert float(metrics["loss"][0] / metrics["loss"][1]) == pytest.approx(plain[0], rel=1e-5)
    assert loss != pytest.approx(plain[0], rel=1e-2)


def test_padding_changes_nothing(judge, batch):
    model, params = judge
    one, two = (valued(Reward(), model, params, batch(Reward(), RECORDS, *size)) for size in ((40,), (48, 5)))
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), one[2], two[2])


@pytest.mark.parametrize("name", ["rotary", "encoder", "encoder_decoder"])
def test_it_learns_what_was_preferred(made, batch, name):
    model, params = made(name, SCORE)
    task = Reward(encoder=name != "rotary")
    data, rule = batch(task, RECORDS, 40), optax.adam(3e-3)
    state, loss_fn = rule.init(params), task.loss(model, train=True)

    @jax.jit
    def step(params, state):
        pull, metrics = jax.grad(lambda p: loss_fn(p, {}, data, KEY), has_aux=True)(params)
        updates, state = rule.update(pull, state)
        return optax.apply_updates(params, updates), state, metrics

    for _ in range(40):
        params, state, metrics = step(params, state)
    assert task.metrics(metrics, 0)["accuracy"] == 1.0


def test_confidence_is_held_against_how_often_it_is_right():
    # Two verdicts of confidence 0.75, one right; one of 0.99 that is right; one that counts for nothing.
    difference = jnp.array([math.log(3), -math.log(3), math.log(99), 8.0])
    table = np.asarray(calibration(difference, jnp.array([1.0, 1.0, 1.0, 0.0])))
    assert table.shape == (BINS, 3)
    assert table[:, 0].sum() == 3
    np.testing.assert_allclose(table[5] if table[5, 0] else table[4], [2, 1.5, 1], rtol=1e-5)
    np.testing.assert_allclose(table[9], [1, 0.99, 1], rtol=1e-4)
    sums = {"calibration": (table, 3.0), "loss": (1.0, 3.0)}
    assert Reward().metrics(sums, 0)["calibration_error"] == pytest.approx((0.5 + 0.01) / 3, rel=1e-3)


def test_it_is_published_as_a_classifier_of_one_label(judge, tokenizer, tmp_path):
    model, params = judge
    model = model.clone(card=Reward().card(Card()))
    save_pretrained(tmp_path / "judge", model, params, tokenizer)
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0"}
    again, found, _ = from_pretrained(tmp_path / "judge")
    ids = tokenizer.encode("the quick brown fox")
    assert alone(again, found, ids) == pytest.approx(alone(model, params, ids), rel=1e-5)
    assert jaxformer.pipeline("text-classification", str(tmp_path / "judge"))("the fox")[0]["label"] == "LABEL_0"


def test_an_encoder_reads_both_as_a_pair_or_as_one_text():
    words = train_tokenizer(TokenizerConfig("wordpiece", 200), ["the fox jumps over the dog"])
    pair, one = (Reward(encoder=True, joined=joined).reading(words, "the fox", " jumps") for joined in (False, True))
    cls, sep = words.bos, words.eos
    (fox, jumps) = (words.encode(text) for text in ("the fox", " jumps"))
    assert pair[0].tolist() == [cls, *fox, sep, *jumps, sep]
    assert pair[1].tolist() == [0] * (len(fox) + 2) + [1] * (len(jumps) + 1)
    assert one[0].tolist() == [cls, *fox, *jumps, sep]
    assert not one[1].any()


def test_what_cannot_be_learned_is_told_at_once(judge, made):
    assert Reward(joined=True).problems(judge[0].config, 24) == [
        "task.joined is for encoders: a decoder always reads prompt and answer as one text"
    ]
    task = Reward(label_smoothing=0.5, center=-1, encoder=True)
    said = "\n".join(task.problems(made("rotary")[0].config, 24))
    for part in ("no head called 'classify'", "task.encoder is True", "label_smoothing", "center"):
        assert part in said
    assert not Reward().problems(judge[0].config, 24)


def test_a_margin_is_a_number(tokenizer):
    task = Reward(margin="by")
    (document,) = open_documents([RECORDS[0] | {"by": "much"}], task.columns)
    with pytest.raises(ValueError, match="by: expected a number, found 'much'"):
        list(task.examples(document, tokenizer))


def test_a_text_reads_the_same_wherever_its_prompt_ends(tokenizer):
    splits = ("", "the fox"), ("the", " fox"), ("the fox", "")
    whole, *others = (Reward().reading(tokenizer, *both)[0] for both in splits)
    for other in others:
        np.testing.assert_array_equal(whole, other)
