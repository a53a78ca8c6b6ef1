"""From prompts of token ids to new token ids."""

from jaxformer.generation.beam import Beam
from jaxformer.generation.decode import Generated, generate
from jaxformer.generation.process import (
    BadWords,
    ForcedFirst,
    ForcedLast,
    FrequencyPenalty,
    History,
    MinLength,
    MinNewTokens,
    NoRepeatNgram,
    PresencePenalty,
    Processor,
    RepetitionPenalty,
)
from jaxformer.generation.sample import Greedy, Sample, Strategy
from jaxformer.generation.stream import stream_tokens

__all__ = [
    "BadWords",
    "Beam",
    "ForcedFirst",
    "ForcedLast",
    "FrequencyPenalty",
    "Generated",
    "Greedy",
    "History",
    "MinLength",
    "MinNewTokens",
    "NoRepeatNgram",
    "PresencePenalty",
    "Processor",
    "RepetitionPenalty",
    "Sample",
    "Strategy",
    "generate",
    "stream_tokens",
]
