"""Rewards: what answers are worth, by functions of texts and by reward models, each with its weight.

A function is known by the name under which it is registered, so that an experiment can be written down:

    @reward("ends_politely")
    def ends_politely(prompts, answers, records):
        return [float(answer.endswith("please.")) for answer in answers]
"""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxformer import distributed, scores, sharding
from jaxformer.align.exchange import Asked
from jaxformer.align.reward import HEAD, Reward, read_row
from jaxformer.generation.prompts import bucket
from jaxformer.nn.model import Model
from jaxformer.objective import head_problems, read_off
from jaxformer.sharding import MeshConfig
from jaxformer.source import from_pretrained
from jaxformer.text.index import stack
from jaxformer.text.tokenizer import Tokenizer

Record = Mapping[str, Any]
Function = Callable[[Sequence[Asked], Sequence[str], Sequence[Record]], Sequence[float]]
"""(prompts, answers, the records that the prompts are of) -> a number for each answer. Of many processes the first
alone is asked."""
FUNCTIONS: dict[str, Function] = {}


@dataclass(frozen=True)
class FunctionReward:
    """What a registered function says."""

    name: str
    """The name under which it is registered; "exact", "contains" and "rouge" compare with a record's "target"."""
    weight: float = 1.0
    """It is multiplied by this."""


@dataclass(frozen=True)
class ModelReward:
    """What a reward model says, such as `Reward` trains: a sequence classifier of one label."""

    source: str
    """Whatever from_pretrained reads."""
    weight: float = 1.0
    """It is multiplied by this."""
    length: int = 512
    """Tokens at most that it reads of a prompt and its answer, from their end."""
    rows: int = 16
    """How many it reads at a time."""
    template: str = ""
    """Chat template in place of its tokenizer's own."""
    end: bool = True
    """An answer to a text ends with its tokenizer's eos, as in its training."""
    joined: bool = False
    """An encoder reads prompt and answer as one text, as in its training; see `Reward`."""
    name: str = "model"
    """What the log calls it."""


AnyReward = FunctionReward | ModelReward


def reward(name: str) -> Callable[[Function], Function]:
    """Registers a function under a name, for `FunctionReward`. Raises ValueError where another one has it."""

    def register(function: Function) -> Function:
        place = lambda each: (each.__code__.co_filename, each.__qualname__)
        if (known := FUNCTIONS.get(name)) is not None and place(known) != place(function):
            raise ValueError(f"the name {name!r} is taken by {known.__qualname__} of {place(known)[0]}: take another")
        FUNCTIONS[name] = function
        return function

    return register


def problems(rewards: Sequence[AnyReward]) -> list[str]:
    """What is wrong with them."""
    found = [] if rewards else ["task.rewards is empty: say what is rewarded"]
    for each in rewards:
        if isinstance(each, FunctionReward) and each.name not in FUNCTIONS:
            found.append(
                f"task.rewards: no function is registered as {each.name!r}, there are "
                f"{', '.join(sorted(FUNCTIONS))}: register it with jaxformer.align.reward before; for "
                "`jaxformer evaluate` name the configuration file that does with --config"
            )
        if isinstance(each, ModelReward) and min(each.length, each.rows) < 1:
            found.append(f"task.rewards: length and rows of {each.source} must be above zero")
    names = [each.name for each in rewards]
    if len(names) > len({*names}):
        found.append(f"task.rewards: two are called the same: {', '.join(names)}")
    return found


