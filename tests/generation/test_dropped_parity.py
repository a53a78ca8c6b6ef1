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
from jaxformer.generation import Contrastive, NoRepeatNgram

pytestmark = pytest.mark.parity

OLD = os.environ.get("JAXFORMER_REFERENCE_4")
VOCAB, NEW = 61, 12
SIZES = {"vocab_size": VOCAB, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
PAIR = {
    **{"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 40},
}
MODELS = {
    "gpt2": {"n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 4},
    "bart": PAIR | {"decoder_start_token_id": 2, "forced_eos_token_id": None},
}
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
made = [model.generate(tokens, **given, **options).tolist() for options in calls]
print(json.dumps([[row[1 if config.is_encoder_decoder else len(prompts[0]) :] for row in rows] for rows in made]))
"""


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """(a folder of the reference's model, our reading of it)."""
    if OLD is None:
        pytest.skip("JAXFORMER_REFERENCE_4 names no python with transformers==4.55.4")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(request.param, **SIZES, **MODELS[request.param])
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    reference = kind.from_config(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(float(name.endswith("weight")), 0.1)
            else:
                parameter.normal_(0, 0.2 if parameter.shape[0] == VOCAB else 0.6)
    reference.generation_config.forced_bos_token_id = reference.generation_config.forced_eos_token_id = None
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder)
    return folder, jaxformer.from_pretrained(folder)[:2]


def theirs(folder, *calls):
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
    for (alpha, k, size), expected in zip(cases, theirs(folder, *calls), strict=True):
        strategy = Contrastive(alpha, k, () if size is None else (NoRepeatNgram(size),))
        found = jaxformer.generate(*ours, PROMPTS, NEW, strategy=strategy, eos=(), pad=1)
        np.testing.assert_array_equal(found.tokens, expected, err_msg=str(strategy))
