import numpy as np
import pytest

from jaxformer.config import Card, HeadConfig
from jaxformer.tasks.span import SpanCorruption, pairs_row, windows
from jaxformer.testing import SENTENCES
from jaxformer.text.index import Batches, EvaluationBatches
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

TASK = SpanCorruption(sentinels=9)
TEXTS = [text * 3 for text in SENTENCES]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer that was trained for the task."""
    return train_tokenizer(TokenizerConfig("sentencepiece", 330, specials=TASK.specials), TEXTS)


def model(kit, tokenizer):
    made = kit.model("relative", tokenizer, head=HeadConfig())
    return made.clone(card=Card(config={"decoder_start_token_id": tokenizer.pad}))


def rebuilt(row, tokenizer, eos):
    """The text that a row's inputs and targets say."""
    sentinels = [tokenizer.id(name) for name in TASK.specials]
    source, target = row["tokens"][row["segments"] > 0], row["targets"][row["weights"] > 0]
    assert source[-1] == target[-1] == eos
    answers, out = {}, []
    for token in target[:-1].tolist():
        if token in sentinels:
            current = answers[token] = []
        else:
            current.append(token)
    for token in source[:-1].tolist():
        out += answers.pop(token) if token in sentinels else [token]
    assert not answers
    return out


def test_a_row_by_hand(kit, tokenizer):
    task = SpanCorruption(density=0.2, span=2.0, sentinels=9)
    first, eos = tokenizer.id("<extra_id_0>"), tokenizer.eos
    documents = [np.arange(20, 26), np.arange(26, 30)]  # ten tokens: the last two are one span
    rows = kit.rows(task, documents, tokenizer, 10)
    assert rows.count == 1
    assert {name: value.tolist() for name, value in rows.row(0).items()} == {
        "tokens": [*range(20, 28), first, eos],
        "segments": [1] * 10,
        "positions": [*range(10)],
        "targets": [first, 28, 29, eos],
        "decoder_segments": [1] * 4,
        "decoder_positions": [0, 1, 2, 3],
        "weights": [1.0] * 4,
    }
    assert rows.row(0)["weights"].dtype == np.float32
    assert all(value.dtype == np.int32 for name, value in rows.row(0).items() if name != "weights")


def test_nothing_is_padded_but_in_the_last_row_of_an_epoch(kit, tokenizer):
    documents = [np.arange(20, 260), np.arange(20, 50)]
    rows = kit.rows(TASK, documents, tokenizer, 32)
    found = [rows.row(number) for number in range(rows.count)]
    assert all(row["segments"].all() and row["weights"].all() for row in found[:-1])
    assert not found[-1]["segments"].all()
    text = [token for row in found for token in rebuilt(row, tokenizer, tokenizer.eos)]
    assert text == [*documents[0], *documents[1]]


@pytest.mark.parametrize("length", [3, 4, 5, 17, 64])
def test_every_row_fits_however_short_the_last_one(kit, tokenizer, length):
    for size in range(1, 12):
        rows = kit.rows(TASK, [np.arange(20, 20 + size)], tokenizer, length, seed=0)
        text = [
            token for number in range(rows.count) for token in rebuilt(rows.row(number), tokenizer, tokenizer.eos)
        ]
        assert sorted(text) == [*range(20, 20 + size)]


def test_documents_have_no_special_tokens(kit, tokenizer):
    (example,) = TASK.examples(kit.documents(TASK, ["a dog"])[0], tokenizer)
    assert example["tokens"].tolist() == tokenizer.encode("a dog")


def test_rows_are_functions_of_their_number_and_new_in_each_epoch(kit, tokenizer):
    rows, again = (kit.rows(TASK, TEXTS, tokenizer, 24, seed=3) for _ in range(2))
    threes, ones = Batches(rows, 3), Batches(again, 1)
    for number in (4, 0, 2):
        batch = threes.batch(number)
        for i in range(3):
            alone = ones.batch(3 * number + i)
            assert all((batch[name][i] == alone[name][0]).all() for name in batch)
    one = kit.rows(TASK, TEXTS[:1], tokenizer, 100, seed=3)
    assert one.count == 1
    assert len({tuple(one.row(i)["tokens"].tolist()) for i in range(8)}) == 8


