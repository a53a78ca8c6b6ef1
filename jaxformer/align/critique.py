"""Preferences that a chat model makes by itself: it answers, criticizes its answer by a principle, and writes it
anew; the revision is to be preferred (Constitutional AI: Bai et al., 2022, section 3.1).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from jaxformer.align.exchange import prompt_of
from jaxformer.generation import Greedy, Strategy, generate
from jaxformer.nn.model import Model
from jaxformer.text.tokenizer import Tokenizer

Talk = list[dict[str, str]]


@dataclass(frozen=True)
class Principle:
    """What an answer is held against, as two requests to the model that gave it."""

    critique: str
    """Asks what is wrong with the answer."""
    revision: str
    """Asks for the answer without that."""


HARMLESS = Principle(
    "Say briefly how your last answer is hostile, rude, profane, unfair to a group of people, or unsafe to follow.",
    "Write your last answer anew so that it helps as much and is none of that. Give the new answer alone.",
)


def revised(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    principles: Sequence[Principle] = (HARMLESS,),
    *,
    max_new_tokens: int = 128,
    rows: int = 8,
    strategy: Strategy = Greedy(),
    template: str = "",
    key: Array | None = None,
    adapter: Any = None,
) -> Iterator[dict[str, Any]]:
    """For each prompt a record {"prompt": messages, "chosen", "rejected", "critique"}, as `Prefer` and `Reward` read.

    chosen is the revision, rejected the first answer; prompts whose revision is empty or the same are left out.
    Principles take turns. `rows` prompts go on together. `key`: for strategies that draw; None: jax.random.key(0).
    Raises ValueError where there is no chat template or no principle, and as `generate`.
    """
    if not principles:
        raise ValueError("principles is empty: give at least one Principle")
    key = jax.random.key(0) if key is None else key

    def said(talks: Sequence[Talk], key: Array) -> list[str]:
        ids = [prompt_of(tokenizer, talk, encoder=False, template=template).tolist() for talk in talks]
        out = generate(model, params, ids, max_new_tokens, strategy=strategy, key=key, adapter=adapter)
        return [
            tokenizer.decode(tokens[:size].tolist()).strip()
            for tokens, size in zip(out.tokens, out.lengths, strict=True)
        ]

    for first in range(0, len(prompts), rows):
        talks: list[Talk] = [[_message("user", prompt)] for prompt in prompts[first : first + rows]]
        asked = [principles[(first + i) % len(principles)] for i in range(len(talks))]
        given, keys = [[*talk] for talk in talks], jax.random.split(jax.random.fold_in(key, first), 3)
        stages = list[list[str]]()
        for wish, own in zip((None, "critique", "revision"), keys, strict=True):
            if wish is not None:
                for talk, principle in zip(talks, asked, strict=True):
                    talk.append(_message("user", getattr(principle, wish)))
            stages.append(said(talks, own))
            for talk, text in zip(talks, stages[-1], strict=True):
                talk.append(_message("assistant", text))
        for prompt, answer, critique, revision in zip(given, *stages, strict=True):
            if revision and revision != answer and answer:
                yield {"prompt": prompt, "chosen": revision, "rejected": answer, "critique": critique}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
