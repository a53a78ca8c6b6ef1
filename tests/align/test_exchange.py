"""What was asked and what was answered, as ids."""

import numpy as np
import pytest

from jaxformer.align.exchange import exchange, prompt_of, row
from jaxformer.text.template import Template

TALK = [{"role": "user", "content": "where is anna ?"}]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class Framed:
    """A tokenizer whose texts stand between special tokens."""

    def __init__(self, inner, template):
        self.inner, self.template = inner, template

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_a_text_goes_on_in_the_tokens_of_the_whole(tokenizer):
    found = exchange(tokenizer, "the quick", " brown fox", encoder=False)
    assert [*found.prompt, *found.answer] == [*tokenizer.encode("the quick brown fox"), tokenizer.eos]
    assert tokenizer.decode(found.prompt) == "the quick"
    cut = exchange(tokenizer, "the quick", " brown fox", encoder=False, end=False)
    assert [*cut.answer] == [*found.answer[:-1]]


def test_a_prompt_is_what_the_exchange_begins_with(tokenizer):
    for asked in ("the quick", TALK):
        prompt = prompt_of(tokenizer, asked, encoder=False, template=TEMPLATE)
        found = exchange(tokenizer, asked, " brown fox", encoder=False, template=TEMPLATE)
        np.testing.assert_array_equal(found.prompt, prompt)
    assert [*prompt_of(tokenizer, "", encoder=False)] == [tokenizer.bos]


def test_special_tokens_stand_before_a_prompt_and_none_behind_it(tokenizer):
    template = Template((((tokenizer.bos,), 0), ("A", 0), ((tokenizer.eos,), 0)))
    found = exchange(Framed(tokenizer, template), "the quick", " fox", encoder=False)
    assert found.prompt[0] == tokenizer.bos
    assert tokenizer.eos not in found.prompt
    assert [*found.answer].count(tokenizer.eos) == 1


def test_an_encoder_reads_the_prompt_to_its_end(tokenizer):
    found = exchange(tokenizer, "the quick", "brown fox", encoder=True)
    assert [*found.prompt] == [*tokenizer.encode("the quick"), tokenizer.eos]
    assert [*found.answer] == [*tokenizer.encode("brown fox"), tokenizer.eos]


def test_an_answer_to_messages_ends_as_its_template_says(tokenizer):
    found = exchange(tokenizer, TALK, "in rome", encoder=False, template=TEMPLATE)
    assert tokenizer.decode(found.prompt).endswith("[assistant]")
    assert tokenizer.decode(found.answer) == "in rome"
    assert found.answer[-1] == tokenizer.eos


def test_prompts_stand_right_and_answers_left(tokenizer):
    found = exchange(tokenizer, "the quick", " brown fox", encoder=False)
    p, a = len(found.prompt), len(found.answer)
    made = row(found, p + 3, a + 2)
    np.testing.assert_array_equal(made["tokens"], [0, 0, 0, *found.prompt])
    np.testing.assert_array_equal(made["mask"], [False] * 3 + [True] * p)
    np.testing.assert_array_equal(made["answers"], [*found.answer, 0, 0])
    np.testing.assert_array_equal(made["written"], [True] * a + [False] * 2)
    np.testing.assert_array_equal(row(found, p, 1)["answers"], found.answer[:1])
    with pytest.raises(ValueError, match=f"a prompt of {p} tokens: a row has room for {p - 1}"):
        row(found, p - 1, a)


@pytest.mark.parametrize("asked", [3, [], [{"role": "user"}], ["a"], None])
def test_what_is_no_prompt_is_refused(tokenizer, asked):
    with pytest.raises(ValueError, match="expected a text, or messages"):
        prompt_of(tokenizer, asked, encoder=False, template=TEMPLATE)


def test_messages_want_a_template(tokenizer):
    with pytest.raises(ValueError, match="this tokenizer has no chat template"):
        prompt_of(tokenizer, TALK, encoder=False)


def test_an_empty_prompt_wants_a_start_token(tokenizer):
    class Startless(Framed):
        bos = None

    with pytest.raises(ValueError, match="no start token"):
        prompt_of(Startless(tokenizer, Template()), "", encoder=False)
