"""From prompts of token ids to new token ids."""

from jaxformer.generation.beam import Beam
from jaxformer.generation.decode import Generated, generate
from jaxformer.generation.sample import Greedy, Sample, Strategy
from jaxformer.generation.stream import stream_tokens

__all__ = ["Beam", "Generated", "Greedy", "Sample", "Strategy", "generate", "stream_tokens"]
