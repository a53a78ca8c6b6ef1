"""What a task is, and what tasks share. B batch, T length, D width, P places that are predicted."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxformer import tree
from jaxformer.config import Card, LearnedConfig, ModelConfig
from jaxformer.losses import Metrics, cross_entropy
from jaxformer.nn.model import Model, Output
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import Rows
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn

ADAPTER = "lora"
"""Where an adapter stands among the trainable parameters, and the name of its collection."""
LOAD_BALANCE, ROUTER_Z = 1e-2, 1e-3
"""What a mixture's routers weigh in the loss (Fedus et al., 2021, section 2.2; Zoph et al., 2022, section 3.2)."""


class Task(Protocol):
    """What a model is trained to do: which examples a document gives, how they stand in rows, and the loss.

    A frozen dataclass whose fields are its options. A task may also be one of `Predicting`, `Naming` and `Besides`.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields of a record that it reads; () where documents are plain text."""
        ...

    @property
    def head(self) -> str | None:
        """The head that the model needs, as `from_pretrained` takes it; None leaves the one that there is."""
        ...

    @property
    def specials(self) -> tuple[str, ...]:
        """Special tokens that a tokenizer trained for this task must hold."""
        ...

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """Every reason why a model of this architecture cannot be trained so, on rows of this length."""
        ...

    def fields(self, vocab: int) -> dict[str, int]:
        """What an example holds: for each field how many values it may take."""
        ...

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """The examples of a document, 1-D arrays of whole numbers. Raises ValueError for one that it cannot use."""
        ...

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """How the examples stand in rows; a seed of None is for evaluation: each once, in order."""
        ...

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key) -> (loss, metrics); dropout acts where `train`."""
        ...

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """What an evaluation reports of the sums of a whole set, whose text has `size` bytes (0: not known)."""
        ...


@runtime_checkable
class Predicting(Protocol):
    """What a task also has that can be judged by what its model says."""

    def predict(
        self,
        model: Model,
        variables: Any,
        tokenizer: Tokenizer,
        documents: Iterable[Document],
        rows: int,
        length: int,
    ) -> list[Any]:
        """A prediction for each document, computed `rows` at a time; `held` is what `model.apply` takes."""
        ...

    def score(self, predictions: list[Any], documents: Sequence[Document]) -> dict[str, float]:
        """How good they are, beside what the documents say."""
        ...


@runtime_checkable
class Naming(Protocol):
    """What a task also has that names what its model says."""

    def card(self, card: Card) -> Card:
        """The model's card with these names."""
        ...


@runtime_checkable
class Besides(Protocol):
    """What a task also has whose loss reads more than the model, such as a teacher."""

    def frozen(self, model: Model, tokenizer: Tokenizer | None, mesh: Mesh) -> Mapping[str, Any]:
        """What that is, on the mesh: it stands in `frozen` of the loss."""
        ...


def variables(params: Mapping[str, Any], frozen: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `model.apply` takes: trained leaves and those that do not move, put together.

    An adapter's leaves stand in `params` under ADAPTER; `frozen` may hold more leaves of "params" and of ADAPTER.
    """
    fixed, trained = frozen or {}, dict(params)
    adapter = trained.pop(ADAPTER, {})
    found = {"params": tree.merge(trained, fixed.get("params", {}))}
    both = tree.merge(adapter, fixed.get(ADAPTER, {}))
    return found | ({ADAPTER: both} if both else {})


def run(model: Model, held: Mapping[str, Any], key: Array, train: bool, **given: Any) -> Output:
    """The forward pass without logits, with dropout where `train`."""
    rngs = {"dropout": key} if train else None
    return model.apply(held, logits=False, deterministic=not train, rngs=rngs, **given)  # type: ignore[return-value]


def vocabulary_loss(
    model: Model, held: Mapping[str, Any], out: Output, targets: Array, weights: Array, train: bool, **smooth: float
) -> tuple[Array, Metrics]:
    """Cross-entropy over the vocabulary of out.hidden [B, T, D] with targets int [B, T], and what routers add."""
    hidden = model.apply(held, out.hidden, method="transform")
    unembed = model.apply(held, method="unembedding")
    loss, metrics = cross_entropy(hidden, unembed, targets, weights, **(smooth if train else {}))  # type: ignore[arg-type]
    return with_aux(loss, out, train), metrics


def with_aux(loss: Array, out: Output, train: bool) -> Array:
    """The loss, and in training what the routers of experts add to it."""
    if out.aux is None or not train:
        return loss
    return loss + LOAD_BALANCE * out.aux.load_balance + ROUTER_Z * out.aux.router_z


def at_places(out: Output, places: Array) -> Output:
    """The output with the hidden vectors at `places` int [B, P] alone: [B, P, D]."""
    return dataclasses.replace(out, hidden=jnp.take_along_axis(out.hidden, places[:, :, None], axis=1))


def means(sums: Mapping[str, tuple[Any, float]]) -> dict[str, float]:
    """Each sum over its weight; those of weight 0 are left out."""
    return {name: float(total) / weight for name, (total, weight) in sums.items() if weight and np.ndim(total) == 0}


def needs(model: ModelConfig, *, encoder: bool, decoder: bool, head: bool = True) -> list[str]:
    """What is wrong with the stacks of a model that must have just these, and logits where `head`."""
    found = []
    for name, wanted in (("encoder", encoder), ("decoder", decoder)):
        if (getattr(model, name) is not None) != wanted:
            is_now, with_it = ("missing", "with") if wanted else ("set", "without")
            found.append(f"model.{name} is {is_now}: the task needs a model {with_it} one")
    if head and model.head is None:
        found.append("model.head is None: the task predicts tokens, it needs a head over the vocabulary")
    return found


def too_long(model: ModelConfig, encoder: int = 0, decoder: int = 0) -> list[str]:
    """What is wrong with rows of these lengths, for each stack with learned positions."""
    found = []
    for name, length in (("encoder", encoder), ("decoder", decoder)):
        stack = getattr(model, name)
        positions = None if stack is None else stack.input.positions
        if isinstance(positions, LearnedConfig) and length > positions.length:
            found.append(f"rows of {length} tokens: the model's {name} has learned positions for {positions.length}")
    return found


def decoder_start(model: Model) -> int:
    """The token that a decoder begins with. Raises ValueError where the model's card names none."""
    found = model.card.special("decoder_start") or model.card.special("bos")
    if not found:
        raise ValueError("this model's card names no decoder_start_token_id: its decoder does not know how to begin")
    return found[0]
