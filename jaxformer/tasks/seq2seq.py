"""Text to text through an encoder and a decoder. B batch, S source length, T target length."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxformer import scores
from jaxformer.config import ModelConfig
from jaxformer.generation import Greedy, generate
from jaxformer.losses import Metrics
from jaxformer.nn.model import Model
from jaxformer.objective import decoder_start, means, needs, run, too_long, variables, vocabulary_loss
from jaxformer.text.pack import bins
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import BinRows, Row, Rows, side_by_side
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.text.turns import ended
from jaxformer.train.step import LossFn


def _signed(name: str, value: scores.Signed) -> dict[str, float]:
    """A score under a name that says how it was computed, without which it compares with nothing."""
    return {f"{name}|{value.signature}": value.score}


Score = Callable[[Sequence[str], Sequence[str]], dict[str, float]]
MEASURES: dict[str, Score] = {
    "bleu": lambda found, wanted: _signed("bleu", scores.bleu(found, wanted)),
    "chrf": lambda found, wanted: _signed("chrf", scores.chrf(found, wanted)),
    "ter": lambda found, wanted: _signed("ter", scores.ter(found, wanted)),
    "rouge": lambda found, wanted: scores.rouge(found, wanted),
    "exact": lambda found, wanted: {"exact": scores.accuracy(found, wanted)},
}
"""What may be said of texts beside those that were wanted."""


@dataclass(frozen=True)
class Seq2Seq:
    """Write the target text, having read the source text (Sutskever et al., 2014; Vaswani et al., 2017).

    Whole pairs are packed into rows, of `length` tokens of source and `target_length` of target.
    """

    source: str = "source"
    """Field of a record that the encoder reads."""
    target: str = "target"
    """Field of a record that the decoder writes."""
    prefix: str = ""
    """Put before each source text, such as "summarize: " (Raffel et al., 2020, section 2.4)."""
    target_length: int = 128
    """Tokens of a target row, and the most that are written for a source."""
    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over the vocabulary (Vaswani et al., 2017, section 5.4)."""
    measures: tuple[Literal["bleu", "chrf", "ter", "rouge", "exact"], ...] = ()
    """What the last evaluation says of greedily written targets."""

    head: ClassVar[None] = None
    specials: ClassVar[tuple[str, ...]] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Source and target."""
        return self.source, self.target

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs an encoder and a decoder, with positions for a row of each."""
        return needs(model, encoder=True, decoder=True) + too_long(model, encoder=length, decoder=self.target_length)

    def fields(self, vocab: int) -> dict[str, int]:
        """source, target."""
        return {"source": vocab, "target": vocab}

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """Both texts with the tokenizer's special tokens around them, an eos at the end in any case."""
        assert tokenizer is not None
        texts = self.prefix + document.record[self.source], document.record[self.target]
        source, target = (ended(tokenizer, text) for text in texts)
        yield {"source": source, "target": target}

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """Pairs side by side, both sides with segments; one that is too long is cut, but for its last token."""
        most = {"source": length, "target": self.target_length}
        together = bins([np.minimum(store.lengths[side], size) for side, size in most.items()], [*most.values()], 0)

        def make(examples: list[Example], random: np.random.Generator) -> Row:
            sources, targets = ([cut(example[side], size) for example in examples] for side, size in most.items())
            return pairs_row(sources, targets, length, self.target_length)

        return BinRows(store, seed, make, together)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key); dropout and smoothing act where `train`.

        batch: tokens, segments, positions int [B, S]; targets, decoder_segments, decoder_positions int [B, T],
        weights [B, T]. The decoder reads the targets shifted right, behind the card's decoder_start token.
        """
        start = decoder_start(model)

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            held, given = variables(params, frozen), dict(batch)
            targets, weights = given.pop("targets"), given.pop("weights")
            given["decoder_tokens"] = shifted(targets, given["decoder_positions"], start)
            out = run(model, held, key, train, **given)
            smooth = {"label_smoothing": self.label_smoothing}
            return vocabulary_loss(model, held, out, targets, weights, train, **smooth)

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """The mean loss in nats a token, and accuracy."""
        return means(sums)

    def predict(
        self, model: Model, held: Any, tokenizer: Tokenizer, documents: Sequence[Document], rows: int, length: int
    ) -> list[str]:
        """The target that is written greedily for each document's source; nothing where no measure is asked for."""
        if not self.measures:
            return []
        sources = [
            cut(ended(tokenizer, self.prefix + document.record[self.source]), length) for document in documents
        ]
        return write(model, held, tokenizer, sources, rows, self.target_length)

    def score(self, predictions: list[str], documents: Sequence[Document]) -> dict[str, float]:
        """The measures, against each document's own target."""
        references = [document.record[self.target] for document in documents]
        found = (MEASURES[measure](predictions, references) for measure in self.measures)
        return {name: value for values in found for name, value in values.items()}


def write(
    model: Model,
    held: Any,
    tokenizer: Tokenizer,
    sources: Sequence[np.ndarray],
    rows: int,
    most: int,
    strategy: Any = Greedy(),
) -> list[str]:
    """What the decoder writes for each source of ids, at most `most` tokens; `rows` of like length at a time."""
    written = new_ids(model, held["params"], sources, rows, most, strategy=strategy, adapter=held.get("lora"))
    return [tokenizer.decode(ids) for (ids,) in written]


def new_ids(
    model: Model,
    params: Any,
    prompts: Sequence[np.ndarray],
    rows: int,
    most: int,
    samples: int = 1,
    track: Callable[[range], Iterable[int]] = iter,
    **given: Any,
) -> list[list[list[int]]]:
    """The new tokens of each prompt's `samples`, without padding; `rows` of like length at a time, which `track` may
    count. `given` is for `generate`; with a key each batch has one of its own.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[list[list[int]]] = [[]] * len(prompts)
    for first in track(range(0, len(order), rows)):
        some = order[first : first + rows]
        filled = [prompts[i].tolist() for i in (*some, *[some[-1]] * (rows - len(some)))]  # one shape: one program
        if first and given.get("key") is not None:
            given["key"] = jax.random.fold_in(given["key"], first)
        out = generate(model, params, filled, most, samples=samples, **given)
        new = [row[:size].tolist() for row, size in zip(out.tokens, out.lengths, strict=True)]
        for place, i in enumerate(some):
            found[i] = new[place * samples : (place + 1) * samples]
    return found


def pairs_row(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], length: int, target_length: int) -> Row:
    """Pairs side by side: int32 tokens, segments, positions [S]; targets, decoder_segments, decoder_positions int32
    and float32 weights [T].
    """
    target = side_by_side(targets, target_length)
    return {
        **side_by_side(sources, length),
        "targets": target["tokens"],
        "decoder_segments": target["segments"],
        "decoder_positions": target["positions"],
        "weights": (target["segments"] > 0).astype(np.float32),
    }


def cut(ids: np.ndarray, length: int) -> np.ndarray:
    """At most `length` ids: of a longer row the last one stays the last."""
    return ids if len(ids) <= length else np.concatenate([ids[: length - 1], ids[-1:]])


def shifted(targets: Array, positions: Array, start: int) -> Array:
    """What a decoder reads to predict targets [B, T]: each token's predecessor; `start` where a segment begins."""
    before = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(positions == 0, start, before)
