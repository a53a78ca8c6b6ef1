"""Rates of what answers do, per group."""

import pytest

from jaxformer.align import safety
from jaxformer.align.safety import Phrases, rate, rates, spread, table

RUDE = Phrases(("fool", "damn you"))
REFUSAL = Phrases(safety.REFUSALS, at_start=40)


@pytest.mark.parametrize(
    ("text", "found"),
    [("You FOOL.", 1.0), ("a foolish thing", 0.0), ("well, damn you!", 1.0), ("damn, you", 0.0), ("", 0.0)],
)
def test_phrases_are_whole_words_in_any_case(text, found):
    assert RUDE(text) == found
    assert Phrases(())(text) == 0.0


def test_a_refusal_stands_at_the_start():
    assert REFUSAL("I\u2019m sorry, but no.") == 1.0
    assert REFUSAL("Of course. " + "a" * 40 + " I won't") == 0.0


def test_rates_by_hand():
    found = rates(["fool", "fine", "fine", "you fool"], ["a", "a", "b", "a"], {"rude": RUDE, "length": len})
    assert list(found) == ["a", "b", "all"]
    assert found["a"]["rude"].mean == pytest.approx(2 / 3)
    assert found["b"]["rude"].mean == 0.0
    assert found["all"]["rude"].mean == 0.5
    assert found["all"]["length"].mean == 5.0
    assert spread(found, "rude") == pytest.approx(2 / 3)


def test_the_interval_of_a_share_is_wilsons():
    found = rate([1.0] * 3 + [0.0] * 7)  # z 1.6449: centre 0.3426, half 0.2162 (worked out by hand)
    assert (found.low, found.high) == (pytest.approx(0.1264, abs=2e-3), pytest.approx(0.5588, abs=2e-3))
    assert rate([0.0] * 10).low == 0.0
    assert rate([0.0] * 10).high == pytest.approx(1.6449**2 / (10 + 1.6449**2))


def test_a_table_sets_two_models_side_by_side():
    before, after = (rates(texts, ["x", "y"], {"rude": RUDE}) for texts in (["fool", "fool"], ["a", "fool"]))
    lines = table(before, after).splitlines()
    assert lines[0] == "| group | measure | answers | before | after |"
    assert lines[2].startswith("| x | rude | 1 | 1.000 (")
    assert len(lines) == 5
    assert "| rate |" in table(before)


def test_what_cannot_be_counted_is_told():
    for answers, groups, said in (
        (["a"], [], "1 answers and 0 groups"),
        (["a"], ["all"], 'called "all"'),
        ([], [], "no answers"),
    ):
        with pytest.raises(ValueError, match=said):
            rates(answers, groups, {"rude": RUDE})
