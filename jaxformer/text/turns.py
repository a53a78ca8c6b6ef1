"""Prompts, answers and whole conversations as ids: what a chat template writes, and where in it the answers stand."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.text.chat import render
from jaxformer.text.offsets import offsets
from jaxformer.text.tokenizer import Tokenizer

NAME = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")  # what may be the name of a special token
MARKED = re.compile("\ufdd0([0-9]+)\ufdd1")  # the id of one; Unicode gives these characters to no text

Messages = Sequence[Mapping[str, Any]]
Write = Callable[[Messages, bool], str]
"""(messages, whether the beginning of an answer is to follow) -> their text."""


def is_conversation(value: Any) -> bool:
    """Whether this is a list of messages, at least one."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(each, Mapping) and {"role", "content"} <= each.keys() for each in value)
    )


def writer(tokenizer: Tokenizer, template: str) -> Write:
    """How a chat template writes messages, so that `encode` gives the template's special tokens for themselves."""
    template = marked(tokenizer, template)
    names = {f"{role}_token": marked(tokenizer, tokenizer.piece(id)) for role, id in tokenizer.specials.items()}
    return lambda messages, ask: render(template, messages, ask, **names)


Span = tuple[int, int]
Conversation = tuple[list[int], list[Span]]
"""Ids, and where among them each answer stands that is to be learned."""


def conversations(tokenizer: Tokenizer, write: Write, messages: Messages) -> Iterator[Conversation]:
    """The messages as one conversation with all its answers.

    An answer is what `write` puts behind the messages before it and the beginning of an answer, down to the token
    that ends the turn. Where a turn reads otherwise once more follow, as where a template drops what was thought in
    earlier turns, each answer is a conversation of its own, with the turns before it as they then read.

    Raises ValueError where an answer does not begin as `write` lets answers begin.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    after = [write(messages[: i + 1], False) for i in turns]
    before = [opening(write(messages[:i], True), text, i) for i, text in zip(turns, after, strict=True)]
    whole, encoded = after[-1], [encode(tokenizer, text) for text in after]
    ids = encoded[-1]
    if all(map(whole.startswith, (*before, *after))) and all(ids[: len(each)] == each for each in encoded):
        starts = [begin(tokenizer, ids, whole, text) for text in before]
        yield ids, [(a, end(tokenizer, ids, a, len(each))) for a, each in zip(starts, encoded, strict=True)]
        return
    for opened, closed, ids in zip(before, after, encoded, strict=True):
        start = begin(tokenizer, ids, closed, opened)
        yield ids, [(start, end(tokenizer, ids, start, len(ids)))]


def opening(asked: str, text: str, turn: int) -> str:
    """What comes before an answer: `asked` as far as `text` begins with it, which may lack of the spaces at its end:
    templates often leave one more. Raises ValueError where it lacks anything else.
    """
    sizes = range(len(asked), len(asked.rstrip()) - 1, -1)
    opened = next((asked[:size] for size in sizes if text.startswith(asked[:size])), None)
    if opened is None:
        raise ValueError(
            f"the chat template writes message {turn} so that it does not begin as answers begin: expected"
            f" {asked[-40:]!r} before it, found {text[max(0, len(asked) - 40) : len(asked) + 40]!r}"
        )
    return opened


def begin(tokenizer: Tokenizer, ids: Sequence[int], text: str, opened: str) -> int:
    """How many of a text's ids come before what follows its beginning `opened`.

    Those of `opened` itself, which a model is given to go on from; where a token lies across its end, the tokens
    that end within it.
    """
    before = encode(tokenizer, opened)
    if ids[: len(before)] == before:
        return len(before)
    stops = list[int]()
    for at, part, special in parts(text):
        spans = [(0, len(part))] if special is not None else offsets(tokenizer, part)[1]
        stops += [at + stop for _, stop in spans]
    return bisect_right(stops, len(opened))


def end(tokenizer: Tokenizer, ids: Sequence[int], start: int, stop: int) -> int:
    """Where an answer ends: behind its last special token if only spaces follow, else at `stop`."""
    last = next((i for i in range(stop - 1, start - 1, -1) if not tokenizer.decode([ids[i]])), None)
    return stop if last is None or tokenizer.decode(ids[last + 1 : stop]).strip() else last + 1


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which the special tokens that `marked` marked stand for themselves."""
    found = list[int]()
    for _, part, special in parts(text):
        found += tokenizer.encode(part) if special is None else [special]
    return found


def parts(text: str) -> Iterator[tuple[int, str, int | None]]:
    """(where it starts, the part, None) of a text, and (..., the id) of each special token that is marked in it."""
    at = 0
    for match in MARKED.finditer(text):
        if match.start() > at:
            yield at, text[at : match.start()], None
        yield match.start(), match[0], int(match[1])
        at = match.end()
    if at < len(text):
        yield at, text[at:], None


def marked(tokenizer: Tokenizer, text: str) -> str:
    """A template, or a token's name, in which the names of special tokens are marked that `tokenizer.encode` would
    take for text. In a conversation's own words they stay text.
    """

    def mark(match: re.Match[str]) -> str:
        name, id = match[0], tokenizer.id(match[0])
        is_text = id is None or tokenizer.decode([id]) or tokenizer.encode(name) == [id]
        return name if is_text else f"\ufdd0{id}\ufdd1"

    return NAME.sub(mark, text)


def begun(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """A text's ids to go on from, behind what the tokenizer puts before one, or the start token where all is empty.

    What it puts behind a text would end it. Raises ValueError where nothing is there to go on from.
    """
    mark = -1  # no token
    before = (around := tokenizer.template([mark])[0])[: around.index(mark)]
    if found := [*before, *ids]:
        return found
    if tokenizer.bos is None:
        raise ValueError("a prompt is empty, and this tokenizer has no start token")
    return [tokenizer.bos]


def ended(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """A text's ids int32 with the tokenizer's special tokens, and an eos at the end."""
    ids = tokenizer.template(tokenizer.encode(text))[0]
    if tokenizer.eos is not None and ids[-1:] != [tokenizer.eos]:
        ids = [*ids, tokenizer.eos]
    return np.asarray(ids, np.int32)
