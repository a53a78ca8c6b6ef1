"""What a task is, and what tasks share. B batch, T length, D width, P places that are predicted."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.sharding import Mesh

from jaxformer import distributed, tree
from jaxformer.config import Card, ExtraHeadConfig, LearnedConfig, ModelConfig
from jaxformer.losses import Metrics, cross_entropy
from jaxformer.nn.model import Model, Output
from jaxformer.text.index import stack
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import Row, Rows
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn

ADAPTER = "lora"
"""Where an adapter stands among the trainable parameters, and the name of its collection."""
BEGINNING = "beginning"
"""Where the first values of what is trained stand in `frozen`, for tasks that are Anchored."""
LOAD_BALANCE, ROUTER_Z = 1e-2, 1e-3
"""What a mixture's routers weigh in the loss (Fedus et al., 2021, section 2.2; Zoph et al., 2022, section 3.2)."""


@struct.dataclass
class FrozenModel:
    """A model beside the one that is trained, such as a teacher: its parameters are an argument of each step."""

    params: Any
    model: Model = struct.field(pytree_node=False)


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
        """A prediction for each document, computed `rows` at a time; `variables` is what `model.apply` takes.

        Of many processes all call it, with equal documents, and run what it runs; `computed`, `generate` and
        `distributed.read` give arrays that may be spread over them.
        """
        ...

    def score(self, predictions: list[Any], documents: Sequence[Document]) -> dict[str, float]:
        """How good they are, beside what the documents say. Of many processes the first alone is asked."""
        ...


@runtime_checkable
class Naming(Protocol):
    """What a task also has that names what its model says."""

    def card(self, card: Card) -> Card:
        """The model's card with these names."""
        ...


@runtime_checkable
class Talking(Protocol):
    """What a task also has that may write messages in a way of its own."""

    @property
    def template(self) -> str:
        """Chat template in place of the tokenizer's, with which it is then published; empty: the tokenizer's."""
        ...


@runtime_checkable
class Besides(Protocol):
    """What a task also has whose loss reads more than the model, such as a teacher."""

    def frozen(self, model: Model, tokenizer: Tokenizer | None, mesh: Mesh) -> Mapping[str, Any]:
        """What that is, on the mesh: it stands in `frozen` of the loss."""
        ...


@runtime_checkable
class Anchored(Protocol):
    """What a task also has whose loss may compare the model with what training began with; see `beginning`."""

    @property
    def anchored(self) -> bool:
        """Whether it does: then a copy of what is trained is kept, where an adapter does not leave it as it was."""
        ...


@runtime_checkable
class Headed(Protocol):
    """What a task also has that trains heads which help it alone, such as one that foretells rewards."""

    @property
    def heads(self) -> tuple[ExtraHeadConfig, ...]:
        """They are added to the model's, begin at zero, and are not published with it."""
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


def beginning(params: Mapping[str, Any], frozen: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `model.apply` takes to be the model that training began with: that beneath an adapter, or the copy.

    It has no gradient. New heads beside an adapter are as they are now.
    """
    fixed = dict(frozen or {})
    base = fixed.get(BEGINNING, {name: part for name, part in params.items() if name != ADAPTER})
    return jax.lax.stop_gradient({"params": tree.merge(base, fixed.get("params", {}))})


def run(model: Model, held: Mapping[str, Any], key: Array, train: bool, **given: Any) -> Output:
    """The forward pass without logits, with dropout where `train`."""
    rngs = {"dropout": key} if train else None
    return model.apply(held, logits=False, deterministic=not train, rngs=rngs, **given)  # type: ignore[return-value]


def vocabulary_loss(
    model: Model, held: Mapping[str, Any], out: Output, targets: Array, weights: Array, train: bool, **smooth: float
) -> tuple[Array, Metrics]:
    """Cross-entropy over the vocabulary of out.hidden [B, T, D] with targets int [B, T], and what routers add."""
    hidden, unembed = unembedded(model, held, out)
    loss, metrics = cross_entropy(hidden, unembed, targets, weights, **(smooth if train else {}))
    return with_aux(loss, out, train), metrics


def unembedded(model: Model, held: Mapping[str, Any], out: Output) -> tuple[Array, Any]:
    """What a loss over the vocabulary takes of a model: (hidden [B, T, D], unembed)."""
    return model.apply(held, out.hidden, method="transform"), model.apply(held, method="unembedding")  # type: ignore[return-value]


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


def named(card: Card, labels: Sequence[str], **more: Any) -> Card:
    """The card of a model whose head gives these classes, with `more` of its config.json."""
    names = {"id2label": {str(i): label for i, label in enumerate(labels)}}
    numbers = {"label2id": {label: i for i, label in enumerate(labels)}}
    return dataclasses.replace(card, config=card.config | names | numbers | more)


def head_problems(model: ModelConfig, length: int, name: str, outputs: int, of_tokens: bool) -> list[str]:
    """What is wrong with a model that must have the extra head `name`, and positions for rows of this length."""
    found = next((head for head in model.extra if head.name == name), None)
    wanted = f"ExtraHeadConfig({name!r}, {outputs}{'' if of_tokens else ', reads=...'})"
    if found is None:
        wrong = [f"model.extra has no head called {name!r}: give it {wanted}"]
    elif found.outputs != outputs or (found.reads == "tokens") != of_tokens:
        wrong = [f"model.extra: the head {name!r} has {found.outputs} outputs of {found.reads}: expected {wanted}"]
    else:
        wrong = []
    return wrong + too_long(model, encoder=length, decoder=length)


def reading(model: Model, batch: Mapping[str, Array]) -> dict[str, Array]:
    """What the model is called with to read rows: tokens int [B, T], mask bool [B, T], token types if it has such.

    A decoder behind an encoder reads the same text, shifted right (Lewis et al., 2020, section 3).
    """
    given = {"tokens": batch["tokens"], "mask": batch["mask"]}
    encoder, decoder = model.config.encoder, model.config.decoder
    if encoder is not None and decoder is not None:
        shifted = jnp.pad(batch["tokens"][:, :-1], ((0, 0), (1, 0)), constant_values=decoder_start(model))
        return given | {"decoder_tokens": shifted, "decoder_mask": batch["mask"]}
    kinds = getattr(model.config, model.config.main).input.segments
    return given | ({"token_types": jnp.minimum(batch["token_types"], kinds - 1)} if kinds else {})


def read_off(
    model: Model, held: Mapping[str, Any], key: Array, train: bool, batch: Mapping[str, Array], name: str
) -> tuple[Array, Output]:
    """(what the extra head `name` says of rows: float32 [B, T, N] or [B, N], all that the model gives)."""
    out = run(model, held, key, train, **reading(model, batch))
    assert out.extra is not None  # see head_problems
    return out.extra[name], out


def computed(
    function: Callable[[Any, dict[str, Array]], Array], held: Any, rows: Sequence[Row], size: int
) -> list[np.ndarray]:
    """function(held, batch) [size, ...] of all rows, `size` of them in a batch, as one array for each."""
    compiled, found = distributed.begun_together(jax.jit(function)), list[np.ndarray]()
    for start in range(0, len(rows), size):
        some = [*rows[start : start + size]]
        blank = {name: np.zeros_like(values) for name, values in some[0].items()}
        out = compiled(held, stack(some + [blank] * (size - len(some))))
        found += [*distributed.read(out)[: len(some)]]
    return found
