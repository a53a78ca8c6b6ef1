"""Chat templates: messages to the text that a model was trained to read.

A template is a program in Jinja's language that comes with the weights, so it runs in a sandbox: it sees the plain
data given to it and nothing of Python behind it.
"""

import copy
import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from jaxformer.text.special import CHAT
from jaxformer.text.tokenizer import Tokenizer

NAME = "<chat template>"


def prompt(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
) -> str:
    """The text of `messages` by the tokenizer's own template, which finds its special tokens by name (bos_token ...).

    `tokenizer.encode` of it gives the model's input: the template writes the special tokens, so add no others.
    Raises a ValueError where the tokenizer has no chat template, and as `render`.
    """
    if tokenizer.chat_template is None:
        raise ValueError("this tokenizer has no chat template: render one of your own, or write the prompt as text")
    tokens = {f"{role}_token": tokenizer.piece(id) for role, id in tokenizer.specials.items()}
    return render(tokenizer.chat_template, messages, add_generation_prompt, **(tokens | variables))


def render(
    template: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False, **variables: Any
) -> str:
    """The text that `template` makes of `messages`, each a mapping with "role" and, mostly, "content".

    `add_generation_prompt` asks for the beginning of the answer. `variables` (tools, documents, bos_token and what
    else the template knows) are plain data, as the messages: None, texts, numbers, lists and mappings of them.

    Raises TypeError for other data, and a ValueError that names the template's line where the template is broken,
    raises an error itself, or reaches for what the sandbox withholds.
    """
    known = {"tools": None, "documents": None, **variables, "messages": messages}
    known["add_generation_prompt"] = add_generation_prompt
    known = {name: _plain(value, name) for name, value in known.items()}
    try:
        return _compiled(template).render(known)
    except SecurityError as error:
        raise ValueError(f"chat template{_line(error)}: refused: {error}") from None
    except TemplateError as error:
        raise ValueError(f"chat template{_line(error)}: {error.message or type(error).__name__}") from None
    except Exception as error:  # whatever an operation of the template raises
        raise ValueError(f"chat template{_line(error)}: {type(error).__name__}: {error}") from error


def taught(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """The tokenizer with this chat template for its own, also where it is saved; itself where `template` is empty."""
    if not template:
        return tokenizer
    other: Any = copy.copy(tokenizer)
    other.chat_template = template
    if (published := getattr(other, "published", None)) is not None:
        other.published = replace(published, files={**published.files, CHAT: template.encode()})
    return other


class Sandbox(ImmutableSandboxedEnvironment):
    """Templates that reach for an attribute of Python fail there and then, not when they first use it."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """What an attribute gives that the sandbox withholds."""
        raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}")


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}: marks what the model is to say; it renders as what it holds."""

    tags = {"generation"}  # noqa: RUF012 as its base has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Names(Namespace):
    """A template's `namespace`: sets no attribute that Python might read."""

    def __init__(self, given: Any = (), /, **names: Any) -> None:
        super().__init__()
        for name, value in dict(given, **names).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"it sets {name!r} of a namespace")
        super().__setitem__(name, value)


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": Names,
        "dict": lambda *args, **names: dict(*args, **names),
    }
    return Template.from_code(environment, environment.compile(template, NAME, NAME), environment.globals)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes what HTML may not hold."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _line(error: Exception) -> str:
    """Where in the template the error is, to follow its name; empty where it has no line."""
    line = getattr(error, "lineno", None)
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == NAME:
            line = frame.lineno
    return "" if line is None else f", line {line}"


def _plain(value: Any, place: str) -> Any:
    """A copy of plain data; subclasses become what they are beneath, for they may carry methods."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int.__int__(value) if isinstance(value, int) else float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key, place): _plain(each, f"{place}[{key!r}]") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{place}[{i}]") for i, each in enumerate(value)]
    raise TypeError(f"{place} of a chat template: expected plain data, found {type(value).__name__}")
