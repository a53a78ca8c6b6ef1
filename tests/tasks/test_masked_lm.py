import dataclasses

import jax
import numpy as np
import pytest

from jaxformer.config import ExtraHeadConfig, HeadConfig
from jaxformer.tasks.masked_lm import MaskedLM
from jaxformer.testing import tiny_models
from jaxformer.text.boundaries import boundaries
from jaxformer.text.index import Batches, EvaluationBatches
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

ALL = MaskedLM(rate=1.0, replace=1.0, random_share=0.0)
PAIRS = MaskedLM(next_sentence=True)
TEXTS = [
    "the quick brown fox . it jumps over a lazy dog . who sees it ?",
    "anna is in rome . she sees blue . and red . where is it ?",
    "a dog . the fox . a quick dog . the lazy fox .",
]
NEXT = (ExtraHeadConfig("next", 2, "pooled"),)


def encoder(kit, tokenizer, extra=()):
    return kit.model("shared", tokenizer, extra, tiny_models()["shared"].head)


def changed(row):
    """The row as it was before it was masked."""
    tokens, there = row["tokens"].copy(), row["weights"] > 0
    tokens[row["places"][there]] = row["targets"][there]
    return tokens


@pytest.fixture(scope="module")
def pieces():
    """Words of two pieces and more."""
    return train_tokenizer(TokenizerConfig("wordpiece", 60), TEXTS * 3)


