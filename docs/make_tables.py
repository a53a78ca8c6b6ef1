"""The tables of pages in docs/ that are made, not written: `python docs/make_tables.py` puts them into the pages.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. tests/notebooks/test_docs.py fails where
one is not what this file makes.
"""

import itertools
import re
from pathlib import Path

from jaxformer import families
from jaxformer.config import (
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    ExpertsConfig,
    LearnedConfig,
    ModelConfig,
    RelativeConfig,
    SinusoidConfig,
    StackConfig,
)
from jaxformer.families import transformer

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: (\S+)(?: ([^\n]*?))? -->\n).*?(<!-- end of table -->)", re.DOTALL)
"""A name, and where it is that of a file of results the heading below which its tables stand."""
SHOWN = {"2017: transformer-base": transformer.SIZES["transformer-base"]} | {
    f"{each.MODEL_TYPES[0]}: {size}": config
    for each in families.FAMILIES
    for size, config in itertools.islice(each.SIZES.items(), 1)
}
"""Each family by the first of its published sizes."""


def filled(page: str) -> str:
    """The text of a page with its tables made anew."""
    return PLACE.sub(lambda found: found[1] + made(found[2], found[3]) + found[4], page)


def made(name: str, heading: str | None) -> str:
    """A table of architectures, or the tables of a file of results below a heading (above all headings: None)."""
    if name in OF_ARCHITECTURES:
        header, row = OF_ARCHITECTURES[name]
        lines = [header, ["---"] * len(header), *(row(*each) for each in SHOWN.items())]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return of_results(name, heading)


def of_results(name: str, heading: str | None) -> str:
    """The command that wrote a file of results, and the tables below one of its headings."""
    text = (RESULTS / name).read_text()
    parts = dict(re.findall(r"^#+ (.*)\n((?:(?!#).*\n?)*)", text, re.MULTILINE))
    title, *_ = parts
    command = re.search(r"`python [^`]*`", text)
    tables = [line for line in parts[heading or title].splitlines() if line.startswith("|") or not line]
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(tables)).strip("\n")
    return (f"{command[0]}\n\n" if command else "") + body + "\n"


# What an architecture says of itself. A cell is "" where there is nothing of the kind.


def _stacks(config: ModelConfig) -> list[StackConfig]:
    return [stack for stack in (config.encoder, config.decoder) if stack is not None]


def _first(config: ModelConfig) -> BlockConfig:
    return _stacks(config)[-1].pattern[0]


def _listed(values: list[str]) -> str:
    """What differs between stacks or blocks, each once."""
    return ", ".join(dict.fromkeys(value for value in values if value))


def _blocks(config: ModelConfig) -> list[BlockConfig]:
    return [block for stack in _stacks(config) for block in stack.pattern]


def _block_row(name: str, config: ModelConfig) -> list[str]:
    block = _first(config)
    norm, gated = block.norm, isinstance(block.mlp, ExpertsConfig) or block.mlp.gated
    return [
        name,
        " + ".join(part for part in ("encoder", "decoder") if getattr(config, part)) + _shared(config),
        block.norms + (", parallel" if block.parallel else ""),
        norm.kind + (", from one" if norm.offset else ""),
        block.mlp.activation + (", gated" if gated else ""),
        _mlp_width(config, block),
        _biases(block),
    ]


def _shared(config: ModelConfig) -> str:
    return ", one layer again and again" if any(stack.groups == 1 for stack in _stacks(config)) else ""


def _mlp_width(config: ModelConfig, block: BlockConfig) -> str:
    many = f", {block.mlp.top_k} of {block.mlp.experts}" if isinstance(block.mlp, ExpertsConfig) else ""
    return f"{block.mlp.width / config.width:.3g}{many}"


def _biases(block: BlockConfig) -> str:
    letters = "".join(part[0] for part in block.attention.bias)
    return _listed([letters, "mlp" if getattr(block.mlp, "bias", False) else ""])


def _attention_row(name: str, config: ModelConfig) -> list[str]:
    return [
        name,
        _listed([_heads(block.attention) for block in _blocks(config)]),
        _listed([_positions(stack) for stack in _stacks(config)] + _ropes(_blocks(config))),
        _windows(config),
        _listed([_extras(block.attention) for block in _blocks(config)]),
        _entry(config),
        _head(config),
    ]


def _windows(config: ModelConfig) -> str:
    found = [block.attention.window for block in _blocks(config)]
    sizes = _listed([f"{window}" for window in found if window])
    few = sum(window is not None for window in found)
    return f"{sizes}, {few} layer{'s' * (few > 1)} of {len(found)}" if sizes and few < len(found) else sizes


def _heads(attention: AttentionConfig) -> str:
    few = "" if attention.kv_heads == attention.heads else f" / {attention.kv_heads}"
    return f"{attention.heads}{few} x {attention.head_dim}"


def _positions(stack: StackConfig) -> str:
    known = {LearnedConfig: "learned", SinusoidConfig: "sines", RelativeConfig: "buckets", AlibiConfig: "ALiBi"}
    return _listed([known.get(type(part), "") for part in (stack.input.positions, stack.bias)])


def _ropes(blocks: list[BlockConfig]) -> list[str]:
    without = sum(block.attention.rope is None for block in blocks)
    bare = [f"none in 1 layer of {len(blocks)}"] if 0 < without < len(blocks) else []
    return [_rope(block.attention) for block in blocks] + bare


def _rope(attention: AttentionConfig) -> str:
    if attention.rope is None:
        return ""
    some = f" of {attention.rope.dim}" if attention.rope.dim not in (None, attention.head_dim) else ""
    pairs = ", in pairs" if attention.rope.interleaved else ""
    return f"RoPE{some}{pairs} ({attention.rope.base:g})"


def _extras(attention: AttentionConfig) -> str:
    scale = attention.scale
    return _listed(
        [
            "norms on q and k" if attention.qk_norm else "",
            f"soft-cap {attention.softcap:g}" if attention.softcap else "",
            f"scale {scale:.3g}" if scale is not None and scale != attention.head_dim**-0.5 else "",
        ]
    )


def _entry(config: ModelConfig) -> str:
    inputs = [stack.input for stack in _stacks(config)]
    narrow = f"width {config.embedding_width}" if config.embedding_width not in (None, config.width) else ""
    return _listed(
        [narrow]
        + ["segments" if each.segments else "" for each in inputs]
        + [f"times {each.scale:.3g}" if each.scale != 1 else "" for each in inputs]
        + ["norm" if each.norm else "" for each in inputs]
    )


def _head(config: ModelConfig) -> str:
    if config.head is None:
        return ""
    return _listed(
        [
            "tied" if config.head.tied else "its own",
            "bias" if config.head.bias else "",
            f"times {config.head.scale:.3g}" if config.head.scale != 1 else "",
            "transform" if config.head.transform else "",
            f"soft-cap {config.head.softcap:g}" if config.head.softcap else "",
        ]
    )


OF_ARCHITECTURES = {
    "blocks": (
        ["family: size", "stacks", "norms stand", "norm", "feed-forward", "its width", "biases"],
        _block_row,
    ),
    "attention": (
        ["family: size", "heads", "positions", "window", "attention besides", "input besides", "head"],
        _attention_row,
    ),
}


if __name__ == "__main__":
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(filled(path.read_text()))
