"""Rollouts: answers that a policy draws, and what they are worth. B answers, P prompt, A answer."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax import Array

from jaxformer.align.exchange import Asked, Exchange, row
from jaxformer.align.rewards import Judges, Record
from jaxformer.generation import Sample, generate
from jaxformer.nn.model import Model
from jaxformer.objective import ADAPTER
from jaxformer.text.index import stack
from jaxformer.text.rows import Row
from jaxformer.text.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Prompt:
    """A prompt's ids int32 [P], and the record that it is of."""

    ids: np.ndarray
    asked: Asked
    record: Record


@dataclass
class Rollout:
    """Answers, a prompt's side by side."""

    rows: Batch
    """tokens, mask [B, P], answers, written [B, A] as in answers.py; rewards, weights, ended [B]; drawn [B, A], what
    the sampler says of each token's log-probability."""
    texts: list[str]
    rewards: dict[str, np.ndarray]
    """What each reward says, by its name [B]."""
    prompts: Sequence[Prompt]
    """Those that were answered."""
    seconds: dict[str, float] = field(default_factory=dict)
    """"rollout" and "reward"."""

    @property
    def group(self) -> int:
        """Answers to each prompt."""
        return len(self.texts) // len(self.prompts)

    @property
    def telling(self) -> np.ndarray:
        """Bool [prompts]: whether the answers to a prompt differ in reward."""
        kinds = self.rows["rewards"].reshape(-1, self.group)
        return kinds.max(1) > kinds.min(1)

    def values(self) -> dict[str, tuple[float, float]]:
        """Sums over answers and their weight: the reward, and each part of it; tokens; how many have ended; and where
        a prompt has several, how many of them are to prompts that are telling.
        """
        weights = self.rows["weights"]
        length = self.rows["written"].sum(1)
        found = {"reward": self.rows["rewards"], "answer_tokens": length, "ended": self.rows["ended"]}
        found |= {f"reward/{name}": said for name, said in self.rewards.items()}
        found |= {"telling": np.repeat(self.telling, self.group)} if self.group > 1 else {}
        return {name: (float((value * weights).sum()), float(weights.sum())) for name, value in found.items()}

    def of(self, places: np.ndarray) -> "Rollout":
        """The answers to some of the prompts, by their places int [N]."""
        some = (places[:, None] * self.group + np.arange(self.group)).reshape(-1)
        rows, rewards = ({name: x[some] for name, x in each.items()} for each in (self.rows, self.rewards))
        return Rollout(rows, [self.texts[i] for i in some], rewards, [self.prompts[i] for i in places], self.seconds)


def joined(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts, one behind the other, and how long they took together."""
    rows, rewards, seconds = ([getattr(each, name) for each in parts] for name in ("rows", "rewards", "seconds"))
    end_to_end = lambda each: {name: np.concatenate([part[name] for part in each]) for name in each[0]}
    texts = [text for each in parts for text in each.texts]
    prompts = [prompt for each in parts for prompt in each.prompts]
    spent = {name: sum(part[name] for part in seconds) for name in seconds[0]}
    return Rollout(end_to_end(rows), texts, end_to_end(rewards), prompts, spent)


class Roller:
    """Draws answers by the compiled generator, with the parameters as they are, and has them judged."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, judges: Judges, prompt_length: int, answer_length: int
    ) -> None:
        self.model, self.tokenizer, self.judges = model, tokenizer, judges
        self.prompt_length, self.answer_length = prompt_length, answer_length
        self.eos = model.card.special("eos") or (() if tokenizer.eos is None else (tokenizer.eos,))

    def __call__(
        self,
        held: Mapping[str, Any],
        prompts: Sequence[Prompt],
        weights: np.ndarray,
        group: int,
        temperature: float,
        key: Array,
    ) -> Rollout:
        """`group` answers to each prompt, at a temperature (0: the likeliest tokens).

        held: what `model.apply` takes; weights [prompts], 0 for those that only fill a batch up.
        """
        begun = time.perf_counter()
        drawn = generate(
            self.model,
            held["params"],
            [prompt.ids.tolist() for prompt in prompts],
            self.answer_length,
            strategy=Sample(temperature),
            eos=self.eos,
            samples=group,
            key=key,
            adapter=held.get(ADAPTER),
        )
        asked = [prompt for prompt in prompts for _ in range(group)]
        answers = [tokens[:size] for tokens, size in zip(drawn.tokens, drawn.lengths, strict=True)]
        texts = [self.tokenizer.decode(ids.tolist()) for ids in answers]
        judged = time.perf_counter()
        total, each = self.judges([p.asked for p in asked], texts, [p.record for p in asked])
        made = [self._row(prompt.ids, ids) for prompt, ids in zip(asked, answers, strict=True)]
        rows = stack(made) | {
            "drawn": drawn.scores,
            "rewards": total,
            "weights": np.repeat(weights.astype(np.float32), group),
            "ended": np.array([len(ids) > 0 and ids[-1] in self.eos for ids in answers]),
        }
        seconds = {"rollout": judged - begun, "reward": time.perf_counter() - judged}
        return Rollout(rows, texts, each, prompts, seconds)

    def _row(self, prompt: np.ndarray, answer: np.ndarray) -> Row:
        return row(Exchange(prompt, answer), self.prompt_length, self.answer_length)
