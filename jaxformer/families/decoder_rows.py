"""Where the parameters of decoders like LLaMA are published: rows that they share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxformer.config import BlockConfig, MlpConfig, ModelConfig, NormConfig
from jaxformer.families import heads
from jaxformer.names import Row, linear, norm, table

PREFIX = "model."


@dataclass(frozen=True)
class Names:
    """How one layout calls the parameters of such a decoder."""

    embed: str
    norm: str
    """The norm after the last layer."""
    layer: str
    """How the names of a layer begin."""
    parts: Mapping[str, str]
    """Our path in a block -> the name in a layer; "attention/fused" holds query, key and value, "mlp/fused" gate and
    up."""
    norms: Mapping[str, Mapping[str, str]]
    """Where norms stand -> our path of each in a block -> the name in a layer."""
    heads: Mapping[str, str]
    """Kind of head -> the name of its layer."""


PUBLISHED = Names(
    embed=f"{PREFIX}embed_tokens",
    norm=f"{PREFIX}norm",
    layer=f"{PREFIX}layers.{{layer}}",
    parts={
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/fused": "self_attn.qkv_proj",
        "attention/query_norm": "self_attn.q_norm",
        "attention/key_norm": "self_attn.k_norm",
        "attention/out": "self_attn.o_proj",
        "mlp/gate": "mlp.gate_proj",
        "mlp/up": "mlp.up_proj",
        "mlp/fused": "mlp.gate_up_proj",
        "mlp/down": "mlp.down_proj",
    },
    norms={
        "pre": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
        "sandwich": {
            "attention_norm": "input_layernorm",
            "attention_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        },
    },
    heads=heads.PUBLISHED | {"tag": "score"},
)


def decoder(config: ModelConfig, *, fused: bool = False, answers: str = PREFIX) -> tuple[Row, ...]:
    """All rows in the published layout. `answers`: how names begin where the head answers questions."""
    found = rows(config, PUBLISHED, fused=fused)
    return _renamed(found, answers) if any(extra.name == "answer" for extra in config.extra) else found


def rows(
    config: ModelConfig, names: Names, *, fused: bool = False, pairs: bool = False, offsets: bool = False
) -> tuple[Row, ...]:
    """All rows, by any names.

    `fused`: one tensor holds query, key and value, one gate and up. `pairs`: queries and keys are stored with
    rotated pairs as neighbours. `offsets`: where a norm has an offset, the scale is stored with it on top.
    """
    stack, tied = getattr(config, config.main), config.head is not None and config.head.tied
    block, ours = stack.pattern[0], f"{config.main}/blocks"

    def scale(path: str, published: str, of: NormConfig) -> tuple[Row, ...]:
        return norm(path, published, plus=of.offset if offsets else 0.0)

    found = table("embed", names.embed, also=(f"{names.heads['lm']}.weight",) if tied else ())
    found += scale(f"{config.main}/norm", names.norm, stack.final_norm)
    for part, published in names.norms[block.norms].items():
        found += scale(f"{ours}/{part}", f"{names.layer}.{published}", block.norm)
    if block.attention.qk_norm is not None:
        for part in ("attention/query_norm", "attention/key_norm"):
            found += scale(f"{ours}/{part}", f"{names.layer}.{names.parts[part]}", block.attention.qk_norm)
    return found + _projections(block, ours, names, fused, pairs) + heads.rows(config, names.heads)


def _projections(block: BlockConfig, ours: str, names: Names, fused: bool, pairs: bool) -> tuple[Row, ...]:
    """Of the attention and of the gated feed-forward."""
    a, mlp = block.attention, block.mlp
    assert isinstance(mlp, MlpConfig)

    def called(part: str, whole: str = "") -> str:
        return f"{names.layer}.{names.parts[whole if fused and whole else part]}"

    found: tuple[Row, ...] = ()
    ends = (0, a.heads, a.heads + a.kv_heads, a.heads + 2 * a.kv_heads)
    for i, name in enumerate(("query", "key", "value")):
        path, part = f"attention/{name}", (ends[i], ends[i + 1], ends[3]) if fused else None
        published, turned = called(path, "attention/fused"), pairs and name != "value"
        found += linear(f"{ours}/{path}", published, bias=name in a.bias, part=part, pairs=turned)
    found += linear(f"{ours}/attention/out", called("attention/out"), inputs=2, bias="out" in a.bias)
    for i, name in enumerate(("gate", "up")):
        path, part = f"mlp/{name}", (i, i + 1, 2) if fused else None
        found += linear(f"{ours}/{path}", called(path, "mlp/fused"), bias=mlp.bias, part=part)
    return found + linear(f"{ours}/mlp/down", called("mlp/down"), bias=mlp.bias)


def _renamed(found: tuple[Row, ...], begin: str) -> tuple[Row, ...]:
    """The rows with another prefix; files with the usual one are read too."""
    if begin == PREFIX:
        return found
    return tuple(
        replace(row, published=begin + row.published.removeprefix(PREFIX), also=(row.published, *row.also))
        if row.published.startswith(PREFIX)
        else row
        for row in found
    )
