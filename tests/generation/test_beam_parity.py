"""Beam search beside the reference's, token by token, on random models and ragged prompts."""

import numpy as np
import pytest

import jaxformer
from jaxformer.generation import Beam

pytestmark = pytest.mark.parity

WIDTH, NEW, SAMPLES = 4, 10, 2
PROMPTS = [[5, 9, 2, 33], [7], [60, 1, 1, 8, 20, 14, 3]]
SIZES = {"vocab_size": 61, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
PAIR = {
    **{"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 40},
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "gpt2": {"n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 4},
    "llama": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2} | HEADS,
    "t5": {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1},
    "bart": PAIR | {"decoder_start_token_id": 2, "forced_eos_token_id": 2},
    "marian": PAIR | {"decoder_start_token_id": 1, "forced_eos_token_id": 2},
}
FORCED_FIRST = {"bart": 5}
SEARCHES = [  # and how many ids end a row
    (Beam(WIDTH), 1),
    (Beam(WIDTH, 0.0), 1),
    (Beam(WIDTH, -0.7, "never"), 1),
    (Beam(WIDTH, 2.0, "never"), 1),
    (Beam(WIDTH, 2.0, True), 3),
    (Beam(WIDTH, -0.7, True), 3),
]


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    """(the reference's model, ours): the same parameters, none at a value that hides it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(request.param, **SIZES, **MODELS[request.param])
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    reference = kind.from_config(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.requires_grad:  # sinusoids stay
                parameter.normal_(*drawn(name, parameter))
    reference.generation_config.forced_bos_token_id = FORCED_FIRST.get(request.param)
    reference.save_pretrained(tmp_path)
    return reference, jaxformer.from_pretrained(tmp_path)[:2]


def drawn(name, parameter):
    """(mean, deviation): so that continuations differ in every token instead of repeating one."""
    if parameter.ndim == 1:
        return float(name.endswith("weight")), 0.1
    small = parameter.shape[0] == SIZES["vocab_size"] or "encoder_attn.out" in name or "EncDecAttention.o" in name
    return 0.0, 0.2 if small else 1.0


def theirs(reference, beam, ends):
    """(new tokens, ranks) of the reference."""
    torch = pytest.importorskip("torch")
    longest, both = max(map(len, PROMPTS)), reference.config.is_encoder_decoder
    tokens, mask = np.zeros((2, len(PROMPTS), longest), np.int64)
    for row, seen, prompt in zip(tokens, mask, PROMPTS, strict=True):
        place = slice(len(prompt)) if both else slice(longest - len(prompt), None)
        row[place], seen[place] = prompt, 1
    options = {"max_new_tokens": NEW, "num_beams": WIDTH, "num_return_sequences": SAMPLES, "do_sample": False}
    options |= {"length_penalty": beam.length_penalty, "early_stopping": beam.early_stopping}
    options |= {"eos_token_id": ends, "return_dict_in_generate": True, "output_scores": True}
    out = reference.generate(torch.tensor(tokens), attention_mask=torch.tensor(mask), **options)
    return out.sequences[:, 1 if both else longest :].numpy(), out.sequences_scores.numpy()


def test_beams_are_the_references(pair):
    reference, (model, params) = pair
    free, _ = theirs(reference, Beam(WIDTH), [2])
    lengths = []
    for beam, count in SEARCHES:
        ends = free[::SAMPLES, 4][:count].tolist()
        expected, ranks = theirs(reference, beam, ends)
        found = jaxformer.generate(model, params, PROMPTS, NEW, strategy=beam, eos=ends, samples=SAMPLES)
        said = f"{beam}, ends {ends}"
        assert found.lengths.max() == expected.shape[1], said
        np.testing.assert_array_equal(found.tokens[:, : expected.shape[1]], expected, err_msg=said)
        np.testing.assert_allclose(found.ranks, ranks, rtol=1e-5, atol=1e-5, err_msg=said)
        lengths += found.lengths.tolist()
    assert len(set(lengths)) > 2  # they end in many places
