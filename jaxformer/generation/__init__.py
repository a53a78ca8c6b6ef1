"""From prompts of token ids to new token ids."""

from jaxformer.generation.automaton import TokenAutomaton
from jaxformer.generation.beam import Beam
from jaxformer.generation.contrast import Contrastive
from jaxformer.generation.decode import Generated, generate
from jaxformer.generation.guide import Guided
from jaxformer.generation.hosted import Hosted
from jaxformer.generation.layout import for_decoding
from jaxformer.generation.past import Past, remember
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
from jaxformer.generation.speculate import Draft, Lookup
from jaxformer.generation.stream import stream_tokens

__all__ = [
    "BadWords",
    "Beam",
    "Contrastive",
    "Draft",
    "ForcedFirst",
    "ForcedLast",
    "FrequencyPenalty",
    "Generated",
    "Greedy",
    "Guided",
    "History",
    "Hosted",
    "Lookup",
    "MinLength",
    "MinNewTokens",
    "NoRepeatNgram",
    "Past",
    "PresencePenalty",
    "Processor",
    "RepetitionPenalty",
    "Sample",
    "Strategy",
    "TokenAutomaton",
    "for_decoding",
    "generate",
    "remember",
    "stream_tokens",
]
