"""Text to vectors: one of each token, or the likeness of whole texts. T length, D width."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxformer.config import ModelConfig, Sentences
from jaxformer.pipelines import forward
from jaxformer.pipelines.base import Options, Pipeline, Row, listed


@dataclass(frozen=True)
class FeatureOptions(Options):
    """Options of feature-extraction."""

    truncation: bool = False
    """Texts that are too long lose their end; else they are an error."""
    return_tensors: bool = False
    """Arrays in place of nested lists."""


class FeatureExtraction(Pipeline):
    """pipeline("feature-extraction", source)("A text") gives the last hidden vectors of its tokens, special ones
    included, as nested lists of numbers [1][T][D] (float32 arrays [1, T, D]); a list of texts gives a list of these.
    """

    task = "feature-extraction"
    takes = FeatureOptions
    options: FeatureOptions

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See the class."""
        asked, (texts, alone) = self.asked(options), self.texts(inputs)
        rows = self.rows(texts, cut=asked.truncation)
        run = lambda batch, _: forward.hidden(self.model, self.params, batch)
        made = forward.in_batches(self.model, rows, asked.batch_size, run)
        arrays = [each[None, : len(ids)] for (ids, _), each in zip(rows, made, strict=True)]
        found = arrays if asked.return_tensors else [each.tolist() for each in arrays]
        return found[0] if alone else found


class SentenceSimilarity(Pipeline):
    """pipeline("sentence-similarity", source)("A text", ["Another", "A third"]) gives the cosine of the first text's
    vector with that of each of the others: [0.7, 0.1].

    Also takes a mapping {"source_sentence": ..., "sentences": [...]}, or a list of such, which gives a list of lists.
    Vectors are made as the model's card says (Reimers and Gurevych, 2019, section 3), else as means of the hidden
    ones. Texts that are longer than it says, or than the model reads, lose their end.
    """

    task = "sentence-similarity"

    def lacks(self, config: ModelConfig) -> list[str]:
        """See Pipeline."""
        both = config.encoder is not None and config.decoder is not None
        return ["it has an encoder and a decoder: take one that has either, trained as jaxformer.tasks.Embed"] * both

    def __call__(self, inputs: Any, sentences: Any = None, **options: Any) -> list[Any]:
        """See the class."""
        asked = self.asked(options)
        given, alone = listed(inputs if sentences is None else _mapping(inputs, sentences), Mapping)
        pairs = [self._texts(each, i) for i, each in enumerate(given)]
        flat = [text for first, others in pairs for text in (first, *others)]
        made = iter(self._vectors(flat, asked.batch_size))
        found = []
        for _, others in pairs:
            first = next(made)
            found.append([float(first @ next(made)) for _ in others])
        return found[0] if alone else found

    def _vectors(self, texts: list[str], batch_size: int) -> list[np.ndarray]:
        """A vector of length 1 of each text, float32 [D]."""
        said = self.model.card.sentences or Sentences()
        texts = [text.lower() for text in texts] if said.lowercase else texts
        rows = [self._row(i, ids, said.length) for i, ids in enumerate(self.tokenizer.encode_batch(texts))]
        pooling = replace(said, normalize=True, about={})
        run = lambda batch, _: forward.vectors(self.model, self.params, batch, pooling)
        return forward.in_batches(self.model, rows, batch_size, run)

    def _row(self, i: int, ids: list[int], length: int | None) -> Row:
        """`length` counts the special tokens too."""
        special = len(self.template([])[0])
        return self.row(i, ids if length is None else ids[: max(length - special, 0)], cut=True)

    def _texts(self, given: Any, i: int) -> tuple[str, list[str]]:
        if isinstance(given, Mapping) and given.keys() == {"source_sentence", "sentences"}:
            first, others = given["source_sentence"], given["sentences"]
            if isinstance(others, list | tuple) and all(isinstance(text, str) for text in (first, *others)):
                return first, list(others)
        raise TypeError(
            f"{self.task}: expected a text and a list of texts, or {{'source_sentence': ..., 'sentences': [...]}}, "
            f"found as input {i}: {given!r:.60}"
        )


def _mapping(first: Any, others: Any) -> dict[str, Any]:
    return {"source_sentence": first, "sentences": others}
