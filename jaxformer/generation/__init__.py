"""From prompts of token ids to new token ids."""

from jaxformer.generation.decode import Generated, generate
from jaxformer.generation.sample import Greedy, Sample, Strategy
from jaxformer.generation.stream import stream_tokens

__all__ = ["Generated", "Greedy", "Sample", "Strategy", "generate", "stream_tokens"]
