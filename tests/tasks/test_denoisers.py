import dataclasses

import numpy as np
import pytest

from jaxformer.config import Card, HeadConfig
from jaxformer.tasks.denoisers import MixtureOfDenoisers
from jaxformer.testing import SENTENCES
from jaxformer.text.index import Batches, EvaluationBatches
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

BOTH = MixtureOfDenoisers(sentinels=20)
ALONE = dataclasses.replace(BOTH, encoder=False)
TEXTS = [text * 3 for text in SENTENCES]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer that was trained for the task."""
    return train_tokenizer(TokenizerConfig("sentencepiece", 350, specials=BOTH.specials), TEXTS)


def model(kit, tokenizer, task):
    made = kit.model("relative" if task.encoder else "rotary", tokenizer, head=HeadConfig())
    return made.clone(card=Card(config={"decoder_start_token_id": tokenizer.pad}))


def halves(row, task):
    """What is read, and what is written."""
    if task.encoder:
        assert (row["segments"] > 0).sum() == row["segments"].argmin() or row["segments"].all()
        return row["tokens"][row["segments"] > 0].tolist(), row["targets"][row["weights"] > 0].tolist()
    targets = row["tokens"][1:][row["weights"] > 0].tolist()
    assert (row["segments"] > 0).sum() == row["prefix"].sum() + len(targets)
    return row["tokens"][row["prefix"]].tolist(), targets


@pytest.mark.parametrize("task", [BOTH, ALONE], ids=["encoder", "decoder"])
@pytest.mark.parametrize("length", [7, 8, 30, 64])
def test_every_denoiser_fits_and_gives_back_the_text(kit, tokenizer, task, length):
    modes, sentinels = ([tokenizer.id(name) for name in names] for names in (task.modes, task.specials[3:]))
    size = task.text_length(length)
    documents, seen = [np.arange(40, 40 + size), np.arange(40 + size, 43 + size)], set()
    rows = kit.rows(task, documents, tokenizer, length, seed=0)
    for number in range(200):
        row = rows.row(number)
        assert {name: value.shape for name, value in row.items()} == {
            name: value.shape for name, value in rows.row(0).items()
        }
        source, target = halves(row, task)
        seen.add(source[0])
        assert source[0] in modes
        assert source[-1] == target[-1] == tokenizer.eos
        kept = [token for token in source[1:-1] + target[:-1] if token not in sentinels]
        assert len(kept) in (size, 3)
        assert len({*kept}) == len(kept)
        marks = [token for token in target if token in sentinels]
        assert marks == [token for token in source if token in sentinels] == sentinels[: len(marks)]
    assert seen == {*modes}


@pytest.mark.parametrize("length", [7, 64, 300, 512])
def test_texts_are_as_long_as_any_denoiser_allows(length):
    assert BOTH.text_length(length) == length - 2
    size = ALONE.text_length(length)
    spans = [max(1, round(round(n / 2) / 3)) for n in (size, size + 1)]  # half of the tokens in spans of three
    assert size + 2 * spans[0] + 3 <= length + 1 < size + 1 + 2 * spans[1] + 3


def test_a_decoders_row_is_what_is_seen_at_once_and_what_is_written_behind(kit, tokenizer):
    row = kit.rows(ALONE, [np.arange(40, 50)], tokenizer, 40).row(0)
    source, target = halves(row, ALONE)
    there = len(source) + len(target)
    assert row["tokens"].tolist() == source + target + [0] * (41 - there)
    assert row["segments"].tolist() == [1] * there + [0] * (41 - there)
    assert row["positions"].tolist() == [*range(there)] + [0] * (41 - there)
    assert row["prefix"].tolist() == [True] * len(source) + [False] * (41 - len(source))
    assert row["weights"].tolist() == [0.0] * (len(source) - 1) + [1.0] * len(target) + [0.0] * (41 - there)


@pytest.mark.parametrize("task", [BOTH, ALONE], ids=["encoder", "decoder"])
def test_rows_are_functions_of_their_number_and_new_in_each_epoch(kit, tokenizer, task):
    rows, again = (kit.rows(task, TEXTS, tokenizer, 24, seed=3) for _ in range(2))
    threes, ones = Batches(rows, 3), Batches(again, 1)
    for number in (4, 0, 2):
        batch = threes.batch(number)
        for i in range(3):
            alone = ones.batch(3 * number + i)
            assert all((batch[name][i] == alone[name][0]).all() for name in batch)
    one = kit.rows(task, TEXTS[:1], tokenizer, 100, seed=3)
    assert len({tuple(one.row(i)["tokens"].tolist()) for i in range(8)}) > 5
    fixed = (EvaluationBatches(kit.rows(task, TEXTS, tokenizer, 24), 2) for _ in range(2))
    for first, second in zip(*fixed, strict=True):
        assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("task", [BOTH, ALONE], ids=["encoder", "decoder"])
def test_a_few_rows_are_learnt_and_empty_ones_change_nothing(kit, tokenizer, task):
    made, batch = model(kit, tokenizer, task), kit.batch(task, TEXTS[:2], tokenizer, 32)
    _, loss = kit.overfit(task, made, batch, steps=200)
    assert loss < 0.05
    noise = {name: np.concatenate([value, value[:1]]) for name, value in batch.items()}
    noise["weights"][-1] = 0
    kit.assert_equal_sums(task, made, kit.random_params(made), batch, noise)


def test_problems_say_what_a_model_or_tokenizer_lacks(kit, tokenizer, plain):
    both, alone = (model(kit, tokenizer, task).config for task in (BOTH, ALONE))
    assert BOTH.problems(both, 64) == ALONE.problems(alone, 64) == []
    assert len(BOTH.problems(alone, 64)) == len(ALONE.problems(both, 64)) == 1
    assert MixtureOfDenoisers().problems(both, 512) == []
    assert any("1024 tokens have 170 spans" in line for line in MixtureOfDenoisers().problems(both, 1024))
    assert any("length is 3" in line for line in BOTH.problems(both, 3))
    assert any("length is 4" in line for line in ALONE.problems(alone, 4))
    with pytest.raises(
        ValueError, match="has no <extra_id_0>, <extra_id_1>, <extra_id_2> and 17 more: train one with"
    ):
        kit.rows(BOTH, TEXTS, plain, 24)
    with pytest.raises(ValueError, match=r"has no \[Q\]: train"):
        kit.rows(dataclasses.replace(BOTH, modes=("[R]", "[Q]", "[X]")), TEXTS, tokenizer, 24)
    assert BOTH.specials[:4] == ("[R]", "[S]", "[X]", "<extra_id_0>")
