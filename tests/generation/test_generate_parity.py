"""Greedy generation beside the reference's, token by token, on random models and a ragged batch."""

import pytest

import jaxformer

pytestmark = pytest.mark.parity

NEW = 20
PROMPTS = [[5, 9, 2, 33], [7], [60, 1, 1, 8, 20, 14, 3]]
NO_SPECIALS = {"bos_token_id": None, "eos_token_id": None}


def learned_positions(transformers):
    config = transformers.GPT2Config(vocab_size=67, n_positions=64, n_embd=32, n_layer=3, n_head=4, **NO_SPECIALS)
    return transformers.GPT2LMHeadModel(config)


def rotary_positions(transformers):
    config = transformers.LlamaConfig(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        **NO_SPECIALS,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("make", [learned_positions, rotary_positions])
def test_greedy_tokens_are_the_references(make, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = make(transformers).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(0, 0.4)  # none keeps a value that hides it
    reference.save_pretrained(tmp_path / "reference")
    model, params, _ = jaxformer.from_pretrained(tmp_path / "reference")

    width = max(map(len, PROMPTS))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])

    def theirs(eos):
        options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": eos}
        return reference.generate(tokens, attention_mask=mask, **options)[:, width:].tolist()

    expected = theirs(None)
    assert jaxformer.generate(model, params, PROMPTS, NEW, eos=()).tokens.tolist() == expected
    ends = [expected[0][4], expected[1][9]]
    result = jaxformer.generate(model, params, tokens.numpy(), NEW, mask.numpy(), eos=ends, pad=0)
    longest = result.lengths.max()
    assert result.tokens[:, :longest].tolist() == theirs(ends)
    assert not result.tokens[:, longest:].any()
