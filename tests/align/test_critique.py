"""Preferences that a model makes by itself."""

import jax
import pytest

from jaxformer.align import Prefer
from jaxformer.align.critique import Principle, revised
from jaxformer.generation import Sample
from jaxformer.text.corpus import open_documents

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROMPTS = ["who", "anna", "where is it"]


def test_records_are_pairs_that_preferences_are_learned_from(made, tokenizer):
    style = {"max_new_tokens": 6, "template": TEMPLATE, "strategy": Sample(), "rows": 2}
    found = list(revised(*made("rotary"), tokenizer, PROMPTS, **style))
    assert found
    for record in found:
        assert record["prompt"][0]["content"] in PROMPTS
        assert record["chosen"] != record["rejected"]
    task = Prefer(template=TEMPLATE)
    for document in open_documents(found, task.columns):
        assert len(list(task.examples(document, tokenizer))) == 1
    assert found == list(revised(*made("rotary"), tokenizer, PROMPTS, **style, key=jax.random.key(0)))


def test_each_request_sees_what_was_said_before(made, tokenizer, monkeypatch):
    """Answer, critique and revision are asked for in one talk, by the principles in turn."""
    from jaxformer.align import critique

    talks = []

    def spy(tokenizer, talk, **style):
        talks.append([*talk])
        return plain(tokenizer, talk, **style)

    plain = critique.prompt_of
    monkeypatch.setattr(critique, "prompt_of", spy)
    principles = [Principle("is it one ?", "make it one"), Principle("is it two ?", "make it two")]
    list(revised(*made("rotary"), tokenizer, PROMPTS[:2], principles, max_new_tokens=4, template=TEMPLATE))
    assert [len(talk) for talk in talks] == [1, 1, 3, 3, 5, 5]
    for i, wish in enumerate(("one", "two")):
        last = talks[4 + i]
        assert [message["role"] for message in last] == ["user", "assistant"] * 2 + ["user"]
        assert [last[0]["content"], last[2]["content"], last[4]["content"]] == [
            PROMPTS[i],
            f"is it {wish} ?",
            f"make it {wish}",
        ]


def test_a_principle_is_needed(made, tokenizer):
    with pytest.raises(ValueError, match="principles is empty"):
        list(revised(*made("rotary"), tokenizer, PROMPTS, []))
