"""Whole results beside the reference's pipelines, on tiny models of random weights."""

import numpy as np
import pytest

from jaxformer import pipeline

pytestmark = pytest.mark.parity

TEXTS = [
    "anna lives in paris.",
    "",
    "Bob sees the river Thames, in London; the lazy fox (naïve Äpfel) jumps!",
    "zebra",
]
LONG = "where does anna live ? the river thames is in london , and bob is not . " * 6


def test_text_classification(published, theirs, kit):
    pairs = [{"text": TEXTS[0], "text_pair": TEXTS[2]}, {"text": "anna"}]
    calls = [
        ((TEXTS[0],), {}),
        ((TEXTS,), {}),
        ((TEXTS,), {"top_k": None}),
        ((TEXTS[2],), {"top_k": 2}),
        ((TEXTS[2],), {"function_to_apply": "none"}),
        ((pairs,), {"top_k": None}),
        ((pairs[0],), {}),
        (([LONG, TEXTS[0]],), {"truncation": True, "top_k": None}),
        (([{"text": LONG, "text_pair": TEXTS[2]}, {"text": TEXTS[2], "text_pair": LONG}],), {"truncation": True}),
    ]
    for name in ("classify", "multi", "regression", "one"):
        ours = pipeline("text-classification", published(name))
        for call, wanted in zip(calls, theirs("text-classification", published(name), *calls), strict=True):
            kit.assert_same(ours(*call[0], **call[1]), wanted, f"{name} {call}")
    call = (TEXTS[0],), {}
    (wanted,) = theirs("sentiment-analysis", published("classify"), call, top_k=None)
    kit.assert_same(pipeline("sentiment-analysis", published("classify"), top_k=None)(TEXTS[0]), wanted)


def test_text_classification_by_a_decoder(published, theirs, kit):
    texts = [text for text in TEXTS if text]
    (wanted,) = theirs("text-classification", published("decoder_classify"), ((texts,), {"top_k": None}))
    kit.assert_same(pipeline("text-classification", published("decoder_classify"))(texts, top_k=None), wanted)


def test_zero_shot_classification(published, theirs, kit):
    classes = ["sport", "politics", "the river"]
    calls = [
        ((TEXTS[0], classes), {}),
        (([TEXTS[0], TEXTS[2]], "sport, politics"), {"multi_label": True}),
        ((TEXTS[2], "sport"), {"hypothesis_template": "about {} ."}),
        (([LONG], classes), {}),
    ]
    ours = pipeline("zero-shot-classification", published("nli"))
    for call, wanted in zip(calls, theirs("zero-shot-classification", published("nli"), *calls), strict=True):
        kit.assert_same(ours(*call[0], **call[1]), wanted, str(call))


@pytest.mark.parametrize("name", ["tag", "byte_tag"])
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_token_classification(published, theirs, kit, name, strategy):
    calls = [((TEXTS,), {}), ((TEXTS[2],), {"ignore_labels": []}), ((TEXTS[0],), {"ignore_labels": ["O", "PER"]})]
    if strategy != "none":
        calls += [((LONG,), {"stride": 10}), ((LONG,), {"stride": 0, "ignore_labels": []})]
    ours = pipeline("ner", published(name), aggregation_strategy=strategy)
    wanted = theirs("ner", published(name), *calls, aggregation_strategy=strategy)
    for call, each in zip(calls, wanted, strict=True):
        kit.assert_same(ours(*call[0], **call[1]), each, str(call))
    (cut,) = theirs("ner", published(name), ((LONG,), {}), aggregation_strategy=strategy)
    kit.assert_same(ours(LONG, truncation=True), cut)


@pytest.mark.parametrize("name", ["tag", "byte_tag"])
@pytest.mark.parametrize("strategy", ["none", "first"])
def test_token_classification_of_words(published, theirs, kit, name, strategy):
    some, other = ["anna", "lives", "in", "Paris,", "naïve"], ["zebra"]
    calls = [((some,), {}), (([some, other],), {"ignore_labels": []}), ((some,), {"delimiter": "--"})]
    given = {"aggregation_strategy": strategy, "is_split_into_words": True}
    ours = pipeline("ner", published(name), **given)
    wanted = theirs("ner", published(name), *[(inputs, options | given) for inputs, options in calls])
    for call, each in zip(calls, wanted, strict=True):
        kit.assert_same(ours(*call[0], **call[1]), each, str(call))
    for wrong in ("anna lives", [["anna"], "lives"], [["anna", 3]], 3):
        with pytest.raises(TypeError, match="expected lists of words"):
            ours(wrong)


