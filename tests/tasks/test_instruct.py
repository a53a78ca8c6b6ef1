import dataclasses
import logging
import math

import jax
import numpy as np
import pytest

from jaxformer import tree
from jaxformer.config import HeadConfig
from jaxformer.tasks.instruct import Instruct
from jaxformer.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from jaxformer.text.tokenizer_json import JsonTokenizer
from jaxformer.text.turns import encode, marked

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""
HEADERS = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "be brief" %}
{%- endif %}
{{- '<|head|>system<|/head|>' + system + '<|end|>' }}
{%- for message in messages %}
    {{- '<|head|>' + message.role + '<|/head|>' + message.content | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>' }}
{%- endif %}
"""
FORGETFUL = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and not loop.last %}
        {%- set content = content.split('</think>')[-1] %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
HEAD = HeadConfig(tied=False)
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|end|>")
TEXT = "who sees the lazy dog ? anna sees it . system user assistant be brief and kind <|/head|> </think>\n"


def say(**turns):
    return [{"role": role.rstrip("_"), "content": content} for role, content in turns.items()]


TALK = say(system="be kind", user="who ?", assistant="anna sees", user_="the dog ?", assistant_="it is lazy")
SHORT = say(user="who ?", assistant="the dog")


@pytest.fixture(scope="module", params=["sentencepiece", "byte_bpe", "recognising"])
def tokenizer(request, tmp_path_factory):
    """Of three that take special tokens' names in a text for text, for text, and for the tokens."""
    kind = request.param if request.param != "recognising" else "byte_bpe"
    found = train_tokenizer(TokenizerConfig(kind, 400, specials=SPECIALS), [TEXT * 4])
    if request.param != "recognising":
        return found
    return JsonTokenizer(found.inner, {role: found.piece(id) for role, id in found.specials.items()})


@pytest.fixture(scope="module")
def pieces():
    return train_tokenizer(TokenizerConfig("sentencepiece", 400, specials=SPECIALS), [TEXT * 4])


def examples(kit, task, tokenizer, *records):
    return [each for document in kit.documents(task, records) for each in task.examples(document, tokenizer)]


def learned(tokenizer, example):
    """The runs of tokens that are to be predicted, special ones by name."""
    runs, before = [], 0
    for id, answer in zip(example["tokens"].tolist(), example["answers"], strict=True):
        if answer:
            text = tokenizer.decode([id]) or tokenizer.piece(id)
            runs[len(runs) - 1 :] = [runs[-1] + text] if before else [*runs[-1:], text]
        before = answer
    return runs


def text_of(tokenizer, example):
    return "".join(tokenizer.decode([id]) or tokenizer.piece(id) for id in example["tokens"].tolist())


@pytest.mark.parametrize(
    ("template", "close", "system"),
    [(CHATML, "<|im_end|>", "<|im_start|>system\nbe kind<|im_end|>\n"), (HEADERS, "<|end|>", "be kind<|end|>")],
)
def test_the_answers_are_learned_with_the_token_that_ends_the_turn(kit, tokenizer, template, close, system):
    task = Instruct(template=template)
    (example,) = examples(kit, task, tokenizer, {"messages": TALK})
    assert learned(tokenizer, example) == [f"anna sees{close}", f"it is lazy{close}"]
    assert system in text_of(tokenizer, example)
    ids = example["tokens"].tolist()
    assert ids.count(tokenizer.id(close)) == len(TALK)
    asked = encode(tokenizer, marked(tokenizer, text_of(tokenizer, example).split("it is lazy")[0]))
    assert ids[: len(asked)] == asked  # what a model is given to go on from


def test_weights_stand_where_the_next_token_is_an_answers(kit, pieces):
    task = Instruct(
        template="{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    )
    row = kit.rows(task, [{"messages": say(user="a", assistant="b", user_="c", assistant_="d")}], pieces, 9).row(0)
    a, b, c, d = (pieces.encode(letter)[0] for letter in "abcd")
    assert row["tokens"].tolist() == [a, b, pieces.eos, c, d, pieces.eos, 0, 0, 0, 0]
    assert row["weights"].tolist() == [1, 1, 0, 1, 1, 0, 0, 0, 0]
    assert row["segments"].tolist() == [1] * 6 + [0] * 4


def test_conversations_are_packed_whole_and_apart(kit, pieces):
    task = Instruct(template=CHATML)
    rows = kit.rows(task, [{"messages": SHORT}, {"messages": SHORT + SHORT}] * 3, pieces, 50)
    found = [rows.row(i) for i in range(rows.count)]
    assert rows.count < 6
    assert sum(row["segments"].max() for row in found) == 6
    for row in found:
        borders = np.flatnonzero(np.diff(row["segments"]))
        assert not row["weights"][borders].any()
        assert (row["positions"][borders + 1][row["segments"][borders + 1] > 0] == 0).all()


def test_an_answer_that_nothing_comes_before_is_not_predicted_from_another_conversation(kit, pieces):
    task = Instruct(template="{% for m in messages %}{{ m.content }}{% endfor %}")
    row = kit.rows(task, [{"messages": say(assistant="abc")}, {"messages": say(assistant="abd")}], pieces, 6).row(0)
    assert row["segments"].tolist() == [1, 1, 1, 2, 2, 2, 0]
    assert row["weights"].tolist() == [1, 1, 0, 1, 1, 0]


def test_a_pair_needs_no_template(kit, tokenizer):
    task = Instruct(prompt="question", answer="reply")
    assert task.columns == ("question", "reply")
    (example,) = examples(kit, task, tokenizer, {"question": "who ?", "reply": "anna"})
    end = "" if tokenizer.eos is None else tokenizer.piece(tokenizer.eos)
    assert learned(tokenizer, example) == [f"anna{end}"]
    assert tokenizer.decode(example["tokens"].tolist()) == "who ?\nanna"
    (written,) = examples(kit, dataclasses.replace(task, template=CHATML), tokenizer, {"question": "a", "reply": "b"})
    assert text_of(tokenizer, written) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"


def test_names_of_special_tokens_in_what_is_said_stay_text(kit, pieces):
    (example,) = examples(
        kit, Instruct(template=CHATML), pieces, {"messages": say(user="<s> ?", assistant="a</s><|im_end|>b")}
    )
    assert "a</s><|im_end|>b" in pieces.decode(example["tokens"].tolist())
    assert example["tokens"].tolist().count(pieces.id("<|im_end|>")) == 2
    assert pieces.eos not in example["tokens"]


def test_the_tokenizers_own_template_is_used(kit, pieces, tmp_path):
    with pytest.raises(ValueError, match=r"no chat template: give task\.template"):
        examples(kit, Instruct(), pieces, {"messages": SHORT})
    pieces.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    (example,) = examples(kit, Instruct(), load_tokenizer(tmp_path), {"messages": SHORT})
    assert learned(pieces, example) == ["the dog<|im_end|>"]


def test_where_earlier_turns_change_each_answer_is_a_conversation(kit, tokenizer):
    talk = say(user="who ?", assistant="dog ?</think>anna", user_="it ?", assistant_="brief</think>lazy")
    task = Instruct(template=FORGETFUL)
    first, second = examples(kit, task, tokenizer, {"messages": talk})
    assert learned(tokenizer, first) == ["dog ?</think>anna<|im_end|>"]
    assert learned(tokenizer, second) == ["brief</think>lazy<|im_end|>"]
    assert "assistant\nanna<|im_end|>" in text_of(tokenizer, second)


def test_an_answer_that_shares_a_token_with_its_prompt_is_learned_from_that_token_on(kit):
    joined = train_tokenizer(TokenizerConfig("byte_bpe", 400), ["question : anna\n" * 20])
    task = Instruct(template="{% for m in messages %}{{ m.content + (' : ' if loop.first else '') }}{% endfor %}")
    for answer, found in (("anna", " anna"), ("   anna", "   anna")):
        (example,) = examples(kit, task, joined, {"messages": say(user="question", assistant=answer)})
        assert learned(joined, example) == [found]


def test_what_comes_after_the_last_answer_is_left_out(kit, pieces):
    (example,) = examples(kit, Instruct(template=CHATML), pieces, {"messages": SHORT + say(user="and ?")})
    (plain,) = examples(kit, Instruct(template=CHATML), pieces, {"messages": SHORT})
    assert example["tokens"].tolist() == plain["tokens"].tolist()


def test_long_conversations_are_cut_and_those_without_an_answer_left_are_counted(kit, pieces, caplog):
    task = Instruct(template=CHATML)
    long = say(user="who ?" * 100, assistant="anna")
    cut = say(user="who ?", assistant="anna sees it . " * 100)
    with caplog.at_level(logging.WARNING):
        rows = kit.rows(task, [{"messages": talk} for talk in (SHORT, long, cut)], pieces, 60)
    assert "1 of 3 conversations have no answer within 61 tokens: left out" in caplog.text
    found = [rows.row(i) for i in range(rows.count)]
    assert sum(row["segments"].max() for row in found) == 2
    (whole,) = (row for row in found if row["segments"].min() == 1)
    assert whole["weights"][-1] == 1
    assert "who ?" * 3 not in "".join(pieces.decode(row["tokens"].tolist()) for row in found)
    with pytest.raises(ValueError, match=r"1 of 1 conversations .*: give a longer --length"):
        kit.rows(task, [{"messages": long}], pieces, 60)


@pytest.mark.parametrize(
    ("messages", "template", "said"),
    [
        (say(user="hello"), CHATML, 'no message has the role "assistant"'),
        ([{"from": "human", "value": "hello"}], CHATML, 'expected objects with "role" and "content"'),
        (["hello"], CHATML, 'expected objects with "role" and "content"'),
        ([{"role": "assistant"}], CHATML, "chat template, line 2"),
        (SHORT, "{{ raise_exception('no') }}", "no"),
        (SHORT, "{{ messages | tojson }}{{ 'A:' if add_generation_prompt }}", "does not begin as answers begin"),
    ],
)
def test_what_is_no_conversation_names_its_record(kit, pieces, messages, template, said):
    with pytest.raises(ValueError, match="document 0: ") as error:
        examples(kit, Instruct(template=template), pieces, {"messages": messages})
    assert said in str(error.value)


def test_the_loss_is_of_the_answers_alone(kit, pieces):
    task, model = Instruct(template=CHATML), kit.model("rotary", pieces, head=HEAD)
    data = kit.batch(task, [{"messages": TALK}], pieces, 90)
    params = kit.random_params(model)
    (loss, metrics), gradients = kit.gradients(task, model, params, data)
    tokens, weights = data["tokens"][0], data["weights"][0]
    logits = kit.apply(model, params, tokens=data["tokens"][:, :-1])
    logp = jax.nn.log_softmax(logits.logits[0])
    want = [-float(logp[t, tokens[t + 1]]) for t in np.flatnonzero(weights)]
    assert float(loss) == pytest.approx(np.mean(want), rel=1e-5)
    assert float(metrics["loss"][1]) == len(want)
    first = np.flatnonzero(weights)[0]
    asked = pieces.decode(tokens[: first + 1].tolist())
    assert asked.endswith("who ?\nassistant\n")  # the prompt's last token predicts the answer's first
    last, size = np.flatnonzero(weights)[-1], int((data["segments"][0] > 0).sum())
    behind = np.setdiff1d(tokens[last + 1 : size], tokens[: last + 1])
    moved = np.abs(np.asarray(gradients["embed"]["embedding"])).max(1)
    assert not moved[behind].any()
    blank = data | {"weights": np.zeros_like(data["weights"])}
    nothing = kit.gradients(task, model, params, blank)[1]
    assert not any(np.asarray(leaf).any() for leaf in tree.flatten(nothing).values())


def test_packed_conversations_and_padding_change_nothing(kit, pieces):
    task, model = Instruct(template=CHATML), kit.model("rotary", pieces, head=HEAD)
    records = [{"messages": SHORT}, {"messages": say(user="it ?", assistant="is lazy")}]
    packed = kit.batch(task, records, pieces, 100, size=2)
    longest = max(len(each["tokens"]) for each in examples(kit, task, pieces, *records))
    apart = kit.batch(task, records, pieces, longest)
    assert (packed["segments"].max(), len(apart["tokens"])) == (2, 2)
    kit.assert_equal_sums(task, model, kit.random_params(model), packed, apart)


def test_answers_are_learnt(kit, pieces):
    task, model = Instruct(template=CHATML), kit.model("rotary", pieces, head=HEAD)
    data = kit.batch(task, [{"messages": TALK}, {"messages": SHORT}], pieces, 90)
    assert kit.overfit(task, model, data, steps=40)[1] < 0.1


def test_problems_and_metrics(kit, pieces):
    config = kit.model("learned", pieces, head=HEAD).config
    assert Instruct().problems(config, 64) == []
    assert len(Instruct(prompt="question").problems(config, 65)) == 2
    assert any(
        "model.encoder is set" in line
        for line in Instruct().problems(kit.model("encoder", pieces, head=HEAD).config, 9)
    )
    values = Instruct().metrics({"loss": (4.0, 2.0), "accuracy": (1.0, 2.0)}, 100)
    assert values == {"loss": 2.0, "accuracy": 0.5, "perplexity": pytest.approx(math.exp(2))}
