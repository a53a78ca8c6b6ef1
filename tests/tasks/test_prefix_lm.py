import dataclasses

import jax
import numpy as np
import pytest

from jaxformer.config import Card, HeadConfig
from jaxformer.tasks.prefix_lm import PrefixLM, prefix_row
from jaxformer.testing import SENTENCES
from jaxformer.text.index import Batches, EvaluationBatches, stack

ALONE, BOTH = PrefixLM(), PrefixLM(encoder=True)
TASKS = pytest.mark.parametrize("task", [ALONE, BOTH], ids=["decoder", "encoder"])
TEXTS = [text * 2 for text in SENTENCES]
LAST = 0.01
"""A share so small that each end is one token."""


def model(kit, tokenizer, task=ALONE, name="learned"):
    made = kit.model("encoder_decoder" if task.encoder else name, tokenizer, head=HeadConfig())
    return made.clone(card=Card(config={"decoder_start_token_id": tokenizer.bos}))


def test_a_decoders_row_by_hand(kit, plain):
    rows = kit.rows(PrefixLM(share=LAST), [np.arange(10, 14), np.arange(20, 22), np.arange(30, 40)], plain, 8)
    assert {name: value.tolist() for name, value in rows.row(0).items()} == {
        "tokens": [10, 11, 12, 13, 20, 21, 30, 31, 32],
        "segments": [1, 1, 1, 1, 2, 2, 3, 3, 3],
        "positions": [0, 1, 2, 3, 0, 1, 0, 1, 2],
        "prefix": [True, True, True, False, True, False, True, True, False],
        "weights": [0, 0, 1, 0, 1, 0, 0, 1],
    }
    assert rows.row(0)["weights"].dtype == np.float32
    last = rows.row(1)
    assert last["tokens"].tolist() == [32, 33, 34, 35, 36, 37, 38, 39, 0]
    assert last["prefix"].tolist() == [True] * 7 + [False] * 2
    assert last["weights"].tolist() == [0] * 6 + [1, 0]


def test_both_stacks_rows_by_hand(kit, plain):
    eos, documents = plain.eos, [np.arange(10, 14), np.arange(20, 22)]
    row = kit.rows(PrefixLM(encoder=True, share=LAST), documents, plain, 9).row(0)
    swapped = row["tokens"][0] == 20  # the order of packing
    assert row["tokens"].tolist() == ([20, eos, 10, 11, 12, eos] if swapped else [10, 11, 12, eos, 20, eos]) + [0] * 3
    assert row["targets"].tolist() == ([21, eos, 13, eos] if swapped else [13, eos, 21, eos]) + [0] * 5
    assert row["decoder_segments"].tolist() == [1, 1, 2, 2] + [0] * 5
    assert row["decoder_positions"].tolist() == [0, 1, 0, 1] + [0] * 5
    assert row["weights"].tolist() == [1] * 4 + [0] * 5


def test_documents_stand_between_marks_where_a_decoder_reads_them(kit, plain):
    (document,) = kit.documents(ALONE, ["a dog"])
    (alone,), (both,) = (task.examples(document, plain) for task in (ALONE, BOTH))
    assert alone["tokens"].tolist() == [plain.bos, *both["tokens"], plain.eos]


def test_every_document_is_cut_anywhere_by_itself(kit, plain):
    rows, seen = kit.rows(ALONE, [np.arange(10, 16), np.arange(20, 23)], plain, 8, seed=0), set()
    for number in range(200):
        row = rows.row(number)
        sizes = tuple(int(row["prefix"][row["segments"] == segment].sum()) for segment in (1, 2))
        seen.add(sizes if row["tokens"][0] == 10 else sizes[::-1])
        assert (np.diff(row["prefix"].astype(int))[np.diff(row["segments"]) == 0] <= 0).all()
        assert row["weights"].sum() == 9 - sum(sizes)
    assert seen == {(a, b) for a in range(1, 6) for b in range(1, 3)}


def test_a_whole_epoch_of_both_halves_is_the_text(kit, plain):
    documents = [np.arange(10, 10 + size) for size in (1, 2, 17, 40)]
    rows, found = kit.rows(BOTH, documents, plain, 12, seed=5), []
    for number in range(rows.count):
        row = rows.row(number)
        for segment in range(1, row["segments"].max() + 1):
            first, second = (
                row["tokens"][row["segments"] == segment],
                row["targets"][row["decoder_segments"] == segment],
            )
            assert first[-1] == second[-1] == plain.eos
            found.append([*first[:-1].tolist(), *second[:-1].tolist()])
    assert sorted(token for part in found for token in part) == sorted(np.concatenate(documents).tolist())
    assert all(np.diff(part).tolist() == [1] * (len(part) - 1) for part in found)


