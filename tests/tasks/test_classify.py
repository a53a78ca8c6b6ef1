import dataclasses

import jax
import numpy as np
import pytest

from jaxformer import tree
from jaxformer.config import Card, ExtraHeadConfig
from jaxformer.tasks import labels as shared
from jaxformer.tasks.classify import Classify
from jaxformer.text.template import Template

LABELS = ("animal", "person", "place")
SINGLE = Classify(labels=LABELS)
PAIRS = Classify(pair="text2", labels=LABELS)
MULTI = Classify(labels=LABELS, kind="multi")
NUMBERS = Classify(kind="regression")
RECORDS = [
    {"text": "the fox", "text2": "a dog", "label": "animal"},
    {"text": "anna", "text2": "who sees red", "label": "person"},
    {"text": "rome is red", "text2": "it", "label": "place"},
    {"text": "the lazy dog jumps", "text2": "the fox", "label": 0},
    {"text": "who is it ?", "text2": "anna", "label": "1"},
    {"text": "in rome", "text2": "where is it ?", "label": 2},
    {"text": "a quick brown fox", "text2": "blue", "label": "animal"},
    {"text": "anna sees a dog", "text2": "over", "label": "person"},
]
MANY = [dict(record, label=[LABELS[i] for i in range(3) if number & 1 << i]) for number, record in enumerate(RECORDS)]
VALUES = [dict(record, label=0.25 * number - 1) for number, record in enumerate(RECORDS)]
HEAD = (ExtraHeadConfig("classify", 3, "pooled"),)


def encoder(kit, tokenizer, outputs=3):
    return kit.model("shared", tokenizer, (ExtraHeadConfig("classify", outputs, "pooled"),))


def test_a_row_is_the_texts_between_special_tokens(kit, wordpiece):
    cls, sep = (wordpiece.specials[role] for role in ("cls", "sep"))
    a, b = (wordpiece.encode(RECORDS[0][name]) for name in ("text", "text2"))
    one = kit.rows(SINGLE, RECORDS[:1], wordpiece, 12).row(0)
    assert one["tokens"].tolist() == [cls, *a, sep] + [0] * (10 - len(a))
    assert one["mask"].sum() == len(a) + 2
    assert one["token_types"].tolist() == [0] * 12
    two = kit.rows(PAIRS, RECORDS[:1], wordpiece, 12).row(0)
    assert two["tokens"][two["mask"]].tolist() == [cls, *a, sep, *b, sep]
    assert two["token_types"][two["mask"]].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert {name: (value.shape, value.dtype) for name, value in two.items()} == {
        "tokens": ((12,), np.int32),
        "token_types": ((12,), np.int32),
        "mask": ((12,), bool),
        "labels": ((), np.int32),
        "weights": ((), np.float32),
    }


def test_a_published_template_is_taken_as_it_is_and_marks_stand_in_for_none(plain):
    assert shared.frame(plain)([7, 8]) == ([plain.bos, 7, 8, plain.eos], [0] * 4)
    assert shared.frame(plain)([7], [8]) == ([plain.bos, 7, plain.eos, 8, plain.eos], [0, 0, 0, 1, 1])
    other = Template((("A", 0), ((9,), 0)))
    stand_in = type("", (), {"template": other, "specials": plain.specials})()
    assert shared.frame(stand_in) is other


@pytest.mark.parametrize(
    ("first", "second", "even", "odd"),
    [
        (9, 2, (6, 2), (5, 2)),
        (2, 9, (2, 6), (2, 5)),
        (9, 9, (4, 4), (3, 4)),
        (9, 8, (4, 4), (4, 3)),
        (4, 4, (4, 4), (3, 4)),
        (4, 9, (4, 4), (3, 4)),
        (0, 9, (0, 8), (0, 7)),
        (9, 0, (8, 0), (7, 0)),
        (4, 3, (4, 3), (4, 3)),
    ],
)
def test_of_a_pair_the_longer_text_is_cut_first(first, second, even, odd):
    template = Template((("A", 0),), (((1,), 0), ("A", 0), ((2,), 0), ("B", 1), ((3,), 1)))
    for length, kept in ((11, even), (10, odd)):
        row = shared.text_row(template, length, np.full(first, 8), np.full(second, 9))
        wanted = [1, *[8] * kept[0], 2, *[9] * kept[1], 3]
        assert row["tokens"].tolist() == wanted + [0] * (length - len(wanted))


