"""Where a decoder's parameters stand in a GGUF file, whose names are the same for every family."""

from jaxformer.config import MlpConfig, ModelConfig
from jaxformer.families import decoder_rows
from jaxformer.names import Row

IGNORED: tuple[str, ...] = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are no parameters: divisors of rotary frequencies, which `gguf_config` reads."""
HEADS: tuple[str, ...] = ("output.weight",)
"""Tensors of a head that a model may leave out to have another."""
_PRE = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}
_POST = {"attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"}
NAMES = decoder_rows.Names(
    embed="token_embd",
    norm="output_norm",
    layer="blk.{layer}",
    parts={
        "attention/query": "attn_q",
        "attention/key": "attn_k",
        "attention/value": "attn_v",
        "attention/fused": "attn_qkv",
        "attention/query_norm": "attn_q_norm",
        "attention/key_norm": "attn_k_norm",
        "attention/out": "attn_output",
        "mlp/gate": "ffn_gate",
        "mlp/up": "ffn_up",
        "mlp/fused": "ffn_up",
        "mlp/down": "ffn_down",
    },
    norms={"pre": _PRE, "sandwich": _PRE | _POST},
    heads={**decoder_rows.PUBLISHED.heads, "lm": "output"},
)
"""No file holds another head than that over the vocabulary; one is named as elsewhere."""


def decoder(config: ModelConfig, *, pairs: bool = False, fused: bool = False) -> tuple[Row, ...]:
    """All rows of a decoder with gated feed-forwards; `pairs` and `fused` as in `decoder_rows.rows`.

    Raises ValueError for any other architecture.
    """
    stack = config.decoder
    if stack is None or stack.final_norm is None:
        raise ValueError("a GGUF file is read as a decoder with a final norm, and this is none")
    block, mlp = stack.pattern[0], stack.pattern[0].mlp
    if block.norms not in NAMES.norms or not isinstance(mlp, MlpConfig) or not mlp.gated:
        raise ValueError(f"a GGUF file is read with gated feed-forwards and no {block.norms} norms")
    return decoder_rows.rows(config, NAMES, pairs=pairs, fused=fused, offsets=True)
