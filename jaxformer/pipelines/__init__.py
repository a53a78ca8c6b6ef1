"""Text in, text out: `jaxformer.pipeline`. Names of tasks and results are those that users of pipelines know."""

import os
import re
from pathlib import Path
from typing import Any

from jaxformer.nn.model import Model
from jaxformer.pipelines.base import Options, Pipeline
from jaxformer.pipelines.code_infilling import CodeInfilling
from jaxformer.pipelines.features import FeatureExtraction, SentenceSimilarity
from jaxformer.pipelines.fill_mask import FillMask
from jaxformer.pipelines.generating import Writing
from jaxformer.pipelines.question_answering import QuestionAnswering
from jaxformer.pipelines.text_classification import TextClassification, ZeroShotClassification
from jaxformer.pipelines.text_generation import TextGeneration
from jaxformer.pipelines.text_to_text import Summarization, TextToText, Translation
from jaxformer.pipelines.token_classification import TokenClassification
from jaxformer.source import Loaded, from_pretrained
from jaxformer.tasks.labels import frame

__all__ = ["ALIASES", "TASKS", "Options", "Pipeline", "pipeline"]

TASKS: dict[str, type[Pipeline]] = {
    each.task: each
    for each in (
        TextGeneration,
        TextToText,
        Translation,
        Summarization,
        QuestionAnswering,
        FillMask,
        TextClassification,
        ZeroShotClassification,
        TokenClassification,
        FeatureExtraction,
        SentenceSimilarity,
        CodeInfilling,
    )
}
ALIASES = {"sentiment-analysis": TextClassification.task, "ner": TokenClassification.task}
TRANSLATION = re.compile(r"translation_\w+_to_\w+")


def pipeline(
    task: str,
    source: str | os.PathLike[str] | Loaded,
    *,
    dtype: Any = None,
    revision: str | None = None,
    **options: Any,
) -> Any:
    """What does a task on texts: `pipeline("translation", source)("Hello")` gives [{"translation_text": "Bonjour"}].

    `task`: one of TASKS, or of ALIASES, or "translation_en_to_fr". `source`: whatever `from_pretrained` takes, with
    `dtype` and `revision`, or a (model, params, tokenizer). `options` hold for every call that gives no others;
    docs/pipelines.md lists them. A run's folder is read with the special tokens that its model was trained with.

    Raises ValueError for a task that there is not, for a model that lacks what the task needs, and for options out
    of their range; TypeError for options that there are not.
    """
    kind = TASKS.get(ALIASES.get(task, task)) or (Translation if TRANSLATION.fullmatch(task) else None)
    if kind is None:
        raise ValueError(f"there is no task {task!r}: give one of {', '.join([*TASKS, *ALIASES])}")
    model, params, tokenizer = _loaded(source, dtype, revision)
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer: text can be neither read nor written")
    if not isinstance(source, tuple) and _is_run(Path(source)) and not issubclass(kind, Writing):
        options = {"template": frame(tokenizer)} | options
    made = kind(model, params, tokenizer, **options)
    if task not in ALIASES:
        made.task = task
    return made


def _loaded(source: Any, dtype: Any, revision: str | None) -> Loaded:
    if not isinstance(source, tuple):
        return from_pretrained(source, dtype=dtype, revision=revision)
    if len(source) != 3 or not isinstance(source[0], Model):
        raise TypeError("source: expected what from_pretrained takes, or a tuple (model, params, tokenizer)")
    if dtype is not None or revision is not None:
        raise TypeError("dtype and revision are for a source that is read: this model stands in memory")
    return source


def _is_run(folder: Path) -> bool:
    """Whether this is a folder of a run of ours, or the model in it."""
    return any((each / "experiment.json").is_file() for each in (folder, folder.parent))
