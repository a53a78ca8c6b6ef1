import dataclasses

import numpy as np
import pytest

from jaxformer.config import Card, ExtraHeadConfig
from jaxformer.tasks import labels as shared
from jaxformer.tasks.answer import Answer, _best, _windows
from jaxformer.text.template import Template

TASK = Answer(stride=6, longest=4)
NONE = dataclasses.replace(TASK, unanswerable=True)
HEAD = (ExtraHeadConfig("answer", 2),)


def record(question, context, answer):
    return {"question": question, "context": context, "answer": answer, "start": context.index(answer)}


RECORDS = [
    record("who sees it ?", "anna sees a red fox in rome", "anna"),
    record("where is it ?", "anna sees a red fox in rome", "rome"),
    record("who sees it ?", "the lazy dog sees it", "the lazy dog"),
    record("where is it ?", "it is in blue rome and the fox is over it", "blue rome"),
    record("who jumps ?", "a quick brown fox jumps", "a quick brown fox"),
    record("who is it ?", "in rome it is anna , and a dog", "anna"),
    record("where is the dog ?", "the dog is over a red fox", "over a red fox"),
    record("who is red ?", "the quick brown fox is red or blue", "fox"),
]
NOTHING = {"question": "who is lazy ?", "context": "a red fox", "answer": "", "start": -1}
LONG = record("who ?", "the fox , the dog , the fox , the dog , the fox , anna , the dog , the fox", "anna")


def test_a_row_is_the_question_and_its_context(kit, wordpiece):
    cls, sep = (wordpiece.specials[role] for role in ("cls", "sep"))
    question, context = (wordpiece.encode(RECORDS[1][name]) for name in ("question", "context"))
    row = kit.rows(TASK, RECORDS[1:2], wordpiece, 20).row(0)
    assert row["tokens"][row["mask"]].tolist() == [cls, *question, sep, *context, sep]
    first, last = row["labels"]
    assert wordpiece.decode(row["tokens"][first : last + 1]) == "rome"
    kinds = {name: (value.shape, value.dtype) for name, value in row.items()}
    assert kinds["labels"] == ((2,), np.int32)
    assert kinds["weights"] == ((), np.float32)


@pytest.mark.parametrize("tokenizer", ["wordpiece", "plain"])
def test_labels_are_the_tokens_that_the_answer_touches(kit, request, tokenizer):
    tokenizer = request.getfixturevalue(tokenizer)
    for each in [*RECORDS, record("who ?", "red,blue;anna's fox", "anna")]:
        row = kit.rows(TASK, [each], tokenizer, 64).row(0)
        first, last = row["labels"]
        inside = lambda a, b: tokenizer.decode(row["tokens"][a:b].tolist()).replace(" ", "")
        wanted = each["answer"].replace(" ", "")
        assert wanted in inside(first, last + 1)
        assert wanted not in inside(first + 1, last + 1)
        assert wanted not in inside(first, last)


def test_of_several_answers_training_takes_the_first(kit, wordpiece):
    each = RECORDS[0] | {"answer": ["red fox", "fox"], "start": [12, 16]}
    row = kit.rows(TASK, [each], wordpiece, 20).row(0)
    assert wordpiece.decode(row["tokens"][row["labels"][0] : row["labels"][1] + 1]) == "red fox"
    assert TASK.score(["fox"], kit.documents(TASK, [each])) == {"exact_match": 100.0, "f1": 100.0}


def test_where_there_is_no_answer_it_is_the_first_token(kit, wordpiece):
    row = kit.rows(NONE, [NOTHING], wordpiece, 20).row(0)
    assert row["labels"].tolist() == [0, 0]
    assert row["weights"] == 1
    empty = NOTHING | {"answer": [], "start": []}
    assert kit.rows(NONE, [empty], wordpiece, 20).row(0)["labels"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="document 0: answer: there is none: give task"):
        kit.rows(TASK, [NOTHING], wordpiece, 20)


@pytest.mark.parametrize(("start", "found"), [(1, "nna "), (-4, ""), (400, "")])
def test_an_answer_that_is_not_there_names_its_record(kit, wordpiece, start, found):
    (document,) = kit.documents(TASK, [RECORDS[0] | {"start": start}])
    with pytest.raises(ValueError, match=f"document 0: answer: expected 'anna' at {start}, found {found!r}"):
        list(TASK.examples(document, wordpiece))


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 13, 40])
@pytest.mark.parametrize("stride", [1, 3, 7, 100])
def test_windows_leave_no_token_out_and_none_is_needless(size, stride):
    template = Template(pair=(((1,), 0), ("A", 0), ((2,), 0), ("B", 1), ((2,), 1)))
    windows = _windows(template, 13, stride, 3, size)  # room for seven
    assert set().union(*(range(size)[window] for window in windows)) == set(range(size))
    assert all(window.stop - window.start <= 7 for window in windows)
    assert [window.start for window in windows] == [min(stride, 7) * i for i in range(len(windows))]
    assert all(window.stop < size for window in windows[:-1])
    assert windows[-1].stop == size


