"""What may stand in place of a text's mask. P places, V vocabulary."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from jaxformer.config import ModelConfig
from jaxformer.pipelines import forward
from jaxformer.pipelines.base import Options, Pipeline, Row, least, ordered
from jaxformer.tasks.masked_lm import mask_id
from jaxformer.text import turns
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.text.tokenizer_json import JsonTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FillOptions(Options):
    """Options of fill-mask."""

    top_k: int = 5
    """How many tokens are told of each mask, the likeliest first."""
    targets: str | Sequence[str] | None = None
    """These tokens alone are weighed; of a word that is no token its first one stands for it, which is logged."""
    truncation: bool = False
    """Texts that are too long lose their end; else they are an error."""

    def problems(self) -> list[str]:
        """What is wrong with them."""
        found = super().problems() + least("top_k", self.top_k, 1)
        if self.targets is not None and not (self.targets and all(isinstance(each, str) for each in self.targets)):
            found.append(f"targets are {self.targets!r}: give texts, at least one")
        return found


class FillMask(Pipeline):
    """pipeline("fill-mask", source)("Paris is the [MASK] of France.") gives [{"score": 0.9, "token": 3007,
    "token_str": "capital", "sequence": "paris is the capital of france."}, ...]; of a text with several masks a list
    for each. A list of texts gives a list of these, of one text its own alone.
    """

    task = "fill-mask"
    takes = FillOptions
    options: FillOptions

    def lacks(self, config: ModelConfig) -> list[str]:
        """See Pipeline."""
        found = []
        if config.encoder is None:
            found.append(
                "it has no encoder: a model that reads from left to right knows nothing of what follows a mask"
            )
        if config.head is None:
            found.append(
                "it has no head over the vocabulary: take a model that was trained with one, or train this one: "
                'from_pretrained(source, head="lm") and the task jaxformer.tasks.MaskedLM'
            )
        try:
            mask_id(self.tokenizer)
        except ValueError as error:
            found.append(str(error))
        return found

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """See the class. Raises ValueError for a text without a mask."""
        asked, (texts, _) = self.asked(options), self.texts(inputs)
        mask, targets = mask_id(self.tokenizer), self._targets(asked.targets)
        named = turns.marked(self.tokenizer, self.tokenizer.piece(mask))
        name = self.tokenizer.piece(mask)
        encoded = [turns.encode(self.tokenizer, text.replace(name, named)) for text in texts]
        rows = [self.row(i, ids, cut=asked.truncation) for i, ids in enumerate(encoded)]
        places = [[at for at, id in enumerate(ids) if id == mask] for ids, _ in rows]
        if without := [i for i, found in enumerate(places) if not found]:
            raise ValueError(f"{self.task}: text {without[0]} has no mask: write {name} where a word is missing")
        width = 1 << (max(map(len, places), default=1) - 1).bit_length()

        def run(batch: Any, some: Sequence[int]) -> Any:
            asked_for = np.array([places[i] + [0] * (width - len(places[i])) for i in some], np.int32)
            return forward.probabilities(self.model, self.params, batch, asked_for)

        found = forward.in_batches(self.model, rows, asked.batch_size, run)
        results = [self._result(*each, targets, asked.top_k) for each in zip(rows, places, found, strict=True)]
        return results[0] if len(results) == 1 else results

    def _targets(self, targets: str | Sequence[str] | None) -> np.ndarray | None:
        """Ids of the targets, each once; None: all."""
        if targets is None:
            return None
        ids = set[int]()
        for target in [targets] if isinstance(targets, str) else targets:
            id = self.tokenizer.id(target)
            if id is None:
                found = self.tokenizer.encode(target)
                said = f"{self.tokenizer.piece(found[0])!r} stands for it" if found else "it is left out"
                logger.warning("%s: target %r is no token of the vocabulary: %s", self.task, target, said)
            ids |= {id} if id is not None else set(found[:1])
        if not ids:
            raise ValueError(f"{self.task}: none of the targets {targets!r} is a token")
        return np.array(sorted(ids))

    def _result(
        self, row: Row, places: list[int], probability: np.ndarray, targets: np.ndarray | None, top_k: int
    ) -> list[Any]:
        single, pad, results = len(places) == 1, self.tokenizer.pad, []
        weighed = np.arange(probability.shape[1]) if targets is None else targets
        for place, of_tokens in zip(places, probability[:, weighed], strict=False):
            told = []
            for i in [*ordered(of_tokens)][:top_k]:
                token = int(weighed[i])
                ids = [token if at == place else id for at, id in enumerate(row[0])]
                ids = [id for id in ids if id != pad]
                sequence = self.tokenizer.decode(ids) if single else with_specials(self.tokenizer, ids)
                text = with_specials(self.tokenizer, [token])
                told.append({"score": float(of_tokens[i]), "token": token, "token_str": text, "sequence": sequence})
            results.append(told)
        return results[0] if single else results


def with_specials(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of ids, special tokens by their names."""
    if isinstance(tokenizer, JsonTokenizer):
        return tokenizer.inner.decode(list(ids), skip_special_tokens=False)
    special = frozenset(tokenizer.specials.values())
    parts = [(is_special, list(some)) for is_special, some in groupby(ids, lambda id: id in special)]
    return " ".join(
        " ".join(map(tokenizer.piece, some)) if is_special else tokenizer.decode(some) for is_special, some in parts
    )
