"""Scores against figures worked out by hand, and against the libraries that the field quotes."""

import builtins
import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import scores


def needs(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


FOUND, WANTED = [1, 1, 0, 2, 1], [1, 0, 0, 2, 2]  # hits of 0, 1, 2: 1, 1, 1; guesses 1, 3, 1; there 2, 1, 2


def test_accuracy_counts_what_is_right():
    assert scores.accuracy(FOUND, WANTED) == 3 / 5
    assert scores.accuracy([[1, 0], [1, 1]], [[1, 0], [1, 0]]) == 1 / 2
    assert scores.accuracy(["a", "bb"], ["a", "b"]) == 1 / 2


def test_f1_by_hand():
    assert scores.f1(FOUND, WANTED, "binary") == 2 / 4
    assert scores.f1(FOUND, WANTED, "binary", positive=2) == pytest.approx(2 / 3)
    assert scores.f1(FOUND, WANTED) == pytest.approx((2 / 3 + 2 / 4 + 2 / 3) / 3)
    assert scores.f1(FOUND, WANTED, "micro") == 3 / 5
    rows = [[1, 0, 0], [1, 1, 0]], [[1, 1, 0], [0, 1, 0]]
    assert scores.f1(*rows, "micro") == 2 * 2 / 6
    assert scores.f1(*rows) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    with pytest.raises(ValueError, match="no single positive"):
        scores.f1(*rows, "binary")


def test_matthews_by_hand():
    # true positives 2, true negatives 1, a false one of each kind: (2 * 1 - 1 * 1) / sqrt(3 * 3 * 2 * 2)
    assert scores.matthews([1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == pytest.approx(1 / 6)
    assert scores.matthews([1, 1], [0, 1]) == 0.0


def test_correlations_by_hand():
    assert scores.pearson([1, 2, 4], [2, 4, 8]) == pytest.approx(1)
    assert scores.pearson([0, 0, 1], [1, 0, 0]) == pytest.approx(-0.5)
    assert scores.spearman([1, 10, 100, 50], [-1, 0, 9, 5]) == pytest.approx(1)
    assert scores.spearman([1, 1, 2], [3, 4, 4]) == pytest.approx(0.5)  # ranks 0.5 0.5 2 and 0 1.5 1.5
    assert math.isnan(scores.pearson([1, 1], [1, 2]))


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-A I-A O", {("A", 1, 3)}),
        ("B-A B-A", {("A", 0, 1), ("A", 1, 2)}),
        ("I-A I-A I-B", {("A", 0, 2), ("B", 2, 3)}),
        ("B-A I-B O I-B", {("A", 0, 1), ("B", 1, 2), ("B", 3, 4)}),
        ("B-a-b I-a-b", {("a-b", 0, 2)}),
        ("", set()),
    ],
)
def test_entities_of_tags(tags, spans):
    assert scores.entities(tags.split()) == spans


def test_an_entity_counts_with_its_type_and_both_ends():
    found = [["B-A", "I-A", "O", "B-B"], ["B-A"]]
    wanted = [["B-A", "I-A", "O", "B-A"], ["O"]]
    assert scores.entity_f1(found, wanted) == {
        "precision": 1 / 3,
        "recall": 1 / 2,
        "f1": 2 / 5,
        "f1/A": 2 / 4,
        "f1/B": 0.0,
    }
    with pytest.raises(ValueError, match="tag 1 is 'X'"):
        scores.entities(["O", "X"])
    with pytest.raises(ValueError, match="text 1: 1 tags predicted, 2 in the reference"):
        scores.entity_f1([["O"], ["O"]], [["O"], ["O", "O"]])


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "shared"),
    [
        ("The  Cat!", "cat", 1, 1),
        ("a cat, an apple", "the cat apple", 1, 1),
        ("theatre", "atre", 0, 0),
        ("the black cat", ["cat", "black dog here"], 0, 2 / 3),
        ("cat cat", "cat", 0, 2 / 3),
        ("don't", "dont", 1, 1),
        ("", [], 1, 1),
        ("", "the", 1, 1),
        ("cat", [], 0, 0),
        ("", "cat", 0, 0),
        ("“cat”", "cat", 0, 0),  # the published normalisation knows ASCII punctuation alone
    ],
)
def test_squad_by_hand(prediction, answers, exact, shared):
    assert scores.squad([prediction], [answers]) == pytest.approx({"exact_match": 100 * exact, "f1": 100 * shared})


