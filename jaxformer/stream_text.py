"""Text as it is produced: `jaxformer.stream`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jax import Array

from jaxformer.generation import Greedy, Past, Strategy, stream_tokens
from jaxformer.nn.model import Model
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.text.turns import begun

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no whole character, or none yet."""


def stream(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    max_new_tokens: int = 256,
    strategy: Strategy = Greedy(),
    eos: int | Sequence[int] | None = None,
    key: Array | None = None,
    adapter: Any = None,
    prefix: bool = False,
    past: Past | None = None,
    stop: str | Sequence[str] = (),
) -> Iterator[str]:
    """Give what follows the prompt, in pieces of whole characters.

    `prompt`: a text, behind what the tokenizer puts before one (an empty one becomes the start token); or ids.
    `eos`: None takes the ids of the model's card, else the tokenizer's. All else as `generate`.

    Prompt and pieces together are `tokenizer.decode` of the prompt's ids and the new ones, up to the first that is
    complete of the strings in `stop`, and without it: what may be the beginning of one is held back.
    """
    stop = [stop] if isinstance(stop, str) else list(stop)
    if not all(stop):
        raise ValueError(f"stop strings are {stop}: give one character or more in each")
    if isinstance(prompt, str):
        prompt = begun(tokenizer, tokenizer.encode(prompt))
    if eos is None:
        eos = model.card.special("eos") or tuple(id for id in (tokenizer.eos,) if id is not None)
    given = {"strategy": strategy, "eos": eos, "key": key, "adapter": adapter, "prefix": prefix, "past": past}
    new = stream_tokens(model, params, [prompt], max_new_tokens, **given)
    return until(whole_characters(tokenizer, list(prompt), (int(ids[0]) for ids in new)), stop)


def whole_characters(tokenizer: Tokenizer, ids: list[int], new: Iterator[int]) -> Iterator[str]:
    """Yield the text of the new ids behind `ids`, each piece once no later id can change it.

    Decodes from the last piece given out on, not from the start: that piece keeps the space which a tokenizer
    drops at the start of a text.
    """
    start, shown = 0, len(ids)

    def fresh() -> str:
        return tokenizer.decode(ids[start:])[len(tokenizer.decode(ids[start:shown])) :]

    for id in new:
        ids.append(id)
        text = fresh()
        if text and not text.endswith(BROKEN):
            yield text
            start, shown = shown, len(ids)
    if text := fresh():
        yield text


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield the text of `pieces` up to the first of the strings `stop` to be complete, the longest of several.

    Nothing is yielded that may still belong to one; no piece is taken beyond the end.
    """
    held = ""
    for piece in pieces:
        held += piece
        if ends := [(at + len(each), at) for each in stop if (at := held.find(each)) >= 0]:
            if text := held[: min(ends)[1]]:
                yield text
            return
        begun = max((_begun(held, each) for each in stop), default=0)
        if text := held[: len(held) - begun]:
            yield text
        held = held[len(held) - begun :]
    if held:
        yield held


def _begun(text: str, string: str) -> int:
    """How many characters at the end of `text` begin `string`."""
    return next(n for n in range(min(len(text), len(string) - 1), -1, -1) if text.endswith(string[:n]))
