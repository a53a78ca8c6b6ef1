"""Reading a published config.json: every attribute is used, checked or known to change nothing."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from jaxformer.config import Activation

_HARMLESS = """
    _attn_implementation_autoset _name_or_path _num_labels architectures attention_dropout bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label init_std initializer_factor initializer_range is_decoder label2id
    length_penalty max_length max_position_embeddings min_length model_type no_repeat_ngram_size num_beam_groups
    num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past output_scores
    pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p
    torch_dtype torchscript transformers.js_config transformers_version typical_p unk_token_id use_bfloat16 use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())
"""Attributes of any model type that say nothing of the architecture: they stay on the model's card.

Where no table of positions has that size, max_position_embeddings says how long rows were. Dropout of attention
weights and of what a head reads is in training alone, and there is none of it here.
"""

FIXED = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}
"""Attributes of any model type that must be as they are by default."""

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Published name -> ours."""
PUBLISHED = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
"""Ours -> the name that is written, the first of its names above."""
EVERY: tuple[Literal["query", "key", "value", "out"], ...] = ("query", "key", "value", "out")
"""The projections of an attention whose biases are all there."""

LARGEST = 2**31 - 1
"""No size is larger: the dimensions of arrays are counted by such numbers."""
MOST = 4096
"""No size that ends as one of UNROLLED is larger: beyond it a file is damaged."""
UNROLLED = ("layers", "n_layer", "heads", "n_head", "head_dim", "d_kv", "rotary_dim", "experts", "max_distance")
"""How names of sizes end of which names and tables are written out before any tensor is missed."""


class Attributes:
    """The attributes of a config.json that a family reads.

    `reads` holds them with their defaults (None is a size that may be missing, {} an object), `fixed` those
    which must have one value, `ignored` the names of those that change nothing here, `nullable` of those in
    `reads` for which null is a value as well. Any other is refused, unless it is null. Call `check` when all is
    read.
    """

    def __init__(
        self,
        hf: Mapping[str, Any],
        reads: Mapping[str, Any],
        fixed: Mapping[str, Any],
        ignored: Collection[str],
        nullable: Collection[str] = (),
    ) -> None:
        self.model_type = hf.get("model_type", "")
        self.values = dict(reads)
        self.wrong: dict[str, Any] = {}
        fixed = FIXED | dict(fixed)
        for name, value in hf.items():
            if name in reads:
                if (value is None and name in nullable) or _fits(name, value, reads[name]):
                    self.values[name] = value
                else:
                    self.refuse(name, value)
            elif name in fixed:
                if value is not None and value != fixed[name]:
                    self.refuse(name, value)
            elif name not in HARMLESS and name not in ignored and value is not None:
                self.refuse(name, value)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def refuse(self, name: str, value: Any) -> None:
        """Note that this attribute has a value that cannot be read."""
        self.wrong.setdefault(name, value)

    def activation(self, name: str, called: str | None = None) -> Activation:
        """The attribute as an activation of ours; `called` is what it comes to, where it says more than a name."""
        called = self[name] if called is None else called
        if called not in ACTIVATIONS:
            self.refuse(name, self[name])
        return ACTIVATIONS.get(called, "relu")

    def head_dim(self, width: str, heads: str) -> int:
        """How wide a head is by these two attributes; heads that do not divide the width are refused."""
        if self[width] % self[heads] and width not in self.wrong:
            self.refuse(heads, self[heads])
        return self[width] // self[heads]

    def check(self) -> None:
        """Raises a ValueError that lists every attribute which cannot be read."""
        if self.wrong:
            lines = [f"{self.model_type}: {name}={value!r} is not supported" for name, value in self.wrong.items()]
            raise ValueError("\n".join(sorted(lines)))


def is_number(value: Any) -> bool:
    """Whether it is a number that float32 can hold: neither infinite nor none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3.4e38


def _fits(name: str, value: Any, default: Any) -> bool:
    """Whether the value is of its default's kind; whole numbers are sizes, above zero."""
    if value is None:
        return default is None or default == {}
    if default is None or type(default) is int:
        largest = MOST if name.endswith(UNROLLED) else LARGEST
        return type(value) is int and 0 < value <= largest
    return is_number(value) if type(default) is float else type(value) is type(default)
