"""Learning from a policy's own answers: GRPO, REINFORCE leave-one-out, PPO. B answers, P prompt, A answer.

A step is one rollout and the updates that are made of it (learner.py): here is what is read, what an answer's tokens
are held to be worth, and the loss.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer.align import advantage, answers, policy, rewards
from jaxformer.align.exchange import Asked, prompt_of
from jaxformer.align.pairs import fitting
from jaxformer.align.policy import Reduction
from jaxformer.align.rewards import AnyReward, Record
from jaxformer.align.rollout import Prompt
from jaxformer.config import ExtraHeadConfig, ModelConfig
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import beginning, means, needs, too_long, variables, with_aux
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn

VALUE = "value"
Held = Mapping[str, Any]
Batch = Mapping[str, Array]


@dataclass(frozen=True)
class Online:
    """What all of them share. `rows` of an experiment are prompts, `group` answers are drawn to each."""

    rewards: tuple[AnyReward, ...] = ()
    """What is rewarded: the weighted sum."""
    prompt: str = "prompt"
    """Field of a record with the prompt: a text, or messages with "role" and "content"."""
    prefix: str = ""
    """What stands before each prompt that is a text, as in Seq2Seq."""
    given: tuple[str, ...] = ()
    """Further fields of a record, for functions that reward."""
    template: str = ""
    """Chat template in place of the tokenizer's own."""
    encoder: bool = False
    """The model has an encoder, which reads the prompt by itself."""
    answer_length: int = 64
    """Tokens of an answer at most; of a row the rest is for the prompt, with an encoder all of it."""
    group: int = 8
    """Answers to each prompt."""
    temperature: float = 1.0
    """At which answers are drawn; the policy is what it then is."""
    held_out_temperature: float = 0.0
    """At which answers to held-out prompts are drawn; 0: the likeliest tokens."""
    epochs: int = 1
    """How often the answers of a step are learned from."""
    minibatches: int = 1
    """Updates of an epoch, each from an even share of the answers."""
    low: float = 0.2
    """A token's likelihood counts down to 1 - low times what it was when it was drawn."""
    high: float = 0.2
    """And up to 1 + high times."""
    reduction: Reduction = "answer"
    """What a loss is a mean over, see policy.reduced."""
    beta: float = 0.0
    """Weight of the divergence from the model that training began with."""

    head: ClassVar[None] = None
    heads: ClassVar[tuple[ExtraHeadConfig, ...]] = ()
    specials: ClassVar[tuple[str, ...]] = ()
    estimate: ClassVar[str] = "k3"

    @property
    def columns(self) -> tuple[str, ...]:
        """The prompt, and what rewards read."""
        return self.prompt, *self.given

    @property
    def anchored(self) -> bool:
        """Whether the model that training began with is read."""
        return self.beta > 0

    @property
    def updates(self) -> int:
        """Of a step."""
        return self.epochs * self.minibatches

    @property
    def rounds(self) -> int:
        """Rollouts of a step at most: it is given so many times the experiment's `rows` of prompts."""
        return 1

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a decoder, with or without an encoder, with positions for a row; and rewards."""
        longest = self.answer_length if self.encoder else length
        found = needs(model, encoder=self.encoder, decoder=True) + too_long(model, encoder=length, decoder=longest)
        positive = ("answer_length", "group", "temperature", "epochs", "minibatches", "low", "high")
        values = {name: getattr(self, name) for name in positive}
        found += [f"task.{name} is {value}: it must be above zero" for name, value in values.items() if value <= 0]
        if self.room(length) < 1:
            found.append(f"task.answer_length is {self.answer_length}: rows of {length} leave no room for prompts")
        if self.held_out_temperature < 0:
            found.append(f"task.held_out_temperature is {self.held_out_temperature}: make it at least 0")
        if self.beta < 0:
            found.append(f"task.beta is {self.beta}: make it at least 0")
        return found + rewards.problems(self.rewards)

    def room(self, length: int) -> int:
        """Tokens of a prompt."""
        return length if self.encoder else length - self.answer_length

    def fields(self, vocab: int) -> dict[str, int]:
        """A prompt's ids, and its record as bytes."""
        return {"prompt": vocab, "record": 256}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A prompt. Raises ValueError for a record that holds none."""
        assert tokenizer is not None
        try:
            asked = self.asked(document.record)
            ids = prompt_of(tokenizer, asked, encoder=self.encoder, template=self.template)
        except ValueError as error:
            raise ValueError(f"{document.source}: {error}") from None
        yield {"prompt": ids, "record": np.frombuffer(json.dumps(document.record).encode(), np.uint8)}

    def asked(self, record: Record) -> Asked:
        """The prompt of a record."""
        found: Asked = record[self.prompt]
        return self.prefix + found if isinstance(found, str) else found

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """A prompt a row: `prompt`, a Prompt, or 0 where it only fills a batch up, and `weights` ().

        Prompts that are too long are left out, and it is logged how many. Raises ValueError where none is left.
        """

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            record = json.loads(examples[0]["record"].astype(np.uint8).tobytes())
            box = np.empty((), object)
            box[()] = Prompt(np.asarray(examples[0]["prompt"], np.int32), self.asked(record), record)
            return {"prompt": box, "weights": np.ones((), np.float32)}

        return BinRows(store, seed, make, fitting(store.lengths["prompt"], self.room(length), "prompts", "tokens"))

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key); dropout acts where `train`.

        batch: tokens, mask [B, P], answers, written [B, A], weights [B]; and as `recollected` and `credited` add.
        """

        def loss_fn(params: Any, frozen: Any, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            held, written, weights = variables(params, frozen), batch["written"], batch["weights"]
            out = answers.read(model, held, key, train, batch)
            new = answers.log_probs(model, held, out, batch["answers"], temperature=self.temperature)
            ratio = policy.log_ratios(new, batch["old"], written, whole=self.whole)
            each, clipped = policy.clipped(ratio, batch["advantages"], written, low=self.low, high=self.high)
            each += self.penalty(new, batch) + self.expected(out, batch)
            total, weight = policy.reduced(each, written, weights, self.reduction)
            there = written * weights[:, None]
            metrics: Metrics = {
                "loss": (total, weight),
                "clipped": ((clipped * there).sum(), there.sum()),
                "ratio_apart": ((jnp.abs(jnp.expm1(ratio)) * there).sum(), there.sum()),
            }
            return with_aux(total / jnp.maximum(weight, 1e-9), out, train), metrics

        return loss_fn

    def recollected(self, model: Model, params: Any, frozen: Any, batch: Batch) -> dict[str, Array]:
        """What the loss compares with, by the trainer's own forward pass without dropout: `old` [B, A], each token's
        log-probability as it was drawn; `reference` [B, A], where that is read; `plain` [B, A], at temperature 1.
        """
        held, said = variables(params, frozen), batch["answers"]
        out = answers.read(model, held, jax.random.key(0), False, batch)
        old = answers.log_probs(model, held, out, said, temperature=self.temperature)
        plain = old if self.temperature == 1 else answers.log_probs(model, held, out, said)
        found = {"old": old, "plain": plain} | self.values(out)
        if self.anchored:
            first = beginning(params, frozen)
            read = answers.read(model, first, jax.random.key(0), False, batch)
            found["reference"] = answers.log_probs(model, first, read, said, temperature=self.temperature)
        return found

    def credited(self, batch: Batch, coefficient: Array) -> dict[str, Array]:
        """`advantages` [B, A] or [B, 1] from `rewards` [B], and what else the loss wants; `weights` [B].

        coefficient []: what the divergence weighs where it is part of the reward.
        """
        raise NotImplementedError

    def penalty(self, new: Array, batch: Batch) -> Array | float:
        """What a token's divergence adds to its loss."""
        return 0.0

    def expected(self, out: Any, batch: Batch) -> Array | float:
        """What a value head's error adds to a token's loss."""
        return 0.0

    def values(self, out: Any) -> dict[str, Array]:
        """What a value head says before each token."""
        return {}

    @property
    def whole(self) -> bool:
        """Whether a ratio is one of whole answers."""
        return False

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """Means."""
        return means(sums)

    def divergence(self, batch: Batch) -> Array:
        """Log p - log ref of each token [B, A], 0 where nothing is written or no reference is read."""
        if "reference" not in batch:
            return jnp.zeros_like(batch["old"])
        return jnp.where(batch["written"], batch["old"] - batch["reference"], 0.0)


@dataclass(frozen=True)
class GRPO(Online):
    """Group relative policy optimisation (Shao et al., 2024): an answer is worth what it gains over the others to its
    prompt. The corrections that came later are options; each is off as the paper has it.
    """

    scale: bool = True
    """Gains are divided by their standard deviation; False: Dr. GRPO (Liu et al., 2025)."""
    sequence: bool = False
    """One ratio for a whole answer: GSPO (Zheng et al., 2025)."""
    telling: bool = False
    """Prompts whose answers all gain the same do not count (dynamic sampling: Yu et al., 2025, section 3.2)."""
    resample: int = 0
    """Further rollouts of a step at most, until there are `rows` prompts that count. The step has its own prompts for
    them, `rows` each: those that are not needed are passed over."""

    @property
    def whole(self) -> bool:
        """Whether a ratio is one of whole answers."""
        return self.sequence

    @property
    def rounds(self) -> int:
        """Rollouts of a step at most."""
        return 1 + self.resample

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """Those of all, a group of two at least, and further rollouts only where there is a filter."""
        found = super().problems(model, length) + grouped(self.group)
        if self.resample < 0 or (self.resample and not self.telling):
            found.append(f"task.resample is {self.resample}: at least 0, and above it with task.telling alone")
        return found

    def credited(self, batch: Batch, coefficient: Array) -> dict[str, Array]:
        """See Online."""
        gained = advantage.group_relative(batch["rewards"], self.group, scale=self.scale)
        weights = batch["weights"]
        if self.telling:
            weights = weights * advantage.telling(batch["rewards"], self.group)
        return {"advantages": gained[:, None], "weights": weights}

    def penalty(self, new: Array, batch: Batch) -> Array | float:
        """The k3 estimate of the divergence, with its gradient (equation 4)."""
        if not self.anchored:
            return 0.0
        apart = jnp.where(batch["written"], new - batch["reference"], 0.0)
        return self.beta * advantage.KL["k3"](apart)


@dataclass(frozen=True)
class RLOO(Online):
    """REINFORCE leave-one-out (Ahmadian et al., 2024): an answer is worth what it gains over the mean of the others,
    the divergence from the beginning taken off its reward.
    """

    group: int = 4
    """Answers to each prompt."""
    beta: float = 0.05
    """Weight of the divergence, in nats an answer, in the reward."""
    reduction: Reduction = "constant"
    """What a loss is a mean over, see policy.reduced."""

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """Those of all, and a group of two at least."""
        return super().problems(model, length) + grouped(self.group)

    def credited(self, batch: Batch, coefficient: Array) -> dict[str, Array]:
        """See Online."""
        worth = batch["rewards"] - coefficient * self.divergence(batch).sum(1)
        return {"advantages": advantage.leave_one_out(worth, self.group)[:, None]}


@dataclass(frozen=True)
class PPO(Online):
    """Proximal policy optimisation (Schulman et al., 2017; of language models Ziegler et al., 2019, Ouyang et al.,
    2022): a value head says what is to be expected at each token, a token is worth what comes beyond that.
    """

    group: int = 1
    """Answers to each prompt."""
    epochs: int = 4
    """How often the answers of a step are learned from."""
    reduction: Reduction = "token"
    """What a loss is a mean over, see policy.reduced."""
    beta: float = 0.05
    """Weight of the divergence, in nats a token, in the reward; where `target` is set, the first one."""
    target: float | None = None
    """The divergence, in nats an answer, that beta is moved to hold (Ziegler et al., section 2.2); None: it stays."""
    horizon: float = 10_000.0
    """Answers over which beta is moved."""
    discount: float = 1.0
    """What a reward is worth a token later."""
    decay: float = 0.95
    """Lambda of generalized advantages: 1 sums up what came, 0 trusts the value head."""
    value_weight: float = 0.1
    """Weight of the value head's error."""
    value_clip: float | None = 0.2
    """How far a value may move from its old one; None: as far as it wants."""
    whiten: bool = True
    """Advantages are brought to mean 0 and deviation 1 over the tokens of a step."""

    heads: ClassVar[tuple[ExtraHeadConfig, ...]] = (ExtraHeadConfig(VALUE, 1, reads="tokens"),)

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """Those of all, and numbers in their range."""
        found = super().problems(model, length)
        if self.target is not None and (self.target <= 0 or self.beta <= 0 or self.horizon <= 0):
            found.append("task.target: it, beta and horizon must be above zero for beta to be moved")
        bounds = {"discount": self.discount, "decay": self.decay}
        return found + [f"task.{name} is {x}: make it 0 to 1" for name, x in bounds.items() if not 0 <= x <= 1]

    def credited(self, batch: Batch, coefficient: Array) -> dict[str, Array]:
        """See Online."""
        written = batch["written"] & (batch["weights"][:, None] > 0)
        each = advantage.token_rewards(batch["rewards"], coefficient * self.divergence(batch), written)
        gained, returns = advantage.generalized(
            each, batch["old_values"], written, discount=self.discount, decay=self.decay
        )
        gained = advantage.whitened(gained, written) if self.whiten else gained
        return {"advantages": gained, "returns": returns}

    def expected(self, out: Any, batch: Batch) -> Array | float:
        """See Online."""
        new = out.extra[VALUE][..., 0]
        parts = batch["old_values"], batch["returns"], batch["written"]
        return self.value_weight * policy.value_loss(new, *parts, clip=self.value_clip)

    def values(self, out: Any) -> dict[str, Array]:
        """See Online."""
        return {"old_values": out.extra[VALUE][..., 0]}


def grouped(group: int) -> list[str]:
    """What is wrong with a group whose answers are compared with each other."""
    return [f"task.group is {group}: an answer is compared with others to its prompt, give at least 2"] * (group < 2)
