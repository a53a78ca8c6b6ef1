"""Rewards: functions by name, reward models, and their weighted sum."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.align import FunctionReward, ModelReward, Reward, reward
from jaxformer.align.rewards import FUNCTIONS, Judges, problems
from jaxformer.config import Card, ExtraHeadConfig
from jaxformer.source import save_pretrained

PROMPTS, ANSWERS = ["the quick", "anna"], [" brown fox", " lives in rome , who knows"]
RECORDS = [{"target": "brown fox", "keys": ["a"]}, {"target": "rome"}]


@pytest.fixture
def shout():
    @reward("shout")
    def shout(prompts, answers, records):
        return [answer.count("!") + len(prompt) for prompt, answer in zip(prompts, answers, strict=True)]

    yield shout
    del FUNCTIONS["shout"]


def test_rewards_are_weighted_and_told_by_name(shout):
    total, each = Judges([FunctionReward("shout", 2.0), FunctionReward("exact", -1.0)])(PROMPTS, ANSWERS, RECORDS)
    np.testing.assert_array_equal(each["shout"], [9, 4])
    np.testing.assert_array_equal(each["exact"], [1, 0])
    np.testing.assert_array_equal(total, [17, 8])
    assert total.dtype == np.float32


@pytest.mark.parametrize(("name", "want"), [("exact", [1, 0]), ("contains", [1, 1])])
def test_answers_are_held_against_their_target(name, want):
    np.testing.assert_array_equal(Judges([FunctionReward(name)])(PROMPTS, ANSWERS, RECORDS)[0], want)
    with pytest.raises(ValueError, match='no text "target"'):
        Judges([FunctionReward(name)])(["a"], ["b"], [{"prompt": "a"}])


def test_rouge_is_1_of_the_target_and_0_of_other_words():
    pytest.importorskip("rouge_score")
    found = Judges([FunctionReward("rouge")])(["a", "a"], ["brown fox", "blue cat"], [RECORDS[0]] * 2)[0]
    np.testing.assert_allclose(found, [1, 0])


def test_json_is_an_object_with_the_keys_that_are_asked_for():
    answers = ['{"a": 1}', '{"b": 1}', "[1]", "{", ""]
    found = Judges([FunctionReward("json")])(["p"] * 5, answers, [RECORDS[0]] * 5)[0]
    np.testing.assert_array_equal(found, [1, 0, 0, 0, 0])
    assert Judges([FunctionReward("json")])(["p"], ['{"b": 1}'], [{}])[0] == [1]


@pytest.mark.parametrize("said", [[1.0], [1.0, float("nan")], [[1.0], [2.0]]])
def test_what_is_no_number_for_each_answer_is_refused(said):
    try:
        reward("broken")(lambda prompts, answers, records: said)
        with pytest.raises(ValueError, match="'broken': expected 2 finite numbers"):
            Judges([FunctionReward("broken")])(PROMPTS, ANSWERS, RECORDS)
    finally:
        del FUNCTIONS["broken"]


def test_a_name_is_one_functions(shout):
    reward("shout")(shout)  # the same once more, as where a notebook's cell runs again
    with pytest.raises(ValueError, match="'shout' is taken"):
        reward("shout")(lambda prompts, answers, records: [])


def test_all_that_is_wrong_is_told():
    said = "\n".join(
        problems([FunctionReward("nobody"), FunctionReward("exact"), ModelReward("x", rows=0, name="exact")])
    )
    for part in ("'nobody'", "contains", "length and rows of x", "called the same"):
        assert part in said
    assert problems([]) == ["task.rewards is empty: say what is rewarded"]


def test_a_reward_model_says_of_texts_what_it_says_of_their_rows(made, tokenizer, tmp_path):
    model, params = made("rotary", (ExtraHeadConfig("classify", 1, reads="last", bias=False),))
    task = Reward()
    save_pretrained(tmp_path / "judge", model.clone(card=task.card(Card())), params, tokenizer)
    judges = Judges([ModelReward(str(tmp_path / "judge"), rows=2, length=48)])
    prompts, answers = [*PROMPTS, "where is it"], [*ANSWERS, " ?"]
    found, _ = judges(prompts, answers, [{}] * 3)
    for asked, answer, score in zip(prompts, answers, found, strict=True):
        ids, _ = task.reading(tokenizer, asked, answer)
        want = model.apply({"params": params}, jnp.asarray(ids)[None]).extra["classify"][0, 0]
        assert score == pytest.approx(float(want), rel=1e-4, abs=1e-5)


def test_a_decoder_joins_prompt_and_answer_anyway(made, tokenizer, tmp_path):
    model, params = made("rotary", (ExtraHeadConfig("classify", 1, reads="last", bias=False),))
    save_pretrained(tmp_path / "judge", model.clone(card=Reward().card(Card())), params, tokenizer)
    with pytest.raises(ValueError, match="joined is for encoders"):
        Judges([ModelReward(str(tmp_path / "judge"), joined=True)])


def test_a_model_without_such_a_head_is_no_reward_model(made, tokenizer, tmp_path):
    save_pretrained(tmp_path / "lm", *made("rotary"), tokenizer)
    with pytest.raises(ValueError, match="is no reward model"):
        Judges([ModelReward(str(tmp_path / "lm"))])
