"""`jaxformer generate SOURCE --prompt TEXT`: continue a prompt, printing text as it is produced."""

import secrets
import sys
from dataclasses import dataclass
from typing import Annotated

import jax
import tyro

from jaxformer import machine
from jaxformer.generation import Greedy, Sample
from jaxformer.source import from_pretrained
from jaxformer.stream_text import stream


@dataclass(frozen=True)
class Options:
    """Continue a prompt with a trained model."""

    source: Annotated[str, tyro.conf.Positional]
    """A run's folder, a folder in the published layout, or the name of a model on the hub."""
    prompt: str
    """The text to continue; - reads it from standard input."""
    tokens: int = 256
    """New tokens at most."""
    temperature: float = 0.7
    """Above 1 more surprising, below 1 more likely tokens; 0 always takes the likeliest."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0: all."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that make up this share of the probability."""
    seed: int | None = None
    """Equal seeds give equal texts; left out, a new one is drawn and printed."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The text ends before this one; may be given several times."""
    prefix: bool = False
    """Read the prompt in both directions, for models that were trained so."""


def main(arguments: list[str]) -> int:
    """Exit code 0; the prompt and its continuation go to standard output, the seed to standard error."""
    options = tyro.cli(Options, prog="jaxformer generate", args=arguments)
    machine.use_compilation_cache()
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    model, params, tokenizer = from_pretrained(options.source)
    if tokenizer is None:
        raise ValueError(f"{options.source} has no tokenizer: text can be neither read nor written")
    seed = secrets.randbits(31) if options.seed is None else options.seed
    greedy = options.temperature == 0
    strategy = Greedy() if greedy else Sample(options.temperature, options.top_k, options.top_p)
    sys.stdout.write(prompt)
    given = model, params, tokenizer, prompt, options.tokens, strategy
    for text in stream(*given, key=jax.random.key(seed), prefix=options.prefix, stop=options.stop):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if not greedy and options.seed is None:
        print(f"seed {seed}", file=sys.stderr)
    return 0
