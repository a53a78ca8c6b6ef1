"""Exchanges: what was asked and what was answered, from records to rows of ids. P prompt, A answer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxformer.text.rows import Row, padded
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.text.turns import begin, begun, conversations, encode, ended, is_conversation, writer

Asked = str | Sequence[Mapping[str, Any]]
"""A text that is to go on, or be answered by a model with an encoder; or messages, which an assistant answers."""


class Exchange(NamedTuple):
    """A prompt's ids and its answer's, int32 [P] and [A], with the token that ends the answer."""

    prompt: np.ndarray
    answer: np.ndarray


def prompt_of(tokenizer: Tokenizer, asked: Asked, *, encoder: bool, template: str = "") -> np.ndarray:
    """The ids int32 [P] that a model is given to answer.

    Messages are written by the chat template, `template` or else the tokenizer's own, with the beginning of an answer
    behind them; a text stands between the tokenizer's special tokens. `encoder`: an encoder reads it, up to its eos;
    else the answer goes on from it, and an empty text is the start token. Raises ValueError for what is neither,
    where there is no chat template, and for an empty text where there is no start token.
    """
    if not isinstance(asked, str):
        ids = encode(tokenizer, _write(tokenizer, template)(_messages(asked), True))
        return np.array([*ids, *_eos(tokenizer)] if encoder else ids, np.int32)
    if encoder:
        return ended(tokenizer, asked)
    return np.array(begun(tokenizer, tokenizer.encode(asked)), np.int32)


def exchange(
    tokenizer: Tokenizer, asked: Asked, answer: str, *, encoder: bool, end: bool = True, template: str = ""
) -> Exchange:
    """A prompt and its answer; `end`: an eos ends an answer that follows a text, messages end as their template says.

    Where a decoder alone reads a text and its answer, both are written as one: no token is put between that the
    whole would not hold. Raises ValueError as `prompt_of`.
    """
    last = _eos(tokenizer) if end else []
    if not isinstance(asked, str) and not encoder:
        whole = [*_messages(asked), {"role": "assistant", "content": answer}]
        *_, (ids, spans) = conversations(tokenizer, _write(tokenizer, template), whole)
        start, stop = spans[-1]
        return Exchange(np.array(ids[:start], np.int32), np.array(ids[start:stop], np.int32))
    prompt = prompt_of(tokenizer, asked, encoder=encoder, template=template)
    if encoder:
        return Exchange(prompt, np.array([*tokenizer.encode(answer), *last], np.int32))
    assert isinstance(asked, str)
    ids = tokenizer.encode(asked + answer)
    start = begin(tokenizer, ids, asked + answer, asked)
    return Exchange(np.array(begun(tokenizer, ids[:start]), np.int32), np.array([*ids[start:], *last], np.int32))


def row(found: Exchange, prompt_length: int, answer_length: int) -> Row:
    """int32 "tokens" and bool "mask" [P], the prompt with its padding left; int32 "answers" and bool "written" [A].

    The end of an answer that is too long is cut. Raises ValueError for a prompt that is too long.
    """
    prompt, answer = found
    if len(prompt) > prompt_length:
        raise ValueError(f"a prompt of {len(prompt)} tokens: a row has room for {prompt_length}")
    pad = prompt_length - len(prompt)
    tokens = np.concatenate([np.zeros(pad, np.int32), prompt.astype(np.int32)])
    written = np.arange(answer_length) < len(answer)
    return {
        "tokens": tokens,
        "mask": np.arange(prompt_length) >= pad,
        "answers": padded(answer, answer_length),
        "written": written,
    }


def _write(tokenizer: Tokenizer, template: str) -> Any:
    if not (template or tokenizer.chat_template):
        raise ValueError("a prompt is a conversation, and this tokenizer has no chat template: give task.template")
    return writer(tokenizer, template or tokenizer.chat_template or "")


def _messages(asked: Asked) -> list[Mapping[str, Any]]:
    if not is_conversation(asked):
        raise ValueError(f'expected a text, or messages with "role" and "content", found {asked!r:.100}')
    return [*asked]


def _eos(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.eos is None else [tokenizer.eos]
