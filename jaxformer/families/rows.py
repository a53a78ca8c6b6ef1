"""Rows that decoders like LLaMA share: how their parameters are published."""

from dataclasses import replace

from jaxformer.config import AttentionConfig, BlockConfig, MlpConfig, ModelConfig
from jaxformer.names import Row, linear, norm, table

PREFIX, LAYER = "model.", "model.layers.{layer}"
NORMS = {
    "pre": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "sandwich": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}
HEADS = {"classify": "score", "tag": "score", "answer": "qa_outputs"}
"""Kind of head -> the name of its layer."""


def decoder(config: ModelConfig, *, fused: bool = False, answers: str = PREFIX) -> tuple[Row, ...]:
    """All rows. `fused`: one tensor holds query, key and value, one gate and up. `answers`: how names begin where
    the head answers questions.
    """
    block = getattr(config, config.main).pattern[0]
    rows = embedding(config) + norms(config, block) + attention(config, block.attention, fused)
    rows += mlp(config, block.mlp, fused) + heads(config)
    return _renamed(rows, answers) if any(extra.name == "answer" for extra in config.extra) else rows


def embedding(config: ModelConfig) -> tuple[Row, ...]:
    """The token embedding, and the norm after the last layer."""
    tied = config.head is not None and config.head.tied
    rows = table("embed", f"{PREFIX}embed_tokens", also=("lm_head.weight",) if tied else ())
    return rows + norm(f"{config.main}/norm", f"{PREFIX}norm")


def norms(config: ModelConfig, block: BlockConfig) -> tuple[Row, ...]:
    """The norms of a block around its sublayers."""
    pairs = NORMS[block.norms].items()
    return sum((norm(f"{config.main}/blocks/{ours}", f"{LAYER}.{theirs}") for ours, theirs in pairs), ())


def attention(config: ModelConfig, a: AttentionConfig, fused: bool = False) -> tuple[Row, ...]:
    """Projections, and the norms of queries and keys where there are such."""
    ours, theirs = f"{config.main}/blocks/attention", f"{LAYER}.self_attn"
    ends = (0, a.heads, a.heads + a.kv_heads, a.heads + 2 * a.kv_heads)
    rows: tuple[Row, ...] = ()
    for i, name in enumerate(("query", "key", "value")):
        published = "qkv_proj" if fused else f"{name[0]}_proj"
        part = (ends[i], ends[i + 1], ends[3]) if fused else None
        rows += linear(f"{ours}/{name}", f"{theirs}.{published}", bias=name in a.bias, part=part)
    rows += linear(f"{ours}/out", f"{theirs}.o_proj", inputs=2, bias="out" in a.bias)
    if a.qk_norm is not None:
        rows += norm(f"{ours}/query_norm", f"{theirs}.q_norm") + norm(f"{ours}/key_norm", f"{theirs}.k_norm")
    return rows


def mlp(config: ModelConfig, m: MlpConfig, fused: bool = False) -> tuple[Row, ...]:
    """A gated feed-forward."""
    ours, theirs = f"{config.main}/blocks/mlp", f"{LAYER}.mlp"
    rows: tuple[Row, ...] = ()
    for i, name in enumerate(("gate", "up")):
        published, part = ("gate_up_proj", (i, i + 1, 2)) if fused else (f"{name}_proj", None)
        rows += linear(f"{ours}/{name}", f"{theirs}.{published}", bias=m.bias, part=part)
    return rows + linear(f"{ours}/down", f"{theirs}.down_proj", bias=m.bias)


def heads(config: ModelConfig) -> tuple[Row, ...]:
    """The head over the vocabulary unless it is tied, or the one in its place."""
    rows: tuple[Row, ...] = ()
    if config.head is not None and not config.head.tied:
        rows += linear("heads/lm", "lm_head")
    for extra in config.extra:
        rows += linear(f"heads/{extra.name}/output", HEADS[extra.name], bias=extra.bias)
    return rows


def _renamed(rows: tuple[Row, ...], begin: str) -> tuple[Row, ...]:
    """The rows with another prefix; files with the usual one are read too."""
    if begin == PREFIX:
        return rows
    return tuple(
        replace(row, published=begin + row.published.removeprefix(PREFIX), also=(row.published, *row.also))
        if row.published.startswith(PREFIX)
        else row
        for row in rows
    )
