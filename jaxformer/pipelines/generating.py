"""What pipelines share that write text: how much, by which strategy, and what the checkpoint says of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import Array

from jaxformer.config import ModelConfig
from jaxformer.generation import (
    BadWords,
    Beam,
    Greedy,
    MinLength,
    MinNewTokens,
    NoRepeatNgram,
    Processor,
    RepetitionPenalty,
    Sample,
    Strategy,
)
from jaxformer.nn.model import Model
from jaxformer.objective import needs, too_long
from jaxformer.pipelines.base import Options, Pipeline, least
from jaxformer.pipelines.forward import filled_up
from jaxformer.pipelines.progress import tracked
from jaxformer.tasks.seq2seq import new_ids

USUAL = 256
"""New tokens at most where neither options nor the checkpoint say how many."""


@dataclass(frozen=True)
class WritingOptions(Options):
    """Options of pipelines that write text."""

    max_new_tokens: int | None = None
    """New tokens at most; None: as the checkpoint says, else 256, at most what the model has positions for."""
    strategy: Strategy | Beam | None = None
    """jaxformer.generation.Greedy, Sample or Beam; None: what the checkpoint's defaults describe, else Greedy."""
    num_return_sequences: int = 1
    """Texts for each input; Greedy gives equal ones."""
    key: Array | None = None
    """A jax key, for equal samples at every call; None draws a fresh one."""

    def problems(self) -> list[str]:
        """What is wrong with them."""
        found = super().problems() + least("num_return_sequences", self.num_return_sequences, 1)
        if self.max_new_tokens is not None:
            found += least("max_new_tokens", self.max_new_tokens, 1)
        if self.strategy is not None and not hasattr(self.strategy, "checked"):
            found.append(f"strategy is {self.strategy!r}: give Greedy(), Sample(...) or Beam(...)")
        return found


class Writing(Pipeline):
    """A pipeline whose model writes text."""

    options: Any
    encoder = False

    def lacks(self, config: ModelConfig) -> list[str]:
        """See Pipeline."""
        return needs(config, encoder=self.encoder, decoder=True)

    @property
    def defaults(self) -> dict[str, Any]:
        """What the checkpoint says of generation."""
        return defaults(self.model, self.task)

    def written(
        self,
        prompts: Sequence[np.ndarray],
        asked: WritingOptions,
        processors: Sequence[Processor] = (),
        ends: Sequence[int] = (),
    ) -> list[list[list[int]]]:
        """The new ids of each prompt, `num_return_sequences` times; with these processors beside the strategy's, and
        ended by these ids too.
        """
        if not prompts:
            return []
        said, config = self.defaults, self.model.config
        longest = 1 if self.encoder else max(map(len, prompts))
        most = asked.max_new_tokens or usual(said, longest)
        while asked.max_new_tokens is None and most > 1 and too_long(config, decoder=longest + most):
            most -= 1
        return new_ids(
            self.model,
            self.params,
            prompts,
            filled_up(len(prompts), asked.batch_size),
            most,
            asked.num_return_sequences,
            track=tracked,
            strategy=beside(asked.strategy or strategy_of(said), processors),
            eos=[*(self.model.card.special("eos") or some(self.tokenizer.eos)), *ends],
            key=asked.key,
        )


def some(id: int | None) -> list[int]:
    """It, where it is one."""
    return [] if id is None else [id]


def beside(strategy: Any, processors: Sequence[Processor]) -> Any:
    """The strategy with further processors."""
    if not processors:
        return strategy
    if hasattr(strategy, "base"):
        return strategy.replace(base=beside(strategy.base, processors))
    return strategy.replace(processors=(*strategy.processors, *processors))


def defaults(model: Model, task: str) -> dict[str, Any]:
    """What the checkpoint says of generation: generation_config.json, where there is none config.json; and on top
    what that says of this task.
    """
    of_tasks = model.card.config.get("task_specific_params") or {}
    return dict(model.card.generation or model.card.config) | dict(of_tasks.get(task) or {})


def usual(said: Mapping[str, Any], prompt: int) -> int:
    """How many new tokens a checkpoint asks for behind a prompt of so many."""
    if said.get("max_new_tokens"):
        return int(said["max_new_tokens"])
    length = said.get("max_length")
    return max(int(length) - prompt, 1) if length and length != 20 else USUAL  # 20 is every config's own default


def strategy_of(said: Mapping[str, Any]) -> Strategy | Beam:
    """The strategy that these entries of a generation_config.json describe."""
    value = lambda name, usual: usual if said.get(name) is None else said[name]
    steps: list[Processor] = []
    if value("repetition_penalty", 1.0) != 1.0:
        steps.append(RepetitionPenalty(said["repetition_penalty"]))
    if value("no_repeat_ngram_size", 0):
        steps.append(NoRepeatNgram(said["no_repeat_ngram_size"]))
    if value("bad_words_ids", ()):
        steps.append(BadWords(said["bad_words_ids"]))
    if value("min_length", 0):
        steps.append(MinLength(said["min_length"]))
    if value("min_new_tokens", 0):
        steps.append(MinNewTokens(said["min_new_tokens"]))
    if value("do_sample", False):
        narrow = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
        return Sample(**{name: value(name, usual) for name, usual in narrow.items()}, processors=steps)
    if value("num_beams", 1) > 1:
        rules = value("length_penalty", 1.0), value("early_stopping", False)
        grouped = value("num_beam_groups", 1), value("diversity_penalty", 0.5)
        return Beam(said["num_beams"], *rules, steps, *grouped)
    return Greedy(steps)
