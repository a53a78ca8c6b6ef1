import dataclasses

import jax
import numpy as np
import pytest

from jaxformer.config import Card, HeadConfig
from jaxformer.tasks.choice import Choice
from jaxformer.text.rows import padded

TASK = Choice(options=3)
BOTH = dataclasses.replace(TASK, encoder=True)
RECORDS = [
    {"question": "who sees it ?", "choices": ["anna", "a dog", "the red fox"], "answer": 0},
    {"question": "where is it ?", "choices": ["rome", "in rome"], "answer": "in rome"},
    {"question": "who is lazy ?", "choices": ["the dog", "the fox", "anna"], "answer": "0"},
    {"question": "is it red ?", "choices": ["blue", "it is red"], "answer": 1},
    {"question": "who jumps ?", "choices": ["a dog", "a dog over it", "the fox"], "answer": 2},
    {"question": "who ?", "choices": ["anna", "it"], "answer": 0},
    {"question": "where ?", "choices": ["over", "in"], "answer": 1},
    {"question": "the fox is", "choices": ["red", "blue", "brown"], "answer": 2},
]
CARD = Card(config={"decoder_start_token_id": 2})


def decoder(kit, tokenizer):
    return kit.model("learned", tokenizer, head=HeadConfig())


def encoder_decoder(kit, tokenizer):
    return dataclasses.replace(kit.model("encoder_decoder", tokenizer, head=HeadConfig()), card=CARD)


def test_a_row_holds_the_question_with_each_choice(kit, plain):
    row = kit.rows(TASK, RECORDS[1:2], plain, 20).row(0)
    question = plain.encode("where is it ?")
    for i, choice in enumerate(RECORDS[1]["choices"]):
        whole = plain.encode(f"where is it ? {choice}")
        assert whole[: len(question)] == question
        assert row["tokens"][i][row["mask"][i]].tolist() == whole[:-1]
        assert row["targets"][i, : len(whole) - 1].tolist() == whole[1:]
        assert np.flatnonzero(row["scored"][i]).tolist() == [*range(len(question) - 1, len(whole) - 1)]
    assert not any(row[name][2].any() for name in ("tokens", "mask", "targets", "scored"))
    assert {name: (value.shape, value.dtype) for name, value in row.items()} == {
        "tokens": ((3, 20), np.int32),
        "mask": ((3, 20), bool),
        "targets": ((3, 20), np.int32),
        "scored": ((3, 20), np.float32),
        "labels": ((), np.int32),
        "weights": ((), np.float32),
    }
    assert row["labels"] == 1


def test_behind_an_encoder_a_choice_stands_alone(kit, plain):
    row = kit.rows(BOTH, RECORDS[1:2], plain, 20).row(0)
    for i, choice in enumerate(RECORDS[1]["choices"]):
        written = [*plain.encode(choice), plain.eos]
        assert row["tokens"][i][row["mask"][i]].tolist() == plain.encode("where is it ?")
        assert row["targets"][i][row["scored"][i] > 0].tolist() == written
    assert not row["mask"][2].any()


@pytest.mark.parametrize("length", [3, 8])
def test_what_is_too_long_loses_its_beginning(kit, plain, length):
    row = kit.rows(TASK, RECORDS[:1], plain, length).row(0)
    for i, choice in enumerate(RECORDS[0]["choices"]):
        whole, size = plain.encode(f"who sees it ? {choice}"), len(plain.encode(f" {choice}"))
        assert row["targets"][i].tolist() == whole[-length:]
        assert row["tokens"][i].tolist() == whole[-length - 1 : -1]
        assert row["scored"][i].sum() == min(size, length)


