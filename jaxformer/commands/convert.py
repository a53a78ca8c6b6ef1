"""`jaxformer convert SOURCE FOLDER`: any checkpoint that can be read, into the published layout."""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import tyro

from jaxformer.source import from_pretrained, save_pretrained


@dataclass(frozen=True)
class Options:
    """Write a model into the published layout: config.json, safetensors, the tokenizer's files."""

    source: Annotated[str, tyro.conf.Positional]
    """A folder in the published layout, a run's folder, a .gguf file, or the name of a model on the hub."""
    folder: Annotated[str, tyro.conf.Positional]
    """Where to write; it appears whole or not at all."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What parameters are stored as; left out, as in the source."""
    head: str | None = None
    """Another head: lm, embed, classify:N, tag:N, answer; left out, the published one."""
    revision: str | None = None
    """Of a model on the hub: branch, tag or commit."""
    max_shard_size: str = "5GB"
    """Size of the largest file of tensors."""


def main(arguments: list[str]) -> int:
    """Exit code 0; one line says what was written."""
    options = tyro.cli(Options, prog="jaxformer convert", args=arguments)
    model, params, tokenizer = from_pretrained(
        options.source, head=options.head, dtype=options.dtype, revision=options.revision
    )
    save_pretrained(options.folder, model, params, tokenizer, options.max_shard_size)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{options.folder}: {count:,} parameters{'' if tokenizer is None else ', with the tokenizer'}")
    return 0