def test_a_long_context_stands_in_windows_of_which_some_hold_the_answer(kit, wordpiece):
    rows = kit.rows(TASK, [LONG], wordpiece, 14)
    question, context = (wordpiece.encode(LONG[name]) for name in ("question", "context"))
    begin, room, place = 2 + len(question), 14 - 3 - len(question), context.index(wordpiece.encode("anna")[0])
    assert rows.count > 2
    held = 0
    for i in range(rows.count):
        row, start = rows.row(i), 6 * i
        assert row["tokens"][begin : row["mask"].sum() - 1].tolist() == context[start : start + room]
        inside = start <= place < start + room
        assert row["labels"].tolist() == ([begin + place - start] * 2 if inside else [0, 0])
        held += inside
    assert 0 < held < rows.count


def test_a_long_question_takes_half_of_the_row_at_most(kit, wordpiece):
    each = RECORDS[0] | {"question": "who is it ? " * 10}
    row = kit.rows(TASK, [each], wordpiece, 17).row(0)
    assert (row["token_types"][row["mask"]] == 0).sum() == 7 + 2
    first, last = row["labels"]
    assert wordpiece.decode(row["tokens"][first : last + 1]) == "anna"


def test_the_best_answer_is_found_as_by_trying_all():
    ends = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    for longest in (1, 3, 20):
        tried = {(i, j): ends[0, i] + ends[1, j] for i in range(9) for j in range(9) if 0 <= j - i < longest}
        score, span = _best(ends, longest)
        assert span == max(tried, key=tried.get)
        assert score == pytest.approx(max(tried.values()))
    assert _best(ends[:, :0], 3)[0] == -np.inf


@pytest.fixture(scope="module")
def learnt(kit, wordpiece):
    """A model, and what it has learnt: contexts that the tokenizer reads otherwise than they are written."""
    written = [each | {"context": each["context"].replace(" rome", "  Rome")} for each in [*RECORDS[:6], LONG]]
    truth = [each["answer"].replace("rome", "Rome").replace(" Rome", "  Rome") for each in written]
    records = [*(record(e["question"], e["context"], t) for e, t in zip(written, truth, strict=True)), NOTHING]
    model = kit.model("shared", wordpiece, HEAD)
    data = kit.batch(NONE, records, wordpiece, 18)
    assert len(data["tokens"]) > 8
    params, loss = kit.overfit(NONE, model, data, steps=120)
    assert loss < 0.05
    return model, {"params": params}, records


def test_answers_are_learnt_over_windows_and_predicted_as_the_context_writes_them(kit, wordpiece, learnt):
    model, held, records = learnt
    documents = kit.documents(NONE, records)
    found = NONE.predict(model, held, wordpiece, documents, 3, 18)
    assert found == [each["answer"] for each in records]
    assert "blue  Rome" in found
    assert NONE.score(found, documents) == {"exact_match": 100.0, "f1": 100.0}


def test_an_answer_is_predicted_in_any_case_where_there_always_is_one(kit, wordpiece, learnt):
    model, held, _ = learnt
    documents = kit.documents(NONE, [NOTHING, NOTHING | {"context": "", "question": ""}])
    assert NONE.predict(model, held, wordpiece, documents, 3, 18)[0] == ""
    first, second = TASK.predict(model, held, wordpiece, documents, 3, 18)
    assert first in NOTHING["context"]
    assert (first != "", second) == (True, "")


@pytest.mark.parametrize("name", ["shared", "encoder_decoder"])
def test_padding_and_rows_of_weight_zero_change_nothing(kit, wordpiece, name):
    model = dataclasses.replace(kit.model(name, wordpiece, HEAD), card=Card(config={"decoder_start_token_id": 2}))
    params = kit.random_params(model)
    alone = kit.batch(TASK, RECORDS[:3], wordpiece, 20)
    assert len(alone["tokens"]) == 3
    blank = kit.batch(TASK, RECORDS[:3], wordpiece, 24, size=5)
    others = kit.batch(TASK, RECORDS[:5], wordpiece, 24) | {"weights": np.float32([1, 1, 1, 0, 0])}
    kit.assert_equal_sums(TASK, model, params, alone, blank, others)


def test_problems(kit, wordpiece):
    good = kit.model("shared", wordpiece, HEAD).config
    assert TASK.problems(good, 12) == []
    assert len(Answer(stride=0, longest=0).problems(good, 65)) == 3
    assert any("'answer'" in line for line in TASK.problems(kit.model("encoder", wordpiece).config, 12))
    assert (TASK.head, TASK.columns) == ("answer", ("question", "context", "answer", "start"))


def test_examples_stand_for_themselves_in_windows_of_one(kit, wordpiece):
    store = kit.store(TASK, RECORDS, wordpiece)
    windows = shared.Windows(store, np.array([1, 2, 0, 3, 1, 1, 1, 1]), lambda example, number: (example, number))
    found = [windows[i] for i in range(len(windows))]
    assert [number for _, number in found] == [0, 0, 1, 0, 1, 2, 0, 0, 0, 0]
    assert [example["answer"].tolist() for example, _ in found] == [
        store[i]["answer"].tolist() for i in (0, 1, 1, 3, 3, 3, 4, 5, 6, 7)
    ]
