"""Where a decoder's parameters stand in a GGUF file, whose names are the same for every family."""

from dataclasses import replace

from jaxformer.config import BlockConfig, MlpConfig, ModelConfig
from jaxformer.families import rows as published
from jaxformer.names import Row, linear, norm, table

IGNORED: tuple[str, ...] = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are no parameters: divisors of rotary frequencies, which `gguf_config` reads."""
HEADS: tuple[str, ...] = ("output.weight",)
"""Tensors of a head that a model may leave out to have another."""
OURS, THEIRS = "decoder/blocks", "blk.{layer}"
NORMS = {
    "pre": {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"},
    "branch": {"attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"},
}
NORMS["sandwich"] = NORMS["pre"] | NORMS["branch"]


def decoder(config: ModelConfig, *, pairs: bool = False, fused: bool = False) -> tuple[Row, ...]:
    """All rows of a decoder with gated feed-forwards.

    `pairs`: queries and keys are stored with rotated pairs as neighbours. `fused`: one tensor holds query, key
    and value, one gate and up. Where a norm has an offset, the file holds the scale with the offset on top. No
    file holds another head than that over the vocabulary; one is named as elsewhere.
    """
    stack = config.decoder
    if stack is None or stack.final_norm is None:
        raise ValueError("a GGUF file is read as a decoder with a final norm, and this is none")
    block, mlp = stack.pattern[0], stack.pattern[0].mlp
    if block.norms not in NORMS or not isinstance(mlp, MlpConfig) or not mlp.gated:
        raise ValueError(f"a GGUF file is read with gated feed-forwards and no {block.norms} norms")
    rows = table("embed", "token_embd") + norm("decoder/norm", "output_norm", plus=stack.final_norm.offset)
    for ours, theirs in NORMS[block.norms].items():
        rows += norm(f"{OURS}/{ours}", f"{THEIRS}.{theirs}", plus=block.norm.offset)
    rows += _attention(block, pairs, fused) + _mlp(mlp, fused)
    if config.head is not None and not config.head.tied:
        rows += linear("heads/lm", "output", bias=config.head.bias)
    return rows + published.heads(replace(config, head=None))


def _attention(block: BlockConfig, pairs: bool, fused: bool) -> tuple[Row, ...]:
    a, ours = block.attention, f"{OURS}/attention"
    ends = (0, a.heads, a.heads + a.kv_heads, a.heads + 2 * a.kv_heads)
    rows: tuple[Row, ...] = ()
    for i, name in enumerate(("query", "key", "value")):
        theirs = f"{THEIRS}.attn_qkv" if fused else f"{THEIRS}.attn_{name[0]}"
        part = (ends[i], ends[i + 1], ends[3]) if fused else None
        turned = pairs and name != "value"
        rows += linear(f"{ours}/{name}", theirs, bias=name in a.bias, part=part, pairs=turned)
    rows += linear(f"{ours}/out", f"{THEIRS}.attn_output", inputs=2, bias="out" in a.bias)
    if a.qk_norm is not None:
        rows += norm(f"{ours}/query_norm", f"{THEIRS}.attn_q_norm", plus=a.qk_norm.offset)
        rows += norm(f"{ours}/key_norm", f"{THEIRS}.attn_k_norm", plus=a.qk_norm.offset)
    return rows


def _mlp(mlp: MlpConfig, fused: bool) -> tuple[Row, ...]:
    ours = f"{OURS}/mlp"
    rows: tuple[Row, ...] = ()
    for i, name in enumerate(("gate", "up")):
        theirs, part = (f"{THEIRS}.ffn_up", (i, i + 1, 2)) if fused else (f"{THEIRS}.ffn_{name}", None)
        rows += linear(f"{ours}/{name}", theirs, bias=mlp.bias, part=part)
    return rows + linear(f"{ours}/down", f"{THEIRS}.ffn_down", bias=mlp.bias)