def test_a_row_without_room_for_text_is_an_error(kit, wordpiece):
    with pytest.raises(ValueError, match="length is 2"):
        kit.rows(SINGLE, RECORDS, wordpiece, 2)
    with pytest.raises(ValueError, match="length is 4"):
        kit.rows(PAIRS, RECORDS, wordpiece, 4)
    assert kit.rows(PAIRS, RECORDS, wordpiece, 5).row(0)["mask"].all()


def test_labels_are_names_numbers_sets_or_values(kit, wordpiece):
    wanted = [0, 1, 2, 0, 1, 2, 0, 1]
    assert kit.batch(SINGLE, RECORDS, wordpiece, 12)["labels"].tolist() == wanted
    sets = kit.batch(MULTI, MANY, wordpiece, 12)["labels"]
    assert sets.dtype == np.float32
    assert sets.tolist() == [[float(n >> i & 1) for i in range(3)] for n in range(8)]
    values = kit.batch(NUMBERS, VALUES, wordpiece, 12)["labels"]
    assert values.dtype == np.float32
    assert values.tolist() == [record["label"] for record in VALUES]


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        (SINGLE, "robot", "expected one of animal, person, place, or its number from 0, found 'robot'"),
        (SINGLE, 3, "found 3"),
        (SINGLE, -1, "found -1"),
        (SINGLE, 0.5, "found 0.5"),
        (MULTI, ["animal", "robot"], "found 'robot'"),
        (NUMBERS, "much", "expected a number, found 'much'"),
    ],
)
def test_a_label_that_is_none_names_its_record(kit, wordpiece, task, label, message):
    (document,) = kit.documents(task, [{"text": "a", "label": label}])
    with pytest.raises(ValueError, match="document 0: label") as caught:
        list(task.examples(document, wordpiece))
    assert message in str(caught.value)


def test_a_text_that_is_none_names_its_record(kit, wordpiece):
    (document,) = kit.documents(SINGLE, [{"text": 3, "label": 0}])
    with pytest.raises(ValueError, match="document 0: text: expected a text, found 3"):
        list(SINGLE.examples(document, wordpiece))


@pytest.mark.parametrize(
    ("task", "records", "outputs"),
    [(SINGLE, RECORDS, 3), (PAIRS, RECORDS, 3), (MULTI, MANY, 3), (NUMBERS, VALUES, 1)],
    ids=["single", "pair", "multi", "regression"],
)
def test_eight_examples_are_learnt_and_predicted(kit, wordpiece, task, records, outputs):
    model = encoder(kit, wordpiece, outputs)
    params, loss = kit.overfit(task, model, kit.batch(task, records, wordpiece, 12))
    assert loss < 0.05
    documents = kit.documents(task, records)
    found = task.predict(model, {"params": params}, wordpiece, documents, 3, 12)
    if task.kind == "regression":
        np.testing.assert_allclose(found, [record["label"] for record in records], atol=0.3)
    elif task.kind == "multi":
        assert found == [[i for i in range(3) if number & 1 << i] for number in range(8)]
    else:
        assert found == [0, 1, 2, 0, 1, 2, 0, 1]
    assert all(value > 0.95 for value in task.score(found, documents).values())


@pytest.mark.parametrize("name", ["learned", "encoder_decoder"])
def test_a_decoder_reads_the_last_token_and_padding_is_none(kit, plain, name):
    model = kit.model(name, plain, (ExtraHeadConfig("classify", 3, "last"),))
    model = dataclasses.replace(model, card=Card(config={"decoder_start_token_id": 2}))
    params = kit.random_params(model)
    long, short = (kit.batch(SINGLE, RECORDS[:1], plain, length) for length in (20, 7))
    assert short["mask"].all()
    kit.assert_equal_sums(SINGLE, model, params, long, short)
    last = dict(short, tokens=short["tokens"].copy())
    last["tokens"][0, 5] = 5  # behind an encoder, shifted, it is the last that the decoder reads
    (first, _), _ = kit.gradients(SINGLE, model, params, short)
    (second, _), _ = kit.gradients(SINGLE, model, params, last)
    assert float(first) != float(second)


@pytest.mark.parametrize(
    ("task", "records", "outputs"), [(PAIRS, RECORDS, 3), (MULTI, MANY, 3), (NUMBERS, VALUES, 1)]
)
def test_padding_and_rows_of_weight_zero_change_nothing(kit, wordpiece, task, records, outputs):
    model = encoder(kit, wordpiece, outputs)
    params = kit.random_params(model)
    alone = kit.batch(task, records[:3], wordpiece, 12)
    blank = kit.batch(task, records[:3], wordpiece, 16, size=5)
    others = kit.batch(task, records[:5], wordpiece, 16) | {"weights": np.float32([1, 1, 1, 0, 0])}
    kit.assert_equal_sums(task, model, params, alone, blank, others)