@pytest.mark.parametrize("name", ["lm", "byte_lm"])
def test_fill_mask(published, theirs, kit, name):
    mask = "[MASK]" if name == "lm" else "<mask>"
    one, two = f"anna lives in {mask}, the Capital.", f"{mask} sees the {mask} ."
    calls = [
        ((one,), {}),
        (([one, two],), {"top_k": 3}),
        (([one],), {"top_k": 2}),
        ((two,), {"targets": ["anna", "paris", "france"], "top_k": 2}),
        ((one,), {"targets": "bob"}),
    ]
    ours = pipeline("fill-mask", published(name))
    for call, wanted in zip(calls, theirs("fill-mask", published(name), *calls), strict=True):
        kit.assert_same(ours(*call[0], **call[1]), wanted, str(call))
    options = {"tokenizer_kwargs": {"truncation": True}}
    (wanted,) = theirs("fill-mask", published(name), ((one + LONG,), options))
    kit.assert_same(ours(one + LONG, truncation=True), wanted)


@pytest.mark.parametrize("name", ["embed", "lm", "gpt", "bart"])
def test_feature_extraction(published, theirs, kit, name):
    texts = [text for text in TEXTS if text]
    calls = [((texts[0],), {}), ((texts,), {}), ((LONG,), {"truncation": True})]
    ours = pipeline("feature-extraction", published(name))
    for call, wanted in zip(calls, theirs("feature-extraction", published(name), *calls), strict=True):
        kit.assert_same(ours(*call[0], **call[1]), wanted, str(call), close=2e-5)
    arrays = ours(texts, return_tensors=True)
    assert [each.shape[0] for each in arrays] == [1] * len(texts)
    np.testing.assert_allclose(arrays[0], np.array(ours(texts[0]), np.float32), atol=1e-5)  # another batch size


def test_sentence_similarity_is_the_cosine_of_means(published):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = str(published("embed"))
    tokenizer, model = (each.from_pretrained(folder) for each in (transformers.AutoTokenizer, transformers.AutoModel))
    with torch.no_grad():
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    wanted = [torch.cosine_similarity(means[0], other, dim=0).item() for other in means[1:]]
    found = pipeline("sentence-similarity", folder)(TEXTS[0], TEXTS[1:])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


CHAT = [{"role": "user", "content": "where does anna live ?"}]


def test_text_generation(published, theirs, kit):
    prompts = ["anna lives in", "the quick brown fox jumps over", ""]
    begun = [*CHAT, {"role": "assistant", "content": "anna lives "}]
    calls = [
        ((prompts[0],), {}),
        ((prompts,), {}),
        ((prompts[1],), {"return_full_text": False}),
        ((CHAT,), {}),
        (([CHAT, begun],), {}),
        ((begun,), {"return_full_text": False}),
        ((begun,), {"continue_final_message": False}),
    ]
    greedy = {"do_sample": False, "max_new_tokens": 12}
    ours = pipeline("text-generation", published("gpt"), max_new_tokens=12)
    wanted = theirs("text-generation", published("gpt"), *calls, **greedy)
    for call, each in zip(calls, wanted, strict=True):
        kit.assert_same(ours(*call[0], **call[1]), each, str(call))
    free = ours(prompts[0], return_full_text=False)[0]["generated_text"]
    stop = next(letter for letter in free[3:] if letter not in free[:3])
    (wanted,) = theirs("text-generation", published("gpt"), ((prompts[0],), {"stop_sequence": stop}), **greedy)
    kit.assert_same(ours(prompts[0], stop_sequence=stop), wanted)
    (wanted,) = theirs("text-generation", published("gpt"), ((LONG,), {"handle_long_generation": "hole"}), **greedy)
    kit.assert_same(
        ours(LONG, handle_long_generation="hole", return_full_text=False)[0]["generated_text"],
        wanted[0]["generated_text"][len(LONG) :],
    )
