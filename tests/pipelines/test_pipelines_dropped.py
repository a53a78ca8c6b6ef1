"""Pipelines that the reference has dropped, beside those of transformers 4.55.4: whole results.

They run in an environment of their own, which JAXFORMER_REFERENCE_4 names:

    python -m venv old && old/bin/pip install transformers==4.55.4 torch
    JAXFORMER_REFERENCE_4=old/bin/python pytest tests/pipelines
"""

import json

import pytest
import tokenizers

import jaxformer
from jaxformer import pipeline
from jaxformer.generation import Beam, Greedy

pytestmark = pytest.mark.parity

ROLES = ("bos", "eos", "pad", "unk")
QUESTION = "where does anna live ?"
CONTEXT = "Anna lives in Paris, the capital of France. Bob sees the river Thames in London (naïve Äpfel)."
LONG = " ".join([CONTEXT, "The quick brown fox jumps over the lazy dog."] * 3)


@pytest.mark.parametrize("name", ["answer", "byte_answer"])
def test_question_answering(published, dropped, kit, name):
    pair = {"question": QUESTION, "context": CONTEXT}
    calls = [
        pair,
        pair | {"top_k": 3},
        pair | {"top_k": 3, "align_to_words": False, "max_answer_len": 4},
        pair | {"handle_impossible_answer": True, "top_k": 20},
        {"question": [QUESTION, "who sees it ?"], "context": CONTEXT},
        {"question": QUESTION, "context": LONG, "doc_stride": 8, "top_k": 4},
        {"question": QUESTION, "context": LONG, "max_seq_len": 32, "doc_stride": 5, "handle_impossible_answer": True},
    ]
    ours = pipeline("question-answering", published(name))
    wanted = dropped("question-answering", published(name), *[([], call) for call in calls])
    for call, each in zip(calls, wanted, strict=True):
        kit.assert_same(ours(**call), each, str(call))


@pytest.mark.parametrize("name", ["bart", "t5"])
@pytest.mark.parametrize(
    ("task", "prefix"), [("text2text-generation", ""), ("summarization", ""), ("translation_en_to_fr", "the fox : ")]
)
def test_text_to_text(published, dropped, kit, name, task, prefix):
    texts = ["anna lives in paris .", "", CONTEXT[:40]]
    plain = {"max_new_tokens": 12, "do_sample": False}
    beams = plain | {"num_beams": 3}
    ours = pipeline(task, published(name), max_new_tokens=12, strategy=Greedy())
    found = [
        ours(texts[0]),
        ours(texts),
        ours(texts, strategy=Beam(3)),
        ours(texts, strategy=Beam(3), num_return_sequences=2),
    ]
    calls = [
        ([texts[0]], plain | {"num_beams": 1}),
        ([texts], plain | {"num_beams": 1}),
        ([texts], beams),
        ([texts], beams | {"num_return_sequences": 2}),
    ]
    kit.assert_same(found, dropped(task, published(name), *calls))
    if name == "t5" and prefix:
        unnamed = pipeline("translation", published(name), max_new_tokens=12)
        assert unnamed(prefix + texts[0]) == ours(texts[0])


@pytest.fixture
def languages(published, tmp_path):
    """The folder of a model with a token for each language, as mBART-50 has them."""
    import torch
    import transformers

    inner = tokenizers.Tokenizer.from_file(str(published("bart") / "tokenizer.json"))
    codes = transformers.models.mbart50.tokenization_mbart50.FAIRSEQ_LANGUAGE_CODES
    inner.add_special_tokens(codes)
    english, end = inner.token_to_id("en_XX"), 2
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        "en_XX $A </s>", special_tokens=[("en_XX", english), ("</s>", end)]
    )
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 48))}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 32, "vocab_size": 400}
    config = transformers.MBartConfig(**sizes, max_position_embeddings=64, forced_eos_token_id=None)
    config.decoder_start_token_id = end
    torch.manual_seed(0)
    model = transformers.MBartForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # such that the languages change what is written
            if parameter.ndim == 1:
                parameter.normal_(float(name.endswith("weight")), 0.1)
            else:
                parameter.normal_(0, 0.2 if len(parameter) == sizes["vocab_size"] else 1.0)
    model.save_pretrained(tmp_path)
    inner.save(str(tmp_path / "tokenizer.json"))
    roles = {f"{role}_token": token for role, token in zip(ROLES, ("<s>", "</s>", "<pad>", "<unk>"), strict=True)}
    said = roles | {"tokenizer_class": "MBart50TokenizerFast", "src_lang": "en_XX", "model_max_length": 64}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said | {"additional_special_tokens": codes}))
    return tmp_path


def test_translation_between_languages(languages, dropped, kit):
    texts = ["anna lives in paris .", "bob sees the river"]
    pairs = [("en_XX", "fr_XX"), ("de_DE", "fr_XX"), ("de_DE", "ro_RO")]
    ours = pipeline("translation", languages, max_new_tokens=8, strategy=Greedy())
    plain = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1}
    calls = [([texts], plain | {"src_lang": source, "tgt_lang": target}) for source, target in pairs]
    found = [ours(texts, src_lang=source, tgt_lang=target) for source, target in pairs]
    kit.assert_same(found, dropped("translation", languages, *calls))
    assert found[0] != found[1] != found[2]
    with pytest.raises(ValueError, match=r"src_lang is 'xx_XX': the languages of this tokenizer are af_ZA, ar_AR"):
        ours(texts, src_lang="xx_XX")


def test_the_public_name_is_there():
    assert jaxformer.pipeline is pipeline
