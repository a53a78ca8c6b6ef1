import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from jaxformer.config import Card, ExtraHeadConfig
from jaxformer.tasks.tag import Tag, first_pieces
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

LABELS = ("O", "B-PER", "I-PER", "B-LOC")
TASK = Tag(labels=LABELS)
RECORDS = [
    {"words": ["anna", "sees", "a", "fox"], "tags": ["B-PER", "O", "O", "O"]},
    {"words": ["the", "dog", "is", "in", "rome"], "tags": ["O", "O", "O", "O", "B-LOC"]},
    {"words": ["who", "is", "anna", "brown", "?"], "tags": ["O", "O", "B-PER", "I-PER", "O"]},
    {"words": ["rome"], "tags": ["B-LOC"]},
    {"words": ["anna", "brown", "jumps", "over", "a", "lazy", "dog"], "tags": [1, 2, 0, 0, 0, 0, 0]},
    {"words": "the quick brown fox", "tags": "O O O O"},
    {"words": ["a", "red", "fox", "sees", "rome"], "tags": [0, 0, 0, 0, 3]},
    {"words": ["it", "is", "blue", "in", "rome", ",", "and", "red"], "tags": [0, 0, 0, 0, 3, 0, 0, 0]},
]
HEAD = (ExtraHeadConfig("tag", 4),)


@pytest.fixture(scope="module")
def spelling():
    """A tokenizer that has no whole word: it writes some in many pieces."""
    return train_tokenizer(TokenizerConfig("wordpiece", 70), ["abcdefghijklmnopqrstuvwxyz ? ,"])


def words_of(tokenizer, words):
    """The text of each word by its first piece and those that follow it."""
    ids, places, own = first_pieces(tokenizer, words)
    assert own.all()
    borders = [*places.tolist(), len(ids)]
    return [tokenizer.decode(ids[a:b]) for a, b in pairwise(borders)]


def test_each_word_begins_at_its_first_piece(spelling, wordpiece, plain):
    for tokenizer in (spelling, wordpiece, plain):
        found = words_of(tokenizer, ["anna", "sees", "?", "dog", "a", "dog"])
        assert [word.strip() for word in found] == ["anna", "sees", "?", "dog", "a", "dog"]
    ids, places, _ = first_pieces(spelling, ["anna", "is"])
    assert len(ids) > 2
    assert places.tolist() == [0, len(spelling.encode("anna"))]


def test_a_word_with_no_piece_of_its_own_begins_where_the_word_before_does(spelling):
    ids, places, own = first_pieces(spelling, ["\u200b", "fox", "\u200b", "", "a", "\u200b"])
    assert len(ids) == len(spelling.encode("fox")) + 1
    assert own.tolist() == [False, True, False, False, True, False]
    assert places.tolist() == [0, 0, 0, 0, len(ids) - 1, len(ids) - 1]
    assert [part.tolist() for part in first_pieces(spelling, [])[1:]] == [[], []]
    assert first_pieces(spelling, ["\u200b"])[0] == []


def test_pieces_that_run_over_words_belong_to_the_first(kit):
    across = train_tokenizer(TokenizerConfig("sentencepiece", 300, across_words=True), ["in the house, "] * 200)
    ids, places, own = first_pieces(across, ["in", "the", "house,"])
    assert len(ids) < 3
    assert own[0]
    assert not own.all()
    assert (np.diff(places) >= 0).all()


def test_labels_stand_on_first_pieces_alone(kit, spelling):
    row = kit.rows(TASK, RECORDS[2:3], spelling, 24).row(0)
    sizes = [len(spelling.encode(word)) for word in RECORDS[2]["words"]]
    starts = 1 + np.cumsum([0, *sizes[:-1]])
    assert np.flatnonzero(row["weights"]).tolist() == starts.tolist()
    assert row["labels"][starts].tolist() == [0, 0, 1, 2, 0]
    assert row["mask"].sum() == sum(sizes) + 2
    kinds = {name: (value.shape, value.dtype) for name, value in row.items()}
    assert kinds["labels"] == kinds["tokens"] == ((24,), np.int32)
    assert kinds["weights"] == ((24,), np.float32)


