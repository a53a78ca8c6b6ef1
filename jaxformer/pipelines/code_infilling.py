"""A text with a gap to what stands in the gap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxformer.config import ModelConfig
from jaxformer.pipelines.base import listed
from jaxformer.pipelines.generating import Writing, WritingOptions, some
from jaxformer.tasks.infill import SENTINELS, infill_prompt

GAP = "<FILL_ME>"
"""What a text has in place of what is missing."""


@dataclass(frozen=True)
class Marks:
    """The special tokens of models that fill gaps."""

    names: tuple[str, str, str]
    """Before what is before the gap, what is behind it, and what fills it."""
    end: str | None = None
    """Behind that, where it is not an eos."""


MARKS = (
    Marks(SENTINELS),  # jaxformer.tasks.Infill; Qwen2.5-Coder, CodeGemma
    Marks(("<fim_prefix>", "<fim_suffix>", "<fim_middle>")),  # StarCoder, Granite Code
    Marks(("<fim-prefix>", "<fim-suffix>", "<fim-middle>")),  # SantaCoder
    Marks(("▁<PRE>", "▁<SUF>", "▁<MID>"), "▁<EOT>"),  # Code Llama
    Marks(("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")),  # DeepSeek-Coder
)
"""The first of which the tokenizer has all is taken."""


@dataclass(frozen=True)
class InfillOptions(WritingOptions):
    """Options of code-infilling."""

    return_full_text: bool = True
    """All of the text, its gap filled; else what fills the gap alone."""
    spm: bool = False
    """The model reads first what is behind the gap, then what is before it."""


class CodeInfilling(Writing):
    """pipeline("code-infilling", source)("def double(x):\\n    return <FILL_ME>\\n") gives [{"generated_text": ...}].

    Reads a text with one <FILL_ME>, a mapping {"prefix": ..., "suffix": ...}, or a list of them, which gives a list
    of lists. The model must have learned it (Bavarian et al., 2022), by marks that MARKS tells.
    """

    task = "code-infilling"
    takes = InfillOptions
    options: InfillOptions

    def lacks(self, config: ModelConfig) -> list[str]:
        """See Pipeline."""
        found = super().lacks(config)
        if self.marks is None:
            known = "; ".join(", ".join(marks.names) for marks in MARKS)
            found.append(
                f"the tokenizer has no marks of a gap ({known}): take a model that was trained to fill gaps, or "
                "train one by the task jaxformer.tasks.Infill"
            )
        return found

    @property
    def marks(self) -> Marks | None:
        """Those of MARKS that the tokenizer has."""
        has = lambda marks: all(self.tokenizer.id(name) is not None for name in marks.names)
        return next(filter(has, MARKS), None)

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """See the class."""
        asked, (given, alone) = self.asked(options), listed(inputs, (str, Mapping))
        gaps, marks = self._sides(given), self.marks
        assert marks is not None  # see lacks
        prompts = [infill_prompt(self.tokenizer, *sides, asked.spm, marks.names) for sides in gaps]
        ends = [] if marks.end is None else some(self.tokenizer.id(marks.end))
        results = []
        for (before, after), samples in zip(gaps, self.written(prompts, asked, ends=ends), strict=True):
            middles = [self.tokenizer.decode(new) for new in samples]
            full = asked.return_full_text
            results.append([{"generated_text": before + text + after if full else text} for text in middles])
        return results[0] if alone else results

    def _sides(self, given: Sequence[Any]) -> list[tuple[str, str]]:
        """What is before each gap, and what is behind it."""
        for i, each in enumerate(given):
            is_pair = isinstance(each, Mapping) and each.keys() == {"prefix", "suffix"}
            if not all(isinstance(text, str) for text in (each.values() if is_pair else [each])):
                raise TypeError(
                    f"{self.task}: expected a text with {GAP} or {{'prefix': ..., 'suffix': ...}}, "
                    f"found as input {i}: {each!r:.60}"
                )
        texts = [each for each in given if isinstance(each, str)]
        if wrong := [text for text in texts if text.count(GAP) != 1]:
            raise ValueError(
                f"{self.task}: a text has {wrong[0].count(GAP)} gaps: write {GAP} once: {wrong[0]!r:.60}"
            )
        both = (each.split(GAP) if isinstance(each, str) else (each["prefix"], each["suffix"]) for each in given)
        return [(before, after) for before, after in both]
