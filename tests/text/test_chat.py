"""Chat templates: as the reference renders them, and nothing more than a template may do."""

import datetime
import enum
import re

import numpy as np
import pytest

from jaxformer.text.chat import prompt, render, taught
from jaxformer.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from jaxformer.text.tokenizer_json import JsonTokenizer

CHATML = """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
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
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + strftime_now("%d %b %Y") + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'ipython' or message.role == "tool" %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- endif %}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
INSTRUCTIONS = """\
{%- set user = messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0, seen=[]) %}
{{- bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (ns.index % 2 == 0) and message['role'] != 'system' %}
        {{- raise_exception('roles must take turns: user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'system' %}{% continue %}{% endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if message['role'] == 'user' %}
        {%- if tools and message == user[-1] %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message['content'] + '[/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
TURNS = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{% generation %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endgeneration -%}
{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}
"""
ODD = """\
    {% macro say(who, what) %}{{ who ~ ": " ~ what | upper }}{% endmacro %}
  {# a comment #}
{% set d = dict(a=1, b=messages | length) %}{{ d | tojson }} {{ documents }} {{ tools }} {{ unknown }}
{% for m in messages if m.content %}{{ loop.index }}/{{ loop.length }} {{ say(m.role, m.content) }}
{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}
{{ "%s and {}" | format("x") }} {{ "{0:>5}".format(3) }} {{ messages[0].get("content", "")[:3] }}
{{ [1, 2] | join("-") }} {{ 7 // 2 }} {{ none is none }}
{{ messages | map(attribute="role") | unique | join(",") }} {{ {"é": "<&>'"} | tojson }}
"""
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "instructions": INSTRUCTIONS, "turns": TURNS, "odd": ODD}
SYSTEM = {"role": "system", "content": "  Answer in Ünïcode 🤗.\n"}
TALK = [
    {"role": "user", "content": "Hello <b>you</b> & 'me'"},
    {"role": "assistant", "content": "  Grüße!\n"},
    {"role": "user", "content": "你好"},
]
CALL = {"function": {"name": "weather", "arguments": {"place": "Zürich", "days": 3, "exact": True}}}
CALLED = [
    TALK[0],
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": {"degrees": 21.5, "note": None}},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "q": "<é>"}}}]
CONVERSATIONS = {"talk": TALK, "system": [SYSTEM, *TALK], "short": TALK[:1], "called": CALLED}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TOKENS_BY_ROLE = {"bos": "<s>", "eos": "</s>"}


@pytest.fixture(scope="module")
def tokenizer() -> JsonTokenizer:
    return train_tokenizer(TokenizerConfig("byte_bpe", 300), ["hello"])


@pytest.mark.parity
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_the_reference_renders_them(name, tokenizer):
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer.inner, **TOKENS)
    compared = 0
    for messages in CONVERSATIONS.values():
        for ask in (True, False):
            for tools in (None, TOOLS):
                given = {"add_generation_prompt": ask, "tools": tools, "chat_template": TEMPLATES[name]}
                try:
                    expected = reference.apply_chat_template(messages, tokenize=False, **given)
                except Exception:
                    with pytest.raises(ValueError, match=r"chat template, line \d+"):
                        render(TEMPLATES[name], messages, ask, tools=tools, **TOKENS)
                    continue
                assert render(TEMPLATES[name], messages, ask, tools=tools, **TOKENS) == expected
                compared += 1
    assert compared >= 8


def test_a_tokenizer_renders_its_own_template_with_its_own_tokens(tokenizer, tmp_path):
    mine = JsonTokenizer(tokenizer.inner, TOKENS_BY_ROLE, chat_template=CHATML + "{{ bos_token }}{{ x }}")
    text = prompt(mine, TALK[:1], x=3)
    assert text.startswith("<|im_start|>system\nYou are")
    assert text.endswith("<|im_start|>assistant\n\n<s>3")
    mine.save(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == mine.chat_template
    with pytest.raises(ValueError, match="has no chat template"):
        prompt(tokenizer, TALK)


def test_the_day_is_today():
    assert render("{{ strftime_now('%Y') }}", []) == str(datetime.datetime.now().year)


@pytest.mark.parametrize(
    "reach",
    [
        "{{ ''.__class__ }}",
        "{% set x = ''.__class__ %}",
        "{{ messages['__class__'].__mro__ }}",
        "{{ messages | attr('__class__') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ dict.__init__ }}",
        "{{ ''['__cl' ~ 'ass__'] }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ (messages | list).append(1) }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__html__ = 1 %}",
        "{{ namespace(__call__=1) }}",
        "{{ self.__init__ }}",
    ],
)
def test_a_template_that_reaches_behind_its_data_is_refused(reach):
    with pytest.raises(ValueError, match=r"^chat template, line 3: refused: it (reaches for|sets) '\w+' of a"):
        render(f"a\n\n{reach}", [{"role": "user", "content": ""}])


def test_refusal_names_what_was_reached_for():
    with pytest.raises(ValueError, match=r"^chat template, line 2: refused: it reaches for '__class__' of a str$"):
        render("{{ messages }}\n{{ ''.__class__.__mro__ }}", [])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{% if %}", "line 2: Expected an expression"),
        ("{% for x in y %}\n", "line 1: Unexpected end of template"),
        ("\n\n{{ raise_exception('only user') }}", "line 3: only user"),
        ("\n{{ messages[0].content.x.y }}", "line 2: .* has no attribute 'x'"),
        ("\n{{ 'a' + 1 }}", "line 2: TypeError: can only concatenate"),
        ("{% macro f() %}\n\n{{ 1 // 0 }}{% endmacro %}\n{{ f() }}", "line 3: ZeroDivisionError"),
        ("{% include 'x' %}", "line 1"),
        ("{{ no_such() }}", "line 1: 'no_such' is undefined"),
    ],
)
def test_errors_name_the_line_of_the_template(template, message):
    with pytest.raises(ValueError, match=f"^chat template, {message}"):
        render(template, [{"role": "user", "content": "a"}])


def test_only_plain_data_gets_in():
    class Role(enum.StrEnum):
        USER = "user"

    class Odd(dict):
        def leak(self):
            return "leaked"

    assert render("{{ messages[0].role }}", [{"role": Role.USER}]) == "user"
    assert render("{{ messages[0].leak is defined }}", [Odd(a=(1, 2.5, True, None))]) == "False"
    for value, kind in ((np.zeros(2), "ndarray"), (print, "builtin_function_or_method"), (object(), "object")):
        with pytest.raises(
            TypeError,
            match=re.escape(f"messages[0]['content'] of a chat template: expected plain data, found {kind}"),
        ):
            render("", [{"content": value}])


def test_what_is_given_stays_as_it_was():
    messages = [{"role": "user", "content": ["a"]}]
    render("{% set x = messages[0] %}{{ x }}", messages)
    assert messages == [{"role": "user", "content": ["a"]}]


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_bpe"])
def test_a_template_that_a_tokenizer_is_taught_is_saved_with_it(kind, tmp_path):
    plain = train_tokenizer(TokenizerConfig(kind, 300), ["a text of some words"])
    assert taught(plain, "") is plain
    for number, template in enumerate(("{{ messages }}", "{{ eos_token }}")):
        other = taught(plain, template)  # at first one just trained, then one that was read
        other.save(tmp_path / str(number))
        assert other.chat_template == load_tokenizer(tmp_path / str(number)).chat_template == template
        assert plain.chat_template != template
        plain = load_tokenizer(tmp_path / str(number))
    assert plain.fingerprint() == other.fingerprint()
