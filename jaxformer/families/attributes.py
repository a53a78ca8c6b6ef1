"""Reading a published config.json: every attribute is used, checked or known to change nothing."""

from collections.abc import Collection, Mapping
from typing import Any

_HARMLESS = """
    _attn_implementation_autoset _name_or_path _num_labels architectures bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label initializer_range is_decoder label2id length_penalty max_length
    min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p
    torch_dtype torchscript transformers.js_config transformers_version typical_p unk_token_id
    use_bfloat16 use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())
"""Attributes of any model type that say nothing of the architecture: they stay on the model's card."""

FIXED = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}
"""Attributes of any model type that must be as they are by default."""

ACTIVATIONS = {
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


LARGEST = 2**31 - 1
"""No size is larger: the dimensions of arrays are counted by such numbers."""
DEEPEST = 4096
"""Layers, and sizes of a head, beyond which a file is damaged: they are written out before any tensor is missed."""


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
        self.wrong: list[str] = []
        fixed = FIXED | dict(fixed)
        for name, value in hf.items():
            if name in reads:
                limited = name.endswith(("layers", "n_layer", "head_dim", "d_kv", "rotary_dim"))
                if (value is None and name in nullable) or (
                    _fits(value, reads[name]) and not (limited and isinstance(value, int) and value > DEEPEST)
                ):
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
        self.wrong.append(f"{name}={value!r} is not supported")

    def activation(self, name: str) -> Any:
        """The attribute as an activation of ours."""
        if self[name] not in ACTIVATIONS:
            self.refuse(name, self[name])
        return ACTIVATIONS.get(self[name])

    def check(self) -> None:
        """Raises a ValueError that lists every attribute which cannot be read."""
        if self.wrong:
            raise ValueError("\n".join(f"{self.model_type}: {line}" for line in sorted(self.wrong)))


def _fits(value: Any, default: Any) -> bool:
    """Whether the value is of its default's kind; whole numbers are sizes, above zero."""
    if value is None:
        return default is None or default == {}
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if default is None or isinstance(default, int):
        return isinstance(value, int) and 0 < value <= LARGEST
    if isinstance(default, float):
        return isinstance(value, int | float) and abs(value) <= LARGEST  # false of what is not a number, too
    return isinstance(value, type(default))