def test_every_token_but_special_ones_by_hand(kit, wordpiece):
    roles = wordpiece.specials
    one, two = (wordpiece.encode(text) for text in ("the fox", "anna"))
    row = kit.rows(ALL, ["the fox", "anna"], wordpiece, 9).row(0)
    cls, sep, mask = roles["cls"], roles["sep"], roles["mask"]
    assert row["tokens"].tolist() == [cls, mask, mask, sep, cls, mask, sep, 0, 0]
    assert row["segments"].tolist() == [1, 1, 1, 1, 2, 2, 2, 0, 0]
    assert row["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 0]
    assert row["places"].tolist() == [1, 2, 5] + [0] * 6
    assert row["targets"].tolist() == [*one, *two] + [0] * 6
    assert row["weights"].tolist() == [1, 1, 1] + [0] * 6
    assert {name: value.dtype for name, value in row.items()} == {
        **dict.fromkeys(("tokens", "segments", "positions", "places", "targets"), np.int32),
        "weights": np.float32,
    }


def test_a_fifth_of_the_row_has_places_in_the_head(kit, plain_masked):
    rows = kit.rows(MaskedLM(rate=0.2), TEXTS, plain_masked, 30, seed=1)
    for number in range(rows.count):
        row = rows.row(number)
        assert row["places"].shape == row["targets"].shape == row["weights"].shape == (6,)
        special = np.isin(changed(row), [*plain_masked.specials.values()]) | (row["segments"] == 0)
        assert row["weights"].sum() == max(1, round(0.2 * (~special).sum()))
        assert not special[row["places"][row["weights"] > 0]].any()


@pytest.fixture(scope="module")
def plain_masked():
    """A tokenizer of sentencepiece that was trained for the task."""
    return train_tokenizer(TokenizerConfig("sentencepiece", 330, specials=ALL.specials), TEXTS * 3)


def test_a_tokenizer_trained_for_the_task_has_its_mask_whatever_its_kind(plain_masked, wordpiece):
    assert plain_masked.piece(plain_masked.specials["mask"]) == "[MASK]"
    again = train_tokenizer(TokenizerConfig("wordpiece", 60, specials=ALL.specials), TEXTS)
    assert again.specials == wordpiece.specials


def test_whole_words_are_predicted_or_none_of_their_pieces(kit, pieces):
    rows = kit.rows(MaskedLM(rate=0.3, whole_words=True), TEXTS, pieces, 40, seed=0)
    some = 0
    for number in range(4 * rows.count):
        row = rows.row(number)
        tokens, chosen = changed(row), np.zeros(40, bool)
        chosen[row["places"][row["weights"] > 0]] = True
        words = np.cumsum(boundaries(pieces).word_starts(tokens) | np.isin(tokens, [*pieces.specials.values()]))
        for word in np.unique(words[row["segments"] > 0]):
            assert chosen[words == word].all() or not chosen[words == word].any()
            some += chosen[words == word].all() and (words == word).sum() > 1
    assert some > 3


@pytest.mark.parametrize("task", [MaskedLM(), PAIRS], ids=["documents", "pairs"])
def test_rows_are_functions_of_their_number_and_new_in_each_epoch(kit, wordpiece, task):
    rows = kit.rows(task, TEXTS, wordpiece, 16, seed=3)
    again = kit.rows(task, TEXTS, wordpiece, 16, seed=3)
    threes, ones = Batches(rows, 3), Batches(again, 1)
    for number in (5, 0, 2):
        batch = threes.batch(number)
        for i in range(3):
            alone = ones.batch(3 * number + i)
            assert all((batch[name][i] == alone[name][0]).all() for name in batch)
    epochs = [np.stack([rows.row(e * rows.count + i)["tokens"] for i in range(rows.count)]) for e in (0, 1)]
    assert (epochs[0] != epochs[1]).any()


def test_one_document_is_masked_otherwise_in_each_epoch(kit, wordpiece):
    rows = kit.rows(MaskedLM(), TEXTS[:1], wordpiece, 32, seed=3)
    assert rows.count == 1
    assert (changed(rows.row(0)) == changed(rows.row(1))).all()
    assert len({tuple(rows.row(i)["places"].tolist()) for i in range(8)}) > 2


@pytest.mark.parametrize("task", [MaskedLM(), PAIRS], ids=["documents", "pairs"])
def test_evaluation_sees_the_same_rows_each_time(kit, wordpiece, task):
    one, other = (EvaluationBatches(kit.rows(task, TEXTS, wordpiece, 16), 2) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        assert all((first[name] == second[name]).all() for name in first)


def test_packed_documents_do_not_see_each_other(kit, wordpiece):
    model = encoder(kit, wordpiece)
    params, batch = kit.random_params(model), kit.batch(ALL, ["the fox", "anna sees a dog"], wordpiece, 12)
    for segment in (1, 2):
        kept = batch["segments"][0][batch["places"][0]] == segment
        weighed = batch | {"weights": batch["weights"] * kept}
        (loss, _), ours = kit.gradients(ALL, model, params, weighed)
        other = np.where(batch["segments"] == segment, batch["tokens"], 7)
        (same, _), theirs = kit.gradients(ALL, model, params, weighed | {"tokens": other})
        assert float(loss) == pytest.approx(float(same), rel=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_the_loss_is_of_masked_tokens_alone(kit, wordpiece):
    model = encoder(kit, wordpiece)
    params, batch = kit.random_params(model), kit.batch(MaskedLM(rate=0.5), TEXTS[:1], wordpiece, 24)
    (_, metrics), _ = kit.gradients(MaskedLM(), model, params, batch)
    names = ("tokens", "segments", "positions")
    logits = model.apply({"params": params}, **{name: batch[name] for name in names}).logits[0]
    logp, there = np.asarray(jax.nn.log_softmax(logits)), batch["weights"][0] > 0
    wanted = -logp[batch["places"][0][there], batch["targets"][0][there]].sum()
    assert float(metrics["loss"][0]) == pytest.approx(wanted, rel=1e-4)
    assert float(metrics["loss"][1]) == there.sum() > 2


@pytest.mark.parametrize("task", [MaskedLM(rate=0.4), PAIRS], ids=["documents", "pairs"])
def test_padding_and_rows_of_weight_zero_change_nothing(kit, wordpiece, task):
    model = encoder(kit, wordpiece, NEXT)
    params, alone = kit.random_params(model), kit.batch(task, TEXTS, wordpiece, 20)
    count = len(alone["weights"])
    kit.assert_equal_sums(task, model, params, alone, kit.batch(task, TEXTS, wordpiece, 20, size=count + 2))
    noise = {name: np.concatenate([value, value[:1]]) for name, value in alone.items()}
    noise["weights"][count:] = 0
    kit.assert_equal_sums(task, model, params, alone, noise)


def test_a_few_rows_are_learnt(kit, wordpiece):
    model = encoder(kit, wordpiece)
    _, loss = kit.overfit(MaskedLM(), model, kit.batch(MaskedLM(), TEXTS, wordpiece, 24), steps=400)
    assert loss < 0.02


def test_pairs_and_what_follows_are_learnt(kit, wordpiece):
    model, batch = encoder(kit, wordpiece, NEXT), kit.batch(PAIRS, TEXTS, wordpiece, 14)
    assert {0, 1} == {*batch["labels"].tolist()}
    params, loss = kit.overfit(PAIRS, model, batch, steps=200)
    assert loss < 0.05
    (_, metrics), _ = kit.gradients(PAIRS, model, params, batch)
    values = PAIRS.metrics({name: (float(a), float(b)) for name, (a, b) in metrics.items()}, 0)
    assert values["next_accuracy"] == 1
    assert values.keys() == {"loss", "accuracy", "perplexity", "next_loss", "next_accuracy"}


def test_pairs_stand_between_special_tokens_and_half_of_them_follow(kit, wordpiece):
    cls, sep, stop = (wordpiece.id(piece) for piece in ("[CLS]", "[SEP]", "."))
    words = [id for id in range(10, wordpiece.vocab_size) if wordpiece.piece(id)[0] not in ".?!#"]
    homes = [np.insert(words[12 * i : 12 * i + 12], (4, 8), stop) for i in range(4)]  # four words a sentence
    rows = kit.rows(MaskedLM(rate=0.2, next_sentence=True), homes, wordpiece, 14, seed=0)
    follows = []
    for number in range(200):
        row = rows.row(number)
        tokens = changed(row)[row["mask"]]
        first, second = np.flatnonzero(tokens == sep)
        assert tokens[0] == cls
        assert second == len(tokens) - 1
        assert row["token_types"][row["mask"]].tolist() == [0] * (first + 1) + [1] * (second - first)
        assert not np.isin(tokens[row["places"][row["weights"] > 0]], (cls, sep)).any()
        sides = [part[part != stop] for part in (tokens[1:first], tokens[first + 1 : -1])]
        one, other = ({i for i, home in enumerate(homes) if np.isin(side, home).all()} for side in sides)
        assert len(one) == len(other) == 1
        assert (one == other) == (row["labels"] == 0)
        assert one != other or sides[0][-1] < sides[1][0]
        follows.append(one == other)
    assert 0.4 < np.mean(follows) < 0.55
    assert row["labels"].dtype == np.int32
    assert row["labels"].shape == ()


def test_microbatches_of_pairs_add_up_to_the_whole(kit, wordpiece):
    model, batch = encoder(kit, wordpiece, NEXT), kit.batch(PAIRS, TEXTS, wordpiece, 14, size=4)
    params, batch["weights"][0, 0] = kit.random_params(model), 0
    parts = [{name: value[i : i + 2] for name, value in batch.items()} for i in (0, 2)]
    _, whole = kit.gradients(PAIRS, model, params, batch)
    found = [kit.gradients(PAIRS, model, params, part) for part in parts]
    weights = [float(metrics["loss"][1]) for (_, metrics), _ in found]
    assert weights[0] != weights[1]
    total = jax.tree.map(lambda a, b: (a * weights[0] + b * weights[1]) / sum(weights), found[0][1], found[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max())), total, whole)


def test_problems_say_what_a_model_or_tokenizer_lacks(kit, wordpiece, plain):
    good = encoder(kit, wordpiece, NEXT).config
    assert MaskedLM().problems(good, 64) == PAIRS.problems(good, 64) == []
    assert any("learned positions for 64" in line for line in MaskedLM().problems(good, 65))
    assert any("no head called 'next'" in line for line in PAIRS.problems(dataclasses.replace(good, extra=()), 64))
    assert any("head is None" in line for line in MaskedLM().problems(dataclasses.replace(good, head=None), 64))
    decoder = kit.model("learned", wordpiece, head=HeadConfig()).config
    assert len(MaskedLM().problems(decoder, 12)) == 2
    assert len(MaskedLM(rate=0, replace=0.9, random_share=0.2).problems(good, 12)) == 2
    with pytest.raises(ValueError, match="has no mask: train one with"):
        kit.rows(MaskedLM(), TEXTS, plain, 12)
    with pytest.raises(ValueError, match="two documents or more, found 1"):
        kit.rows(PAIRS, TEXTS[:1], wordpiece, 12)
    with pytest.raises(ValueError, match="give texts"):
        MaskedLM().rows(kit.store(MaskedLM(), TEXTS, wordpiece), None, 12, None)
    assert (MaskedLM().head, PAIRS.head) == ("lm", "pretraining")


def test_metrics_are_those_of_masked_tokens():
    values = MaskedLM().metrics({"loss": (0.0, 4.0), "accuracy": (1.0, 4.0)}, 100)
    assert values == {"loss": 0.0, "accuracy": 0.25, "perplexity": 1.0}