@pytest.mark.parametrize(("task", "make"), [(TASK, decoder), (BOTH, encoder_decoder)], ids=["decoder", "both"])
def test_the_loss_is_of_the_softmax_over_summed_log_probabilities(kit, plain, task, make):
    model = make(kit, plain)
    params, row = kit.random_params(model), kit.rows(task, RECORDS[:1], plain, 24).row(0)
    sums = []
    for i, choice in enumerate(RECORDS[0]["choices"]):
        if task.encoder:
            targets = [*plain.encode(choice), plain.eos]
            given = {"decoder_tokens": padded([2, *targets[:-1]], 24), "tokens": row["tokens"][i][row["mask"][i]]}
        else:
            whole = plain.encode(f"who sees it ? {choice}")
            targets, given = whole[1:], {"tokens": padded(whole[:-1], 24)}
        out = kit.apply(model, params, **{name: values[None] for name, values in given.items()})
        logp = np.asarray(jax.nn.log_softmax(out.logits))[0]
        scored = range(len(targets))[-(len(targets) if task.encoder else len(plain.encode(f" {choice}"))) :]
        sums.append(sum(float(logp[at, targets[at]]) for at in scored))
    wanted = -float(jax.nn.log_softmax(np.array(sums))[0])
    (loss, metrics), _ = kit.gradients(task, model, params, kit.batch(task, RECORDS[:1], plain, 28, size=5))
    assert float(loss) == pytest.approx(wanted, rel=1e-4)
    assert float(metrics["accuracy"][0]) == (np.argmax(sums) == 0)


@pytest.mark.parametrize(("task", "make"), [(TASK, decoder), (BOTH, encoder_decoder)], ids=["decoder", "both"])
def test_eight_questions_are_learnt(kit, plain, task, make):
    model = make(kit, plain)
    _, loss = kit.overfit(task, model, kit.batch(task, RECORDS, plain, 24), steps=80)
    assert loss < 0.02


def test_choices_are_predicted_by_log_probability_a_token(kit, plain):
    model = decoder(kit, plain)
    params, documents = kit.random_params(model), kit.documents(TASK, RECORDS)
    found = TASK.predict(model, {"params": params}, plain, documents, 3, 24)
    row = kit.batch(TASK, RECORDS, plain, 24)
    for i, (each, best) in enumerate(zip(RECORDS, found, strict=True)):
        logits = kit.apply(model, params, tokens=row["tokens"][i], mask=row["mask"][i]).logits
        logp = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), row["targets"][i][:, :, None], 2)[:, :, 0]
        means = [(p * w).sum() / w.sum() for p, w in zip(logp, row["scored"][i], strict=True) if w.sum()]
        assert len(means) == len(each["choices"])
        assert best == int(np.argmax(means))
    assert TASK.score([0, 1, 0, 1, 2, 1, 0, 0], documents) == {"accuracy_normalized": 5 / 8}


@pytest.mark.parametrize(("task", "make"), [(TASK, decoder), (BOTH, encoder_decoder)], ids=["decoder", "both"])
def test_padding_and_rows_of_weight_zero_change_nothing(kit, plain, task, make):
    model = make(kit, plain)
    params = kit.random_params(model)
    alone = kit.batch(task, RECORDS[:3], plain, 24)
    blank = kit.batch(task, RECORDS[:3], plain, 28, size=5)
    others = kit.batch(task, RECORDS[:5], plain, 28) | {"weights": np.float32([1, 1, 1, 0, 0])}
    ends = np.flip(np.cumsum(np.flip(blank["scored"], -1), -1), -1) == 0
    silent = blank | {"targets": np.where(ends, 9, blank["targets"])}
    kit.assert_equal_sums(task, model, params, alone, blank, others, silent)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"choices": ["a"]}, "choices: expected a list of 2 to 3 texts"),
        ({"choices": ["a", "b", "c", "d"]}, "choices: expected a list of 2 to 3 texts"),
        ({"choices": ["a", ""]}, "choices: expected a list of 2 to 3 texts"),
        ({"choices": "a b"}, "choices: expected a list of 2 to 3 texts"),
        ({"answer": 3}, "answer: expected one of"),
        ({"question": 4}, "question: expected a text"),
    ],
)
def test_a_question_that_is_none_names_its_record(kit, plain, changed, message):
    (document,) = kit.documents(TASK, [RECORDS[0] | changed])
    with pytest.raises(ValueError, match=f"document 0: {message}"):
        list(TASK.examples(document, plain))


def test_problems_say_which_stacks_it_takes(kit, plain):
    one, two = decoder(kit, plain).config, encoder_decoder(kit, plain).config
    assert TASK.problems(one, 24) == BOTH.problems(two, 24) == []
    assert len(TASK.problems(two, 24)) == len(BOTH.problems(one, 24)) == 1
    assert len(Choice(options=1).problems(dataclasses.replace(one, head=None), 65)) == 3