def test_token_types_reach_the_models_that_tell_them_apart(kit, wordpiece):
    model = encoder(kit, wordpiece)
    params, batch = kit.random_params(model), kit.batch(PAIRS, RECORDS, wordpiece, 12)
    untold = batch | {"token_types": np.zeros_like(batch["token_types"])}
    losses = [float(kit.gradients(PAIRS, model, params, each)[0][0]) for each in (batch, untold)]
    assert losses[0] != losses[1]
    blind = kit.model("encoder", wordpiece, (ExtraHeadConfig("classify", 3, "first"),))
    params = kit.random_params(blind)
    losses = [float(kit.gradients(PAIRS, blind, params, each)[0][0]) for each in (batch, untold)]
    assert losses[0] == losses[1]


def test_what_is_frozen_has_no_gradient(kit, wordpiece):
    model = encoder(kit, wordpiece)
    params, batch = kit.random_params(model), kit.batch(SINGLE, RECORDS, wordpiece, 12)
    (loss, _), gradients = kit.gradients(SINGLE, model, params, batch)
    head, rest = tree.split(params, ["heads/**"])
    (same, _), of_head = kit.gradients(SINGLE, model, head, batch, {"params": rest})
    assert float(same) == pytest.approx(float(loss), rel=1e-5)
    assert tree.flatten(of_head).keys() == {path for path in tree.flatten(params) if path.startswith("heads/")}
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, of_head, {"heads": gradients["heads"]})


def test_smoothing_acts_in_training_alone(kit, wordpiece):
    model = encoder(kit, wordpiece)
    params, batch = kit.random_params(model), kit.batch(SINGLE, RECORDS, wordpiece, 12)
    smooth = dataclasses.replace(SINGLE, label_smoothing=0.2)
    run = lambda task, train: float(jax.jit(task.loss(model, train=train))(params, None, batch, jax.random.key(0))[0])
    assert run(smooth, False) == run(SINGLE, True) != run(smooth, True)


def test_problems_say_which_head_is_missing(kit, wordpiece):
    good, length = encoder(kit, wordpiece).config, 12
    assert SINGLE.problems(good, length) == PAIRS.problems(good, length) == MULTI.problems(good, length) == []
    assert any("has 3 outputs" in line for line in NUMBERS.problems(good, length))
    assert any(
        "no head called 'classify'" in line for line in SINGLE.problems(kit.model("encoder", wordpiece).config, 12)
    )
    assert any("64" in line for line in SINGLE.problems(good, 65))
    of_tokens = dataclasses.replace(good, extra=(ExtraHeadConfig("classify", 3),))
    assert any("of tokens" in line for line in SINGLE.problems(of_tokens, length))
    assert any("task.labels is empty" in line for line in Classify().problems(good, length))
    twice = Classify(labels=("a", "b", "a"))
    assert "task.labels names a more than once" in twice.problems(good, length)
    assert len(Classify(labels=("a",), kind="regression", label_smoothing=0.1).problems(good, length)) == 3


def test_the_card_names_the_classes(kit, wordpiece):
    card = SINGLE.card(Card("x", {"id2label": {"0": "LABEL_0"}, "hidden_size": 3}))
    assert card.model_type == "x"
    assert card.config == {
        "hidden_size": 3,
        "id2label": {"0": "animal", "1": "person", "2": "place"},
        "label2id": {"animal": 0, "person": 1, "place": 2},
        "problem_type": "single_label_classification",
    }
    assert MULTI.card(Card()).config["problem_type"] == "multi_label_classification"
    assert NUMBERS.card(Card()).config["id2label"] == {"0": "LABEL_0"}
    assert (SINGLE.head, NUMBERS.head) == ("classify:3", "classify:1")


def test_scores_of_predictions_worked_out_by_hand(kit):
    documents = kit.documents(SINGLE, RECORDS[:4])  # 0, 1, 2, 0
    found = SINGLE.score([0, 1, 1, 0], documents)
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    several = MULTI.score([[], [0], [1], [0, 2]], kit.documents(MULTI, MANY[:4]))  # [], 0, 1, 0 and 1
    assert several["accuracy"] == 0.75
    assert several["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert NUMBERS.score([3.0, 1.0, 2.0], kit.documents(NUMBERS, VALUES[:3]))["spearman"] == pytest.approx(-0.5)
