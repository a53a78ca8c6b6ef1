"""Pipelines that the reference has dropped, beside those of transformers 4.55.4: whole results.

They run in an environment of their own, which JAXFORMER_REFERENCE_4 names:

    python -m venv old && old/bin/pip install transformers==4.55.4 torch
    JAXFORMER_REFERENCE_4=old/bin/python pytest tests/pipelines
"""

import pytest

import jaxformer
from jaxformer import pipeline
from jaxformer.generation import Beam, Greedy

pytestmark = pytest.mark.parity

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


def test_the_public_name_is_there():
    assert jaxformer.pipeline is pipeline
