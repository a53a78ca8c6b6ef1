"""Strategies that the reference has dropped, beside its last version that had them (4.55.4), token by token.

It runs in an environment of its own, which JAXFORMER_REFERENCE_4 names:

    python -m venv old && old/bin/pip install transformers==4.55.4 torch
    JAXFORMER_REFERENCE_4=old/bin/python pytest tests/generation
"""

import json
import os
import subprocess

import numpy as np
import pytest

import jaxformer
from jaxformer.generation import Beam, Contrastive, NoRepeatNgram, RepetitionPenalty

pytestmark = pytest.mark.parity

OLD = os.environ.get("JAXFORMER_REFERENCE_4")
NEW = 12
PROMPTS = [[5, 9, 5, 9, 33], [7, 7, 7, 8, 7], [60, 4, 4, 8, 20]]
SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, transformers
folder, prompts, calls = json.load(sys.stdin)
config = transformers.AutoConfig.from_pretrained(folder)
kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
model, tokens = kind.from_pretrained(folder).eval(), torch.tensor(prompts)
given = {"attention_mask": torch.ones_like(tokens), "pad_token_id": 1, "do_sample": False}
given |= {"return_dict_in_generate": True, "output_scores": True}
begin = 1 if config.is_encoder_decoder else len(prompts[0])
made = [model.generate(tokens, **given, **options) for options in calls]
ranks = [getattr(out, "sequences_scores", tokens).tolist() for out in made]
print(json.dumps([[out.sequences[:, begin:].tolist() for out in made], ranks]))
"""


@pytest.fixture(scope="module", params=["gpt2", "bart"])
def pair(request, reference):
    """(a folder of the reference's model, our reading of it)."""
    if OLD is None:
        pytest.skip("JAXFORMER_REFERENCE_4 names no python with transformers==4.55.4")
    return reference(request.param, 0.6)[1:]


def theirs(folder, *calls):
    """(new tokens, ranks of beam searches) of each call."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    given = json.dumps([str(folder), PROMPTS, calls])
    done = subprocess.run([OLD, "-c", SCRIPT], input=given, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_contrastive_search_is_the_references(pair):
    folder, ours = pair
    cases = [(0.6, 4, None), (0.3, 6, None), (0.8, 3, 2)]
    calls = [
        {"penalty_alpha": alpha, "top_k": k, "max_new_tokens": NEW, "eos_token_id": None}
        | ({} if size is None else {"no_repeat_ngram_size": size})
        for alpha, k, size in cases
    ]
    for (alpha, k, size), expected in zip(cases, theirs(folder, *calls)[0], strict=True):
        strategy = Contrastive(alpha, k, () if size is None else (NoRepeatNgram(size),))
        found = jaxformer.generate(*ours, PROMPTS, NEW, strategy=strategy, eos=(), pad=1)
        np.testing.assert_array_equal(found.tokens, expected, err_msg=str(strategy))


GROUPED = [  # groups, penalty, width, length penalty, early stopping, samples, repetition penalty
    (2, 0.8, 6, 1.0, False, 3, 1.0),
    (3, 1.7, 6, 0.0, True, 6, 1.4),
    (4, 5.0, 4, -0.5, "never", 4, 1.0),
]


def test_groups_are_the_references(pair):
    """So many ids end a row that some groups are done before others, and some rows are cut."""
    (folder, ours), ends = pair, [*range(5, 61, 8)]
    calls = [
        {"num_beams": width, "num_beam_groups": groups, "diversity_penalty": penalty, "length_penalty": length}
        | {"early_stopping": early, "num_return_sequences": samples, "max_new_tokens": NEW, "eos_token_id": ends}
        | {"repetition_penalty": repetition}
        for groups, penalty, width, length, early, samples, repetition in GROUPED
    ]
    lengths = []
    for case, expected, ranks in zip(GROUPED, *theirs(folder, *calls), strict=True):
        groups, penalty, width, length, early, samples, repetition = case
        processors = [] if repetition == 1 else [RepetitionPenalty(repetition)]
        strategy = Beam(width, length, early, processors, groups, penalty)
        found = jaxformer.generate(*ours, PROMPTS, NEW, strategy=strategy, eos=ends, pad=1, samples=samples)
        rows = []
        for tokens, size in zip(found.tokens.tolist(), found.lengths, strict=True):
            if tokens[size - 1] in ends:  # the reference writes the first of them in place of each
                tokens[size - 1] = ends[0]
            rows.append(tokens[: len(expected[0])])
        np.testing.assert_array_equal(rows, expected, err_msg=str(case))
        np.testing.assert_allclose(found.ranks, ranks, rtol=1e-5, atol=1e-5, err_msg=str(case))
        lengths += found.lengths.tolist()
    assert len(set(lengths)) > 3


def test_phrases_come_as_with_the_reference_and_likelier(pair):
    """Its rules are not ours (docs/log.md), its ranks are: ours are to be above them, and below those without."""
    (folder, ours), ends = pair, [17, 29, 35, 52]
    cases = [[[22, 23, 24], [50]], [[[14, 15], [30, 31, 32]], [44]]]
    calls = [
        {"num_beams": 6, "max_new_tokens": NEW, "eos_token_id": ends, "force_words_ids": phrases} for phrases in cases
    ]
    plain = jaxformer.generate(*ours, PROMPTS, NEW, strategy=Beam(6), eos=ends, pad=1)
    above = []
    for phrases, expected, ranks in zip(cases, *theirs(folder, *calls), strict=True):
        found = jaxformer.generate(*ours, PROMPTS, NEW, strategy=Beam(6, phrases=phrases), eos=ends, pad=1)
        for rows in (found.tokens.tolist(), expected):
            assert all(holds(row, phrase) for row in rows for phrase in phrases)
        assert (found.ranks <= plain.ranks).all()
        above += (found.ranks - ranks).tolist()
    assert np.mean(np.array(above) > 0) > 0.5
    assert np.mean(above) > 0.02


def holds(tokens, phrase):
    ways = phrase if isinstance(phrase[0], list) else [phrase]
    return any(tokens[i : i + len(way)] == way for way in ways for i in range(len(tokens)))