def test_a_long_sentence_stands_in_several_rows_and_loses_nothing(kit, spelling):
    store = kit.store(TASK, RECORDS, spelling)
    rows = TASK.rows(store, spelling, 8, None)
    assert rows.count == sum(-(-len(store[i]["tokens"]) // 6) for i in range(8)) > 8
    all_rows = [rows.row(i) for i in range(rows.count)]
    inside = [row["tokens"][1 : row["mask"].sum() - 1] for row in all_rows]
    np.testing.assert_array_equal(np.concatenate(inside), np.concatenate([store[i]["tokens"] for i in range(8)]))
    labels = np.concatenate([row["labels"][row["weights"] > 0] for row in all_rows])
    wanted = [TASK._tags(document) for document in kit.documents(TASK, RECORDS)]
    assert labels.tolist() == [tag for tags in wanted for tag in tags]
    seeded = TASK.rows(store, spelling, 8, 5)
    key = lambda row: row["tokens"].tobytes()
    assert sorted(map(key, all_rows)) == sorted(key(seeded.row(i)) for i in range(seeded.count))


def test_eight_sentences_are_learnt_and_each_word_gets_its_tag(kit, spelling):
    model = kit.model("shared", spelling, HEAD)
    params, loss = kit.overfit(TASK, model, kit.batch(TASK, RECORDS, spelling, 12), steps=100)
    assert loss < 0.02
    documents = kit.documents(TASK, RECORDS)
    found = TASK.predict(model, {"params": params}, spelling, documents, 3, 12)
    assert found == [[LABELS[tag] for tag in TASK._tags(document)] for document in documents]
    assert set(TASK.score(found, documents).values()) == {1.0}


def test_words_without_pieces_are_predicted_too(kit, spelling):
    model = kit.model("shared", spelling, HEAD)
    params = kit.random_params(model)
    records = [{"words": ["\u200b"], "tags": [0]}, {"words": ["fox", "\u200b"], "tags": [0, 0]}]
    found = TASK.predict(model, {"params": params}, spelling, kit.documents(TASK, records), 4, 8)
    assert found[0] == ["O"]
    assert found[1][0] == found[1][1]


def test_padding_and_rows_of_weight_zero_change_nothing(kit, wordpiece):
    model = kit.model("shared", wordpiece, HEAD)
    params = kit.random_params(model)
    alone = kit.batch(TASK, RECORDS[:3], wordpiece, 12)
    blank = kit.batch(TASK, RECORDS[:3], wordpiece, 16, size=5)
    others = kit.batch(TASK, RECORDS[:5], wordpiece, 16)
    others["weights"][3:] = 0
    silent = blank | {"labels": np.where(blank["weights"] > 0, blank["labels"], 3)}
    kit.assert_equal_sums(TASK, model, params, alone, blank, others, silent)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"words": ["a", "fox"], "tags": ["O"]}, "expected a tag for each of 2 words, found 1"),
        ({"words": ["a", "fox"], "tags": ["O", "X"]}, "expected one of O, B-PER"),
    ],
)
def test_tags_that_do_not_fit_name_their_record(kit, wordpiece, record, message):
    (document,) = kit.documents(TASK, [record])
    with pytest.raises(ValueError, match="document 0: tags") as caught:
        list(TASK.examples(document, wordpiece))
    assert message in str(caught.value)


def test_scores_are_of_entities_where_classes_are_such(kit):
    documents = kit.documents(TASK, RECORDS[:3])
    found = TASK.score([["B-PER", "O", "O", "O"], ["O"] * 5, ["O", "O", "B-PER", "O", "O"]], documents)
    assert found["accuracy"] == pytest.approx(12 / 14)
    assert (found["precision"], found["recall"]) == (0.5, pytest.approx(1 / 3))
    plain = dataclasses.replace(TASK, labels=("NOUN", "VERB"), words="w", tags="t")
    few = kit.documents(plain, [{"w": ["a", "b"], "t": [0, 1]}])
    assert plain.score([["NOUN", "NOUN"]], few) == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}


def test_problems_and_card(kit, wordpiece):
    good = kit.model("shared", wordpiece, HEAD).config
    assert TASK.problems(good, 12) == []
    assert any("'tag'" in line for line in TASK.problems(kit.model("encoder", wordpiece).config, 12))
    both = kit.model("encoder_decoder", wordpiece, HEAD).config
    assert any("not both" in line for line in TASK.problems(both, 12))
    assert TASK.card(Card()).config["id2label"]["3"] == "B-LOC"
    assert TASK.head == "tag:4"
