"""Prefer the better of two answers, without rewards or rollouts (DPO and its kin). B pairs, P prompt, A answer."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxformer.align import answers, preference
from jaxformer.align.exchange import Exchange, row
from jaxformer.align.pairs import NUMBERS, SIDES, Pairs, bits, fitting, real
from jaxformer.config import ModelConfig
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import FrozenModel, beginning, computed, means, needs, too_long, variables, with_aux
from jaxformer.source import from_pretrained
from jaxformer.text.index import stack
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn

WITHOUT_REFERENCE = ("simpo", "orpo")


@dataclass(frozen=True)
class Prefer(Pairs):
    """Direct preference optimisation and its kin: the better of two answers becomes likelier than the worse one,
    measured against a reference, which is the model that training begins with unless told otherwise.
    """

    kind: Literal["sigmoid", "ipo", "hinge", "kto", "simpo", "orpo"] = "sigmoid"
    """The loss, see preference.py. sigmoid is DPO. kto takes both answers by themselves; simpo and orpo compare with
    no reference."""
    beta: float = 0.1
    """How strictly the policy is held to its reference; of orpo the weight lambda of the odds ratio."""
    label_smoothing: float = 0.0
    """Share of pairs whose labels are taken to be wrong; "sigmoid" alone."""
    gamma: float = 1.0
    """How far simpo wants both answers apart."""
    mean: bool = False
    """An answer's log-probability is the mean over its tokens, not their sum; always so in simpo and orpo."""
    likelihood: float = 0.0
    """Weight of the chosen answer's negative log-likelihood, in nats a token, added to the loss; 1 in orpo."""
    answer_length: int = 128
    """Tokens of an answer that are read; of a row the rest is for the prompt, with an encoder all of it."""
    reference: str = ""
    """The model to compare with: whatever from_pretrained reads. Empty: what training begins with."""
    reference_columns: tuple[str, str] | None = None
    """Fields with the log-probabilities that a reference gave the chosen and the rejected answer, computed beforehand
    by `reference_log_probs`; None: they are computed in each step."""

    head: ClassVar[None] = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Prompt and answers, and what a reference said of them."""
        return super().columns + (self.reference_columns or ())

    @property
    def anchored(self) -> bool:
        """Whether the first parameters are the reference."""
        return not (self.reference or self.reference_columns or self.kind in WITHOUT_REFERENCE)

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a decoder, with or without an encoder, with positions for a row."""
        room = length if self.encoder else length - self.answer_length
        longest = self.answer_length if self.encoder else length
        found = needs(model, encoder=self.encoder, decoder=True)
        found += too_long(model, encoder=length, decoder=longest)
        positive = ("beta", "answer_length")
        found += [
            f"task.{name} is {getattr(self, name)}: make it above 0" for name in positive if getattr(self, name) <= 0
        ]
        if room < 1:
            found.append(f"task.answer_length is {self.answer_length}: rows of {length} leave no room for prompts")
        if not 0 <= self.label_smoothing < 0.5 or (self.label_smoothing and self.kind != "sigmoid"):
            found.append(f'task.label_smoothing is {self.label_smoothing}: at least 0, below 0.5, and for "sigmoid"')
        if self.likelihood < 0:
            found.append(f"task.likelihood is {self.likelihood}: make it at least 0")
        if self.reference and self.reference_columns:
            found.append("task.reference and task.reference_columns: give one, or neither")
        if self.kind == "kto" and self.reference_columns:
            found.append('task.reference_columns: "kto" compares answers to other prompts too: give task.reference')
        return found

    def frozen(self, model: Model, tokenizer: Tokenizer | None, mesh: Mesh) -> dict[str, Any]:
        """{"reference": FrozenModel} on the mesh, where one is named. Raises ValueError where it is no such."""
        if not self.reference:
            return {}
        found, params, its_tokenizer = from_pretrained(self.reference, mesh=mesh)
        wrong = needs(found.config, encoder=self.encoder, decoder=True)
        same = its_tokenizer is None or tokenizer is None or its_tokenizer.fingerprint() == tokenizer.fingerprint()
        if found.config.vocab != model.config.vocab or not same:
            wrong.append("its tokens are not the policy's")
        if wrong:
            listed = "\n".join(f"  - {line}" for line in wrong)
            raise ValueError(f"task.reference {self.reference} cannot be compared with this model:\n{listed}")
        return {"reference": FrozenModel(params, found)}

    def fields(self, vocab: int) -> dict[str, int]:
        """Those of pairs, and what a reference said of each answer."""
        return super().fields(vocab) | (dict.fromkeys(SIDES, NUMBERS) if self.reference_columns else {})

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """Those of pairs."""
        for example in super().examples(document, tokenizer):
            for side, column in zip(SIDES, self.reference_columns or (), strict=False):
                value = document.record[column]
                if not isinstance(value, int | float):
                    raise ValueError(f"{document.source}: {column}: expected a number, found {value!r:.80}")
                example[side] = bits(value)
            yield example

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """A pair a row: tokens, mask int, bool [2, P], answers, written int, bool [2, A], weights (); and `reference`
        float32 [2], where it is read.

        Pairs whose prompt is too long are left out, and it is logged how many. Raises ValueError where none is left.
        """
        room = length if self.encoder else length - self.answer_length
        kept = fitting(
            np.max([store.lengths[f"{side}_prompt"] for side in SIDES], axis=0), room, "pairs", "tokens of a prompt"
        )

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            return self.row(examples[0], length)

        return BinRows(store, seed, make, kept)

    def row(self, example: Example, length: int) -> Row:
        """One row, of one example. Raises ValueError where its prompt is too long."""
        room = length if self.encoder else length - self.answer_length
        sides = [Exchange(example[f"{side}_prompt"], example[f"{side}_answer"]) for side in SIDES]
        both = stack([row(side, room, self.answer_length) for side in sides])
        if self.reference_columns:
            both["reference"] = np.stack([real(example[side]) for side in SIDES])
        return both | {"weights": np.ones((), np.float32)}

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key), batch as `rows` makes it; dropout acts on the policy where `train`.

        The metrics are of pairs: "loss"; "accuracy", how often the chosen answer gained more than the rejected one;
        "margin", "chosen_reward", "rejected_reward", what they gained times beta; "chosen_log_prob",
        "rejected_log_prob" of whole answers, in nats.
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            held, weights = variables(params, frozen), batch["weights"].astype(jnp.float32)
            flat = {name: _flat(batch[name]) for name in ("tokens", "mask", "answers", "written")}
            out = answers.read(model, held, key, train, flat)
            tokens = answers.log_probs(model, held, out, flat["answers"])
            total, mean = (f(tokens, flat["written"]).reshape(-1, 2) for f in (answers.summed, answers.averaged))
            ours = mean if self.mean else total
            theirs = self._reference(model, params, frozen, batch, flat)
            gained = ours - theirs
            if self.kind == "kto":
                baseline = self._baseline(model, params, frozen, flat, weights)
                good = jnp.array([True, False])
                each = preference.kto(gained, good, baseline, self.beta).mean(-1)
            else:
                each = self._loss(gained[:, 0] - gained[:, 1], mean)
            weight_of_text = 1.0 if self.kind == "orpo" else self.likelihood
            each -= weight_of_text * mean[:, 0]
            rewards = self.beta * (mean if self.kind in WITHOUT_REFERENCE else gained)
            values = {
                "loss": each,
                "accuracy": rewards[:, 0] > rewards[:, 1],
                "margin": rewards[:, 0] - rewards[:, 1],
            }
            values |= {f"{side}_reward": rewards[:, i] for i, side in enumerate(SIDES)}
            values |= {f"{side}_log_prob": total[:, i] for i, side in enumerate(SIDES)}
            metrics = {name: ((value * weights).sum(), weights.sum()) for name, value in values.items()}
            return with_aux(metrics["loss"][0] / jnp.maximum(weights.sum(), 1e-9), out, train), metrics

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The means of all metrics over pairs."""
        return means(sums)

    def _loss(self, margin: Array, mean: Array) -> Array:
        """Of each pair [B], of those losses that take its margin or its means [B, 2]."""
        if self.kind == "simpo":
            return preference.simpo(mean[:, 0], mean[:, 1], self.beta, self.gamma)
        if self.kind == "orpo":
            return self.beta * preference.odds_ratio(mean[:, 0], mean[:, 1])
        if self.kind == "sigmoid":
            return preference.sigmoid(margin, self.beta, self.label_smoothing)
        return {"ipo": preference.ipo, "hinge": preference.hinge}[self.kind](margin, self.beta)

    def _reference(self, model: Model, params: Any, frozen: Any, batch: Any, flat: Any) -> Array:
        """What the reference gives each answer [B, 2]; it has no gradient."""
        if self.kind in WITHOUT_REFERENCE:
            return jnp.zeros((len(batch["weights"]), 2), jnp.float32)
        if self.reference_columns:
            return batch["reference"]
        return self.given(*_compared(model, params, frozen), flat).reshape(-1, 2)

    def given(self, model: Model, held: Any, flat: Mapping[str, Array]) -> Array:
        """The log-probability [B] of each answer, without dropout or gradient."""
        out = answers.read(model, held, jax.random.key(0), False, flat)
        tokens = answers.log_probs(model, held, out, flat["answers"])
        found = (answers.averaged if self.mean else answers.summed)(tokens, flat["written"])
        return jax.lax.stop_gradient(found)

    def _baseline(self, model: Model, params: Any, frozen: Any, flat: Mapping[str, Array], weights: Array) -> Array:
        """How far the policy is from its reference, on answers to the prompts of the pairs before theirs."""
        crossed = dict(flat)
        for name in ("answers", "written"):
            crossed[name] = jnp.roll(flat[name], 2, axis=0)
        ours = self.given(model, variables(params, frozen), crossed)
        theirs = self.given(*_compared(model, params, frozen), crossed)
        real = weights * jnp.roll(weights, 1)  # rows that fill a batch up answer nothing
        return preference.kto_baseline(ours - theirs, jnp.repeat(real, 2))


def reference_log_probs(
    task: Prefer,
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    rows: int,
    length: int,
) -> np.ndarray:
    """What a model gives the answers of each record, for `reference_columns`: float32 [N, 2], chosen and rejected.

    In nats, the sum over tokens, or their mean where task.mean; `rows` records are computed at a time. The task, and
    `length`, must be those of the training. Raises ValueError for records that make no row.
    """
    plain = dataclasses.replace(task, reference_columns=None)
    made = [plain.row(each, length) for document in documents for each in plain.examples(document, tokenizer)]

    def both(held: Any, batch: Mapping[str, Array]) -> Array:
        flat = {name: _flat(batch[name]) for name in ("tokens", "mask", "answers", "written")}
        return plain.given(model, held, flat).reshape(-1, 2)

    return np.stack(computed(both, {"params": params}, made, rows))


def _compared(model: Model, params: Any, frozen: Any) -> tuple[Model, Any]:
    """The reference: (its model, what `apply` takes)."""
    named = (frozen or {}).get("reference")
    return (model, beginning(params, frozen)) if named is None else (named.model, {"params": named.params})


def _flat(x: Array) -> Array:
    """[B, 2, ...] -> [2 B, ...]."""
    return x.reshape(-1, *x.shape[2:])
