"""Beam search beside the reference's, token by token, on random models and ragged prompts."""

import numpy as np
import pytest

import jaxformer
from jaxformer.generation import Beam

pytestmark = pytest.mark.parity

WIDTH, NEW, SAMPLES = 4, 10, 2
PROMPTS = [[5, 9, 2, 33], [7], [60, 1, 1, 8, 20, 14, 3]]
FORCED = {"bart": {"first": 5, "last": 2}, "marian": {"last": 2}}
SEARCHES = [  # and how many ids end a row
    (Beam(WIDTH), 1),
    (Beam(WIDTH, 0.0), 1),
    (Beam(WIDTH, -0.7, "never"), 1),
    (Beam(WIDTH, 2.0, "never"), 1),
    (Beam(WIDTH, 2.0, True), 3),
    (Beam(WIDTH, -0.7, True), 3),
]


@pytest.fixture(params=["gpt2", "llama", "t5", "bart", "marian"])
def pair(request, reference):
    """(the reference's model, ours)."""
    model, _, ours = reference(request.param, **FORCED.get(request.param, {}))
    return model, ours


def theirs(model, beam, ends):
    """(new tokens, ranks) of the reference."""
    torch = pytest.importorskip("torch")
    longest, both = max(map(len, PROMPTS)), model.config.is_encoder_decoder
    tokens, mask = np.zeros((2, len(PROMPTS), longest), np.int64)
    for row, seen, prompt in zip(tokens, mask, PROMPTS, strict=True):
        place = slice(len(prompt)) if both else slice(longest - len(prompt), None)
        row[place], seen[place] = prompt, 1
    options = {"max_new_tokens": NEW, "num_beams": WIDTH, "num_return_sequences": SAMPLES, "do_sample": False}
    options |= {"length_penalty": beam.length_penalty, "early_stopping": beam.early_stopping}
    options |= {"eos_token_id": ends, "return_dict_in_generate": True, "output_scores": True}
    out = model.generate(torch.tensor(tokens), attention_mask=torch.tensor(mask), **options)
    return out.sequences[:, 1 if both else longest :].numpy(), out.sequences_scores.numpy()


def test_beams_are_the_references(pair):
    model, ours = pair
    free, _ = theirs(model, Beam(WIDTH), [2])
    lengths = []
    for beam, count in SEARCHES:
        ends = free[::SAMPLES, 4][:count].tolist()
        expected, ranks = theirs(model, beam, ends)
        found = jaxformer.generate(*ours, PROMPTS, NEW, strategy=beam, eos=ends, samples=SAMPLES)
        said = f"{beam}, ends {ends}"
        assert found.lengths.max() == expected.shape[1], said
        np.testing.assert_array_equal(found.tokens[:, : expected.shape[1]], expected, err_msg=said)
        np.testing.assert_allclose(found.ranks, ranks, rtol=1e-5, atol=1e-5, err_msg=said)
        lengths += found.lengths.tolist()
    assert len(set(lengths)) > 2  # they end in many places