def test_evaluation_sees_the_same_rows_each_time(kit, tokenizer):
    one, other = (EvaluationBatches(kit.rows(TASK, TEXTS, tokenizer, 24), 2) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        assert all((first[name] == second[name]).all() for name in first)


def test_padding_and_rows_of_weight_zero_change_nothing(kit, tokenizer):
    made = model(kit, tokenizer)
    params, alone = kit.random_params(made), kit.batch(TASK, TEXTS, tokenizer, 24)
    count = len(alone["weights"])
    assert (alone["segments"] == 0).any()
    kit.assert_equal_sums(TASK, made, params, alone, kit.batch(TASK, TEXTS, tokenizer, 24, size=count + 1))
    noise = {name: np.concatenate([value, value[:1]]) for name, value in alone.items()}
    noise["weights"][count:] = 0
    noise["tokens"][-2][noise["segments"][-2] == 0] = 7
    kit.assert_equal_sums(TASK, made, params, alone, noise)


def test_a_few_rows_are_learnt(kit, tokenizer):
    made = model(kit, tokenizer)
    _, loss = kit.overfit(TASK, made, kit.batch(TASK, TEXTS[:2], tokenizer, 24), steps=200)
    assert loss < 0.05


def test_problems_say_what_a_model_or_tokenizer_lacks(kit, tokenizer, plain):
    good = model(kit, tokenizer).config
    assert TASK.problems(good, 32) == SpanCorruption().problems(good, 512) == []
    assert any("2000 tokens have 111 spans" in line for line in SpanCorruption().problems(good, 2000))
    assert len(TASK.problems(kit.model("learned", tokenizer, head=HeadConfig()).config, 32)) == 1
    assert len(TASK.problems(kit.model("encoder", tokenizer).config, 32)) == 2
    assert any("expected 0 < density < 1" in line for line in SpanCorruption(density=1.0).problems(good, 32))
    assert any("found 2" in line for line in SpanCorruption().problems(good, 2))
    with pytest.raises(
        ValueError, match="has no <extra_id_0>, <extra_id_1>, <extra_id_2> and 6 more: train one with"
    ):
        kit.rows(TASK, TEXTS, plain, 24)
    with pytest.raises(ValueError, match="has no <extra_id_9>: train"):
        kit.rows(SpanCorruption(sentinels=10), TEXTS, tokenizer, 24)
    assert TASK.specials == tuple(f"<extra_id_{i}>" for i in range(9))


def test_windows_lose_nothing_and_know_their_lengths(kit, tokenizer):
    documents = [np.arange(10, 10 + size) for size in (7, 3, 1, 6)]
    texts, lengths = windows(kit.store(TASK, documents, tokenizer), 3)
    found = [texts[i]["tokens"] for i in range(len(texts))]
    assert [part.tolist() for part in found][:4] == [[10, 11, 12], [13, 14, 15], [16], [10, 11, 12]]
    assert lengths.tolist() == [len(part) for part in found] == [3, 3, 1, 3, 1, 3, 3]
    assert np.concatenate(found).tolist() == np.concatenate(documents).tolist()


def test_pairs_stand_side_by_side_on_both_sides():
    row = pairs_row([np.array([5, 6]), np.array([7])], [np.array([8]), np.array([9, 9])], 4, 5)
    assert row["tokens"].tolist() == [5, 6, 7, 0]
    assert row["segments"].tolist() == [1, 1, 2, 0]
    assert row["targets"].tolist() == [8, 9, 9, 0, 0]
    assert row["decoder_segments"].tolist() == [1, 2, 2, 0, 0]
    assert row["decoder_positions"].tolist() == [0, 0, 1, 0, 0]
    assert row["weights"].tolist() == [1, 1, 1, 0, 0]
