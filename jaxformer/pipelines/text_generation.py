"""Text, or a chat, to what follows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxformer import constrain
from jaxformer.pipelines.base import listed, one_of, positions
from jaxformer.pipelines.generating import Writing, WritingOptions
from jaxformer.text import turns

TAG = "\ufdd2 "  # Unicode gives this character to no text
Chat = list[Mapping[str, Any]]


@dataclass(frozen=True)
class TextOptions(WritingOptions):
    """Options of text-generation."""

    return_full_text: bool = True
    """The prompt, or the chat, comes before what is new; else what is new comes alone."""
    continue_final_message: bool | None = None
    """A chat's last message goes on, in place of an answer to it; None: where it is the assistant's."""
    handle_long_generation: Literal["hole"] | None = None
    """"hole": a prompt that leaves no room for the new tokens loses its beginning; None: it is an error."""
    stop_sequence: str | Sequence[str] = ()
    """A string, or several: what is new ends with the first that is complete, also over the borders of tokens."""

    def problems(self) -> list[str]:
        """What is wrong with them."""
        found = super().problems() + one_of("handle_long_generation", self.handle_long_generation, (None, "hole"))
        stops = [self.stop_sequence] if isinstance(self.stop_sequence, str) else [*self.stop_sequence]
        if not all(isinstance(each, str) and each for each in stops):
            found.append(f"stop_sequence is {self.stop_sequence!r}: give one character or more in each")
        return found


class TextGeneration(Writing):
    """pipeline("text-generation", source)("Once upon") gives [{"generated_text": "Once upon a time"}].

    Of a chat, a list of {"role": ..., "content": ...}, the text is the chat with the answer at its end. A list of
    texts or of chats gives a list of such lists. An empty text begins with the start token.
    """

    task = "text-generation"
    takes = TextOptions
    options: TextOptions

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """See the class."""
        asked = self.asked(options)
        alone = isinstance(inputs, str) or turns.is_conversation(inputs)
        given: list[Any] = [inputs] if alone else listed(inputs, ())[0]
        for i, each in enumerate(given):
            if not isinstance(each, str) and not turns.is_conversation(each):
                raise TypeError(
                    f"{self.task}: expected texts, or chats of {{'role': ..., 'content': ...}}, found as input {i}: "
                    f"{each!r:.60}"
                )
        prompts = [self._prompt(each, asked) for each in given]
        if asked.handle_long_generation and (most := positions(self.model.config)) is not None:
            room = most - (asked.max_new_tokens or 1)
            if room < 1:
                raise ValueError(
                    f"{self.task}: max_new_tokens is {asked.max_new_tokens}, the model has {most} positions"
                )
            prompts = [prompt[-room:] for prompt in prompts]
        ends = [constrain.stop(self.tokenizer, asked.stop_sequence)] if asked.stop_sequence else []
        found = self.written(prompts, asked, ends)
        results = [
            [{"generated_text": self._full(each, self._text(prompt, new, asked), asked)} for new in samples]
            for each, prompt, samples in zip(given, prompts, found, strict=True)
        ]
        return results[0] if alone else results

    def _prompt(self, given: str | Chat, asked: TextOptions) -> np.ndarray:
        """The ids that are continued."""
        tokenizer = self.tokenizer
        if not isinstance(given, str):
            if tokenizer.chat_template is None:
                raise ValueError(f"{self.task}: this tokenizer has no chat template: give a text, not a chat")
            write = turns.writer(tokenizer, tokenizer.chat_template)
            text = prefilled(write, given) if goes_on(given, asked) else write(given, True)
            return np.array(turns.encode(tokenizer, text), np.int32)
        ids = self.template(tokenizer.encode(given))[0] or [id for id in (tokenizer.bos,) if id is not None]
        if not ids:
            raise ValueError(f"{self.task}: a text is empty, and this tokenizer has no start token")
        return np.array(ids, np.int32)

    def _text(self, prompt: np.ndarray, new: Sequence[int], asked: TextOptions) -> str:
        """The text of new ids behind the prompt's: with the space that a tokenizer drops where a text begins."""
        before, both = (self.tokenizer.decode([*prompt.tolist(), *some]) for some in ((), new))
        text = both[len(before) :] if both.startswith(before) else self.tokenizer.decode(new)
        stops = [asked.stop_sequence] if isinstance(asked.stop_sequence, str) else asked.stop_sequence
        return text[: min((at + len(stop) for stop in stops if (at := text.find(stop)) >= 0), default=None)]

    def _full(self, given: str | Chat, new: str, asked: TextOptions) -> Any:
        if not asked.return_full_text:
            return new
        if isinstance(given, str):
            return given + new
        if goes_on(given, asked):
            return [*given[:-1], {"role": given[-1]["role"], "content": given[-1]["content"] + new}]
        return [*given, {"role": "assistant", "content": new}]


def goes_on(chat: Chat, asked: TextOptions) -> bool:
    """Whether the last message is continued."""
    said = asked.continue_final_message
    return chat[-1]["role"] == "assistant" if said is None else said


def prefilled(write: turns.Write, chat: Chat) -> str:
    """The text of a chat as far as its last message's words, without what ends a turn.

    Raises ValueError where the template leaves the message out.
    """
    last = dict(chat[-1])
    text = write([*chat[:-1], last | {"content": last["content"] + TAG}], False)
    at = text.rfind(TAG.strip())
    if at < 0:
        raise ValueError("the chat template does not write the last message: it cannot be continued")
    return text[:at] if text.startswith(TAG, at) else text[:at].rstrip()