def test_squad_is_the_mean_over_questions():
    assert scores.squad(["a cat", "dog"], ["cat", ["cow", "hen"]]) == {"exact_match": 50.0, "f1": 50.0}


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        scores.accuracy([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="not empty"):
        scores.f1([], [])
    with pytest.raises(ValueError, match="1 predictions and 2 references"):
        scores.squad(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="at least one"):
        scores.entity_f1([], [])


@pytest.mark.parametrize(("score", "package"), [(scores.bleu, "sacrebleu"), (scores.rouge, "rouge-score")])
def test_a_missing_package_is_named_with_its_extra(score, package, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **more):
        if name.partition(".")[0] in ("sacrebleu", "rouge_score"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=rf'{package}: pip install "jaxformer\[eval\]"'):
        score(["a"], ["a"])


TEXTS = ["the cat sat on the mat", "a dog barked at the tall tree"]
RIGHT = ["the cat sat on a mat", "a dog barked at the tree"]


@needs("sacrebleu")
def test_bleu_by_hand():
    # of 13 words 11 are right (the second "the" is one too many), of the pairs 3 of 5 and 4 of 6, of the triples
    # 2 of 4 and 3 of 5, of four in a row 1 of 3 and 2 of 4; the references are shorter: no brevity penalty
    found = scores.bleu(TEXTS, RIGHT)
    assert found.score == pytest.approx(100 * (11 / 13 * 7 / 11 * 5 / 9 * 3 / 7) ** 0.25)
    assert found.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")


@needs("sacrebleu")
def test_each_translation_score_signs_what_it_did():
    assert scores.chrf(RIGHT, RIGHT).score == 100
    assert "nc:6|nw:0" in scores.chrf(TEXTS, RIGHT).signature
    assert "nw:2" in scores.chrf(TEXTS, RIGHT, word_order=2).signature
    assert scores.ter(TEXTS, RIGHT).score == pytest.approx(100 * 2 / 12)  # the -> a, and tall taken out
    assert "tok:tercom" in scores.ter(TEXTS, RIGHT).signature
    assert "tok:char" in scores.bleu(TEXTS, RIGHT, "char").signature


@needs("sacrebleu")
def test_each_text_may_have_its_own_number_of_references():
    assert scores.bleu(TEXTS, [[RIGHT[0], TEXTS[0]], [TEXTS[1]]]).score == pytest.approx(100)
    assert scores.bleu(TEXTS, [[RIGHT[0], TEXTS[0]], [TEXTS[1]]]).signature.startswith("nrefs:var")


@needs("rouge_score")
def test_rouge_by_hand():
    found = scores.rouge(["the cats sat"], ["the cat sat on\nthe mat"])
    # 2 of 3 words, of 6 words; no pair of 2, of 5; "the ... sat" in a row
    assert found["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 6) / (2 / 3 + 2 / 6))
    assert found["rouge2"] == 0
    assert found["rougeL"] == pytest.approx(found["rouge1"])
    assert scores.rouge(["the cats sat"], ["the cat sat"], stemmer=True)["rouge2"] == 1
    assert scores.rouge(["a b", "c"], [["x", "a b"], "d"])["rouge1"] == 0.5


TAGS = st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), min_size=1, max_size=9)
PAIRS = TAGS.flatmap(
    lambda tags: st.tuples(
        st.just(tags), st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B"]), min_size=len(tags), max_size=len(tags))
    )
)


@needs("seqeval")
@given(st.lists(PAIRS, min_size=1, max_size=3))
def test_entities_are_counted_as_seqeval_does(pairs):
    from seqeval import metrics

    found, wanted = map(list, zip(*pairs, strict=True))
    ours = scores.entity_f1(found, wanted)
    assert ours["f1"] == pytest.approx(metrics.f1_score(wanted, found, zero_division=0))
    assert ours["precision"] == pytest.approx(metrics.precision_score(wanted, found, zero_division=0))
    assert ours["recall"] == pytest.approx(metrics.recall_score(wanted, found, zero_division=0))
    kinds = sorted(name for name in ours if name.startswith("f1/"))
    if kinds:  # of texts without any entity its report warns
        report = metrics.classification_report(wanted, found, output_dict=True, zero_division=0)
        assert [f"f1/{kind}" for kind in report if not kind.endswith(" avg")] == kinds
        assert [ours[kind] for kind in kinds] == pytest.approx([report[kind[3:]]["f1-score"] for kind in kinds])


LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


@needs("sklearn")
@given(LABELS)
def test_labels_are_scored_as_scikit_learn_does(pairs):
    from sklearn import metrics

    found, wanted = map(list, zip(*pairs, strict=True))
    assert scores.accuracy(found, wanted) == pytest.approx(metrics.accuracy_score(wanted, found))
    for average in ("macro", "micro"):
        theirs = metrics.f1_score(wanted, found, average=average, zero_division=0)
        assert scores.f1(found, wanted, average) == pytest.approx(theirs)
    one = metrics.f1_score(np.equal(wanted, 1), np.equal(found, 1), zero_division=0)
    assert scores.f1(found, wanted, "binary") == pytest.approx(one)
    if len({*found, *wanted}) > 1:  # of a single label scikit-learn warns
        assert scores.matthews(found, wanted) == pytest.approx(metrics.matthews_corrcoef(wanted, found))
    rows = np.equal.outer(found, range(4)), np.equal.outer(wanted, range(4))
    rows = rows[0] | np.roll(rows[1], 1, axis=0), rows[1]
    for average in ("macro", "micro"):
        theirs = metrics.f1_score(rows[1], rows[0], average=average, zero_division=0)
        assert scores.f1(*rows, average) == pytest.approx(theirs)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=9))
def test_correlations_are_those_of_scipy(pairs):
    from scipy import stats

    found, wanted = map(list, zip(*pairs, strict=True))
    if len({*found}) > 1 and len({*wanted}) > 1:
        assert scores.pearson(found, wanted) == pytest.approx(stats.pearsonr(found, wanted).statistic, abs=1e-12)
        assert scores.spearman(found, wanted) == pytest.approx(stats.spearmanr(found, wanted).statistic, abs=1e-12)
    else:
        assert math.isnan(scores.pearson(found, wanted))
