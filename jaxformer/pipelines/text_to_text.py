"""Text to text through an encoder and a decoder: in general, and translation and summarization."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxformer.pipelines.generating import Writing, WritingOptions
from jaxformer.tasks.common import too_long
from jaxformer.tasks.seq2seq import cut, ended
from jaxformer.text.template import Template


@dataclass(frozen=True)
class TextToTextOptions(WritingOptions):
    """Options of text2text-generation, translation and summarization."""

    truncation: bool = False
    """Texts that are too long lose what is before their last token; else they are an error."""


class TextToText(Writing):
    """pipeline("text2text-generation", source)("A text") gives [{"generated_text": "Another"}].

    A list of texts gives a list of dictionaries; of lists of them where `num_return_sequences` is above 1. What the
    checkpoint's config.json says of the task by its name (task_specific_params), such as T5's prefixes, holds.
    """

    task = "text2text-generation"
    takes = TextToTextOptions
    options: TextToTextOptions
    encoder = True
    returns: ClassVar[str] = "generated_text"

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """See the class."""
        asked, (texts, alone) = self.asked(options), self.texts(inputs)
        prefix = self.defaults.get("prefix") or ""
        found = self.written([self._source(i, prefix + text, asked) for i, text in enumerate(texts)], asked)
        results = [[{self.returns: self.tokenizer.decode(new)} for new in samples] for samples in found]
        if alone:
            return results[0]
        return [each for (each,) in results] if asked.num_return_sequences == 1 else results

    def _source(self, i: int, text: str, asked: TextToTextOptions) -> np.ndarray:
        """What the encoder reads: as the tokenizer's template says, else with an eos at the end."""
        if self.template == Template():
            ids = ended(self.tokenizer, text)
        else:
            ids = np.array(self.template(self.tokenizer.encode(text))[0], np.int32)
        if asked.truncation and self.longest is not None:
            ids = cut(ids, self.longest)
        if wrong := too_long(self.model.config, encoder=len(ids)):
            raise ValueError(f"{self.task}: text {i}: {wrong[0]}: give truncation=True, or a shorter text")
        return ids


class Translation(TextToText):
    """pipeline("translation", source)("Hello") gives [{"translation_text": "Bonjour"}]. All else as TextToText.

    "translation_en_to_fr" is the same task, by the name under which a checkpoint may keep a prefix for it.
    """

    task = "translation"
    returns = "translation_text"


class Summarization(TextToText):
    """pipeline("summarization", source)("A long text") gives [{"summary_text": "Short"}]. All else as TextToText."""

    task = "summarization"
    returns = "summary_text"
