"""Real trained weights: four folders of the pip package mathformer, whose greedy answers are all right."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import source

DIGITS = range(10)
EOS = 2
PROBLEMS = {
    "addformer": {f"{a}+{b}=": f"{a + b}" for a in DIGITS for b in DIGITS},
    "subformer": {f"{a}-{b}=": f"{a - b}" for a in DIGITS for b in range(a + 1)},
    "mulformer": {f"{a}*{b}=": f"{a * b}" for a in DIGITS for b in DIGITS},
    "divformer": {f"{a}/{b}=": f"Q{a // b}R{a % b}" for a in DIGITS for b in DIGITS if b},
}


@pytest.mark.mathformer
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_single_digit_problem_is_answered_right(name):
    (package,) = importlib.util.find_spec("mathformer").submodule_search_locations
    folder = Path(package) / name
    model, params, _ = source.from_pretrained(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    characters = {id: character for character, id in vocabulary.items()}
    prompts = [[vocabulary[character] for character in problem] for problem in PROBLEMS[name]]
    tokens = np.pad(np.array(prompts), ((0, 0), (0, 6)))  # causal: what is not written yet changes nothing
    best = jax.jit(lambda tokens: jnp.argmax(model.apply({"params": params}, tokens).logits, -1))
    for end in range(len(prompts[0]), tokens.shape[1]):
        tokens[:, end] = best(tokens)[:, end - 1]
    answers = [
        "".join(characters[id] for id in row[: row.index(EOS)]) if EOS in row else "no end"
        for row in tokens[:, len(prompts[0]) :].tolist()
    ]
    assert answers == list(PROBLEMS[name].values())
