"""Models of the reference, tiny and random, beside which generation is tested."""

import pytest

import jaxformer

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
    "bart": PAIR | {"decoder_start_token_id": 2, "forced_eos_token_id": None},
    "marian": PAIR | {"decoder_start_token_id": 1, "forced_eos_token_id": None},
}


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """A function of a model's name, and what it forces -> (the reference's model, its folder, our reading of it)."""

    def made(name, deviation=1.0, first=None, last=None):
        torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
        config = transformers.AutoConfig.for_model(name, **SIZES, **MODELS[name])
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        model = kind.from_config(config).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if parameter.requires_grad:  # sinusoids stay
                    parameter.normal_(*drawn(path, parameter, deviation))
        model.generation_config.forced_bos_token_id = first
        model.generation_config.forced_eos_token_id = last
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        return model, folder, jaxformer.from_pretrained(folder)[:2]

    return made


def drawn(path, parameter, deviation):
    """(mean, deviation): none hides a mistake, and continuations differ in every token instead of repeating one."""
    if parameter.ndim == 1:
        return float(path.endswith("weight")), 0.1
    small = parameter.shape[0] == SIZES["vocab_size"] or "encoder_attn.out" in path or "EncDecAttention.o" in path
    return 0.0, 0.2 if small else deviation