def test_the_prefix_sees_itself_and_nobody_sees_what_comes_after(kit, plain):
    made = model(kit, plain)
    variables = {"params": kit.random_params(made)}
    row = prefix_row(np.arange(10, 14), np.arange(20, 24), 8)
    given = {name: row[name][None, :-1] for name in ("tokens", "segments", "positions", "prefix")}
    hidden = made.apply(variables, **given).hidden[0]
    for changed in range(8):
        tokens = given["tokens"].copy()
        tokens[0, changed] = 5
        other = made.apply(variables, **given | {"tokens": tokens}).hidden[0]
        moved = np.abs(np.asarray(hidden - other)).max(-1) > 1e-6
        first = 0 if changed < 4 else changed
        assert moved.tolist() == [at >= first for at in range(8)]


def test_the_loss_is_of_the_end_behind_a_prefix_that_is_seen_at_once(kit, plain):
    made, batch = model(kit, plain), stack([prefix_row(np.arange(10, 14), np.arange(20, 24), 8)])
    params = kit.random_params(made)
    given = {name: batch[name][:, :-1] for name in ("tokens", "segments", "positions", "prefix")}
    logp = np.asarray(jax.nn.log_softmax(made.apply({"params": params}, **given).logits[0]))
    (_, metrics), _ = kit.gradients(ALONE, made, params, batch)
    wanted = -sum(logp[at, token] for at, token in zip(range(3, 7), range(20, 24), strict=True))
    assert float(metrics["loss"][0]) == pytest.approx(wanted, rel=1e-4)
    (_, blind), _ = kit.gradients(ALONE, made, params, batch | {"prefix": np.zeros_like(batch["prefix"])})
    assert float(blind["loss"][0]) != pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_packed_documents_give_the_sums_of_separate_rows(kit, plain, name):
    made = model(kit, plain, name=name)
    documents = [np.arange(10, 16), np.arange(20, 23)]
    packed = kit.batch(ALONE, documents, plain, 8, size=2)
    sizes = [int(packed["prefix"][0][packed["segments"][0] == segment].sum()) for segment in (1, 2)]
    apart = stack([prefix_row(part[:size], part[size:], 8) for part, size in zip(documents, sizes, strict=True)])
    kit.assert_equal_sums(ALONE, made, kit.random_params(made), packed, apart)


@TASKS
def test_rows_are_functions_of_their_number_and_new_in_each_epoch(kit, plain, task):
    rows, again = (kit.rows(task, TEXTS, plain, 64, seed=3) for _ in range(2))
    threes, ones = Batches(rows, 3), Batches(again, 1)
    for number in (4, 0, 2):
        batch = threes.batch(number)
        for i in range(3):
            alone = ones.batch(3 * number + i)
            assert all((batch[name][i] == alone[name][0]).all() for name in batch)
    one = kit.rows(task, TEXTS[:1], plain, 100, seed=3)
    assert len({one.row(i)["weights"].tobytes() for i in range(8)}) > 5
    fixed = (EvaluationBatches(kit.rows(task, TEXTS, plain, 64), 2) for _ in range(2))
    for first, second in zip(*fixed, strict=True):
        assert all((first[name] == second[name]).all() for name in first)


@TASKS
def test_a_few_rows_are_learnt_and_those_of_weight_zero_change_nothing(kit, plain, task):
    made, batch = model(kit, plain, task), kit.batch(task, TEXTS, plain, 64)
    _, loss = kit.overfit(task, made, batch, steps=150)
    assert loss < 0.05
    noise = {name: np.concatenate([value, value[:1]]) for name, value in batch.items()}
    noise["weights"][-1] = 0
    kit.assert_equal_sums(task, made, kit.random_params(made), batch, noise)


def test_problems_say_what_a_model_or_tokenizer_lacks(kit, plain):
    both, alone = (model(kit, plain, task).config for task in (BOTH, ALONE))
    assert BOTH.problems(both, 64) == ALONE.problems(alone, 64) == []
    assert len(BOTH.problems(alone, 64)) == len(ALONE.problems(both, 64)) == 1
    assert any("task.share is 0.6" in line for line in dataclasses.replace(ALONE, share=0.6).problems(alone, 64))
    assert any("learned positions for 64" in line for line in ALONE.problems(alone, 65))
    with pytest.raises(ValueError, match="has no eos"):
        BOTH.rows(kit.store(BOTH, TEXTS, plain), None, 24, None)
