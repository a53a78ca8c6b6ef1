"""Text to text through an encoder and a decoder: in general, and translation and summarization."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxformer.generation import ForcedFirst, Processor
from jaxformer.objective import too_long
from jaxformer.pipelines.generating import Writing, WritingOptions
from jaxformer.tasks.seq2seq import cut
from jaxformer.text.template import Template
from jaxformer.text.turns import ended

LANGUAGE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]+")
"""How the tokens of languages are written: en_XX, ro_RO, eng_Latn."""


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
        sources = [self._source(i, prefix + text, asked) for i, text in enumerate(texts)]
        found = self.written(sources, asked, self.first(asked))
        results = [[{self.returns: self.tokenizer.decode(new)} for new in samples] for samples in found]
        if alone:
            return results[0]
        return [each for (each,) in results] if asked.num_return_sequences == 1 else results

    def around(self, asked: Any) -> Template:
        """The special tokens around what the encoder reads."""
        return self.template

    def first(self, asked: Any) -> list[Processor]:
        """What decides over the first tokens that are written."""
        return []

    def _source(self, i: int, text: str, asked: TextToTextOptions) -> np.ndarray:
        """What the encoder reads: as the tokenizer's template says, else with an eos at the end."""
        template = self.around(asked)
        if template == Template():
            ids = ended(self.tokenizer, text)
        else:
            ids = np.array(template(self.tokenizer.encode(text))[0], np.int32)
        if asked.truncation and self.longest is not None:
            ids = cut(ids, self.longest)
        if wrong := too_long(self.model.config, encoder=len(ids)):
            raise ValueError(f"{self.task}: text {i}: {wrong[0]}: give truncation=True, or a shorter text")
        return ids


@dataclass(frozen=True)
class TranslationOptions(TextToTextOptions):
    """Options of translation."""

    src_lang: str | None = None
    """The code of the texts' language, of a model that has a token for each: "en_XX"; None: the tokenizer's own."""
    tgt_lang: str | None = None
    """The code of the language that is written; None: the checkpoint's forced_bos_token_id, where it has one."""


class Translation(TextToText):
    """pipeline("translation", source)("Hello") gives [{"translation_text": "Bonjour"}]. All else as TextToText.

    "translation_en_to_fr" is the same task, by the name under which a checkpoint may keep a prefix for it.
    """

    task = "translation"
    takes = TranslationOptions
    options: TranslationOptions
    returns = "translation_text"

    def around(self, asked: TranslationOptions) -> Template:
        """The template, with the token of `src_lang` in place of the one that it has for a language."""
        if asked.src_lang is None:
            return self.template
        new, stands = self._language("src_lang", asked.src_lang), []
        for part, kind in self.template.single:
            ids = part if isinstance(part, str) else tuple(new if self._is_language(id) else id for id in part)
            stands.append((ids, kind))
        if not any(new in part for part, _ in stands if not isinstance(part, str)):
            raise ValueError(f"{self.task}: src_lang is given, but this tokenizer marks texts with no language")
        return Template(tuple(stands))

    def first(self, asked: TranslationOptions) -> list[Processor]:
        """What makes the first new token that of `tgt_lang` (Liu et al., 2020, section 2.2)."""
        return [] if asked.tgt_lang is None else [ForcedFirst(self._language("tgt_lang", asked.tgt_lang))]

    def _language(self, option: str, code: str) -> int:
        id = self.tokenizer.id(code)
        if id is None or not LANGUAGE.fullmatch(code):
            pieces = map(self.tokenizer.piece, range(self.tokenizer.vocab_size))
            known = ", ".join(sorted(filter(LANGUAGE.fullmatch, pieces))) or "none: it knows one pair of languages"
            raise ValueError(f"{self.task}: {option} is {code!r}: the languages of this tokenizer are {known}")
        return id

    def _is_language(self, id: int) -> bool:
        return LANGUAGE.fullmatch(self.tokenizer.piece(id)) is not None


class Summarization(TextToText):
    """pipeline("summarization", source)("A long text") gives [{"summary_text": "Short"}]. All else as TextToText."""

    task = "summarization"
    returns = "summary_text"
