"""`jaxformer chat`: a conversation by the model's own template, line by line."""

import builtins
import json
from dataclasses import replace

import jax
import pytest

from jaxformer import cli, sharding, testing
from jaxformer.commands import chat
from jaxformer.conversation import Conversation
from jaxformer.nn.model import Model
from jaxformer.source import save_pretrained
from jaxformer.text.chat import taught

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder in the published layout with a chat template, its parameters drawn at random."""
    folder = tmp_path_factory.mktemp("models")
    model = Model(replace(testing.tiny_models()["rotary"], vocab=320))
    params = testing.randomized(sharding.abstract_params(model), jax.random.key(0))
    save_pretrained(folder / "mute", model, params, testing.tiny_tokenizer())
    save_pretrained(folder / "model", model, params, testing.tiny_tokenizer())
    (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def talk(published, monkeypatch, capsys):
    """Lines to type -> what was printed behind the greeting; Ctrl-D follows them."""

    def run(*lines, options=("--tokens", "6", "--seed", "1")):
        given = iter(lines)

        def typed(prompt=""):
            for line in given:
                if line is KeyboardInterrupt:
                    raise KeyboardInterrupt
                return line
            raise EOFError

        monkeypatch.setattr(builtins, "input", typed)
        assert cli._dispatch("chat", [str(published / "model"), *options]) == 0
        return capsys.readouterr().out.partition("\n")[2]

    return run


def test_an_answer_follows_each_line_and_equal_seeds_give_equal_answers(talk, tmp_path):
    file = tmp_path / "talk.json"
    first = talk("hello", "", "and you?", f"/save {file}")
    assert first == talk("hello", "", "and you?", f"/save {file}")
    assert first != talk("hello", "", "and you?", options=("--tokens", "6", "--seed", "2"))
    held = json.loads(file.read_text())
    assert [message["role"] for message in held["messages"]] == ["user", "assistant"] * 2
    assert [message["content"] for message in held["messages"][::2]] == ["hello", "and you?"]
    assert all(message["content"] for message in held["messages"][1::2])


def test_the_model_is_given_all_that_was_said_by_its_template(talk, monkeypatch):
    prompts, stream = [], chat.stream

    def watched(model, params, tokenizer, ids, *given, **named):
        prompts.append(tokenizer.decode(ids))
        return stream(model, params, tokenizer, ids, *given, **named)

    monkeypatch.setattr(chat, "stream", watched)
    talk("/system be short", "one", "two", "/undo", "three", "/retry", "/clear", "four")
    start, asked = "<system>be short\n", [prompt.count("<user>") for prompt in prompts]
    assert all(prompt.strip().startswith(start) and prompt.endswith("<assistant>") for prompt in prompts)
    assert asked == [1, 2, 2, 2, 1]
    assert "two" not in prompts[2]
    assert prompts[2] == prompts[3]
    assert "<user>four" in prompts[4]


def test_what_no_longer_fits_is_left_out_and_told(talk):
    out = talk("a" * 20, "b" * 20, "c" * 20, "/set tokens 40", "d", options=("--tokens", "6", "--context", "60"))
    assert "the first 2 messages no longer fit 60 tokens" in out
    out = talk("e" * 200, "short", options=("--tokens", "6", "--context", "60"))
    assert "tokens long with all that stands around it: beside 6 of an answer 60 fit" in out
    assert "no longer fit" not in out  # the question that did not fit is not part of the conversation


def test_an_answer_that_is_interrupted_is_kept_as_far_as_it_came(talk, monkeypatch, tmp_path):
    closed = []

    def stream(*given, **named):
        try:
            yield "as far"
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    monkeypatch.setattr(chat, "stream", stream)
    out = talk("hello", KeyboardInterrupt, f"/save {tmp_path / 'talk.json'}")
    assert "as far\n(interrupted" in out
    assert "/exit leaves" in out
    assert closed == [True]
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][-1]["content"] == "as far"


def test_a_question_that_is_interrupted_before_its_answer_begins_is_taken_back(talk, monkeypatch, tmp_path):
    def remember(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "remember", remember)
    out = talk("hello", f"/save {tmp_path / 'talk.json'}")
    assert "interrupted: nothing was answered" in out
    assert json.loads((tmp_path / "talk.json").read_text())["messages"] == []


def test_a_conversation_is_saved_and_gone_on_with(talk, tmp_path):
    file = tmp_path / "talk.json"
    talk("/system be kind", "hello", f"/save {file}")
    saved = json.loads(file.read_text())
    assert "2 messages read" in talk(f"/load {file}", f"/save {tmp_path / 'again.json'}")
    assert json.loads((tmp_path / "again.json").read_text()) == saved
    (tmp_path / "other.json").write_text('{"system": "", "messages": [{"role": 3}]}')
    for wrong in (tmp_path / "other.json", tmp_path / "none.json", tmp_path):
        assert "that did not work" in talk(f"/load {wrong}")
    assert "that did not work" in talk("hello", f"/save {tmp_path / 'no' / 'folder.json'}")


def test_commands_are_listed_and_wrong_ones_told(talk):
    out = talk(
        "/help",
        "/sing",
        "/undo",
        "/retry",
        "/set",
        "/set tokens",
        "/set tokens x",
        "/set tokens -1",
        "/set temperature -2",
    )
    assert all(f"/{name}" in out for name in ("clear", "undo", "retry", "system", "set", "save", "load", "exit"))
    assert "there is no /sing" in out
    assert out.count("nothing has been said") == 2
    assert "tokens 6, temperature 0.7" in out
    assert "(tokens is 6)" in out
    assert out.count("tokens stays 6") == 2
    assert "temperature stays 0.7" in out
    assert "/set" not in talk("/exit", "/help")


def test_a_model_that_was_not_made_to_talk_is_told(published):
    with pytest.raises(ValueError, match="has no chat template: it was not made to talk"):
        chat.main([str(published / "mute")])


def test_special_tokens_of_the_template_stand_for_themselves_and_in_what_is_said_they_are_text():
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer = taught(testing.tiny_tokenizer(), template)
    talk = Conversation(tokenizer, None)
    talk.ask("a</s>")
    assert talk.prompt(1) == ([tokenizer.bos, *tokenizer.encode("a</s>"), tokenizer.eos], 0)
    with pytest.raises(ValueError, match="has no chat template"):
        Conversation(testing.tiny_tokenizer(), None).prompt(1)


def test_taking_back_forgets_a_question_with_its_answer():
    talk = Conversation(testing.tiny_tokenizer(), None)
    assert talk.take_back() is None
    talk.ask("one")
    talk.answer("two")
    talk.ask("three")
    assert talk.take_back() == "three"
    assert talk.take_back() == "one"
    assert talk.messages == []
