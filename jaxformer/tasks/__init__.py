"""What a model can be trained to do: a file each, all of one shape (common.Task)."""

from jaxformer.tasks.answer import Answer
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.tasks.choice import Choice
from jaxformer.tasks.classify import Classify
from jaxformer.tasks.denoise import Denoise
from jaxformer.tasks.denoisers import MixtureOfDenoisers
from jaxformer.tasks.distill import Distill
from jaxformer.tasks.embed import Embed
from jaxformer.tasks.infill import Infill
from jaxformer.tasks.instruct import Instruct
from jaxformer.tasks.masked_lm import MaskedLM
from jaxformer.tasks.prefix_lm import PrefixLM
from jaxformer.tasks.seq2seq import Seq2Seq
from jaxformer.tasks.span import SpanCorruption
from jaxformer.tasks.tag import Tag

__all__ = [
    "Answer",
    "AnyTask",
    "CausalLM",
    "Choice",
    "Classify",
    "Denoise",
    "Distill",
    "Embed",
    "Infill",
    "Instruct",
    "MaskedLM",
    "MixtureOfDenoisers",
    "PrefixLM",
    "Seq2Seq",
    "SpanCorruption",
    "Tag",
]

AnyTask = (
    CausalLM
    | MaskedLM
    | SpanCorruption
    | MixtureOfDenoisers
    | Denoise
    | PrefixLM
    | Infill
    | Seq2Seq
    | Instruct
    | Distill
    | Classify
    | Tag
    | Answer
    | Choice
    | Embed
)
"""Every task, for an experiment's field."""