class Judges:
    """Rewards, ready to be asked: models are loaded, on the mesh, and stay as they are published.

    Raises ValueError for a model that is no reward model.
    """

    def __init__(self, rewards: Sequence[AnyReward], mesh: Mesh | None = None) -> None:
        self.rewards = rewards
        self.asked: list[Any] = [
            _Function(FUNCTIONS[each.name]) if isinstance(each, FunctionReward) else _Model(each, mesh)
            for each in rewards
        ]

    def __call__(
        self, prompts: Sequence[Asked], answers: Sequence[str], records: Sequence[Record]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(the weighted sum float32 [B], what each says by its name [B]).

        Raises ValueError where a function gives another number of rewards, or one that is not finite.
        """
        found: dict[str, np.ndarray] = {}
        for each, ask in zip(self.rewards, self.asked, strict=True):
            said = ask(prompts, answers, records)
            if said.shape != (len(answers),) or not np.isfinite(said).all():
                raise ValueError(
                    f"the reward {each.name!r}: expected {len(answers)} finite numbers, one for each answer, got "
                    f"{said.shape if said.shape != (len(answers),) else said[~np.isfinite(said)][:3]}"
                )
            found[each.name] = said
        total = sum(each.weight * found[each.name] for each in self.rewards)
        return np.asarray(total, np.float32), found


@dataclass(frozen=True)
class _Function:
    """Of several processes the first alone asks it, and tells all: it may say something else each time."""

    function: Function

    def __call__(self, *given: Any) -> np.ndarray:
        return np.asarray(distributed.from_first(lambda: self._asked(*given)), np.float32)

    def _asked(self, *given: Any) -> list[float]:
        with contextlib.ExitStack() as stack:
            if jax.process_count() > 1:  # no other process would compute with this one on the mesh of all
                stack.enter_context(jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])))
            found: list[float] = np.asarray(self.function(*given), np.float32).tolist()
        return found


class _Model:
    """A reward model as a function of texts."""

    def __init__(self, config: ModelReward, mesh: Mesh | None) -> None:
        self.config = config
        self.model, self.params, tokenizer = from_pretrained(config.source, mesh=mesh)
        wrong = head_problems(self.model.config, config.length, HEAD, 1, of_tokens=False)
        if wrong or tokenizer is None:
            listed = "\n".join(f"  - {line}" for line in wrong or ["it has no tokenizer"])
            raise ValueError(f"{config.source} is no reward model:\n{listed}")
        self.tokenizer: Tokenizer = tokenizer
        encoder = self.model.config.encoder is not None
        if config.joined and not encoder:
            raise ValueError(f"{config.source}: joined is for encoders, and this model has none")
        self.reader = Reward(template=config.template, end=config.end, encoder=encoder, joined=config.joined)

    def __call__(self, prompts: Sequence[Asked], answers: Sequence[str], records: Sequence[Record]) -> np.ndarray:
        read = [self.reader.reading(self.tokenizer, *each) for each in zip(prompts, answers, strict=True)]
        found = np.zeros(len(read), np.float32)
        order, size = sorted(range(len(read)), key=lambda i: len(read[i][0])), self.config.rows
        for first in range(0, len(order), size):
            some = order[first : first + size]
            length = min(bucket(max(len(read[i][0]) for i in some)), self.config.length)
            filled = [read_row(*read[i], length) for i in some + some[-1:] * (size - len(some))]
            said = distributed.together(judged, self.model, self.params, stack(filled))
            found[some] = distributed.read(said)[: len(some)]
        return found


@functools.partial(jax.jit, static_argnames="model")
def judged(model: Model, params: Any, batch: Mapping[str, Array]) -> Array:
    """The reward [B] of rows: tokens, token_types, mask [B, T]."""
    return read_off(model, {"params": params}, jax.random.key(0), False, batch, HEAD)[0][:, 0]


def _target(record: Record) -> str:
    target = record.get("target")
    if not isinstance(target, str):
        raise ValueError(f'the record has no text "target" to compare with, only {", ".join(record)}: see task.given')
    return target


@reward("exact")
def exact(prompts: Sequence[Asked], answers: Sequence[str], records: Sequence[Record]) -> list[float]:
    """1 where the answer is the record's "target", but for spaces around it."""
    return [float(said.strip() == _target(record).strip()) for said, record in zip(answers, records, strict=True)]


@reward("contains")
def contains(prompts: Sequence[Asked], answers: Sequence[str], records: Sequence[Record]) -> list[float]:
    """1 where the answer contains the record's "target"."""
    return [float(_target(record).strip() in said) for said, record in zip(answers, records, strict=True)]


@reward("rouge")
def rouge(prompts: Sequence[Asked], answers: Sequence[str], records: Sequence[Record]) -> list[float]:
    """The mean of ROUGE-1, ROUGE-2 and ROUGE-L of the answer beside the record's "target", from 0 to 1."""
    found = [scores.rouge([said], [_target(record)]) for said, record in zip(answers, records, strict=True)]
    return [(each["rouge1"] + each["rouge2"] + each["rougeL"]) / 3 for each in found]


@reward("json")
def is_json(prompts: Sequence[Asked], answers: Sequence[str], records: Sequence[Record]) -> list[float]:
    """1 where the answer is a JSON object that holds the keys which the record lists as "keys", if it lists any."""
    return [float(_holds(said, record.get("keys", ()))) for said, record in zip(answers, records, strict=True)]


def _holds(text: str, keys: Sequence[str]) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and {*keys} <= found.keys()
