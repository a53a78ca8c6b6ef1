"""Each processor beside the reference's, on logits and in whole generations of several families."""

import numpy as np
import pytest

import jaxformer
from jaxformer.generation import (
    BadWords,
    Beam,
    ForcedFirst,
    ForcedLast,
    Greedy,
    History,
    MinLength,
    MinNewTokens,
    NoRepeatNgram,
    RepetitionPenalty,
    Sample,
    process,
)

pytestmark = pytest.mark.parity

VOCAB, PAD, EOS, NEW = 61, 1, 2, 14
PROMPTS = [[5, 9, 5, 9, 33], [7, 7, 7, 8, 7], [60, 4, 4, 8, 20]]
BAD = [[9], [5, 9], [7, 8, 7], [EOS]]
OPTIONS = {  # the reference's, and ours
    "repetition": ({"repetition_penalty": 1.8}, [RepetitionPenalty(1.8)]),
    "ngram": ({"no_repeat_ngram_size": 2}, [NoRepeatNgram(2)]),
    "bad words": ({}, []),
    "new tokens": ({"min_new_tokens": 9}, [MinNewTokens(9)]),
    "length": ({"min_length": 9}, [MinLength(9)]),
    "forced": ({"forced_bos_token_id": 5, "forced_eos_token_id": 6}, [ForcedFirst(5), ForcedLast(6)]),
    "all": (
        {"repetition_penalty": 0.6, "no_repeat_ngram_size": 3, "bad_words_ids": BAD, "min_new_tokens": 6}
        | {"forced_eos_token_id": EOS},
        [ForcedLast(EOS), MinNewTokens(6), BadWords(BAD), NoRepeatNgram(3), RepetitionPenalty(0.6)],
    ),
}


def reference_processors():
    """Ours, and what gives the reference's for logits behind tokens of one length."""
    import transformers as t

    return [
        (RepetitionPenalty(1.3), t.RepetitionPenaltyLogitsProcessor(1.3)),
        (RepetitionPenalty(0.7), t.RepetitionPenaltyLogitsProcessor(0.7)),
        *((NoRepeatNgram(size), t.NoRepeatNGramLogitsProcessor(size)) for size in (1, 2, 3)),
        (BadWords(BAD), t.NoBadWordsLogitsProcessor(BAD, [EOS])),
        (MinLength(8), t.MinLengthLogitsProcessor(8, [EOS])),
        (MinLength(9), t.MinLengthLogitsProcessor(9, [EOS])),
        (MinNewTokens(3), t.MinNewTokensLengthLogitsProcessor(5, 3, [EOS])),
        (MinNewTokens(4), t.MinNewTokensLengthLogitsProcessor(5, 4, [EOS])),
        (ForcedLast(4), t.ForcedEOSTokenLogitsProcessor(9, [4])),
    ]


def test_each_changes_logits_as_the_references():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    random = np.random.default_rng(0)
    new = np.array([[9, 5, 0, 0], [7, 8, 7, 0], [4, 4, 8, 0]], np.int32)
    new[0, 2] = 9
    logits = random.normal(0, 3, (3, VOCAB)).astype(np.float32)
    prompts = np.array(PROMPTS, np.int32)
    history = History(prompts, np.ones_like(prompts, bool), new, np.int32(3), np.int32(4), np.array([EOS]))
    tokens = torch.tensor(np.concatenate([prompts, new[:, :3]], axis=1).astype(np.int64))
    for ours, theirs in reference_processors():
        expected = theirs(tokens, torch.tensor(logits)).numpy()
        found = process.processed([ours.checked()], logits, history, [()])
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=str(ours))


@pytest.mark.parametrize(
    ("ours", "name", "value"),
    [
        (Sample(top_k=7), "TopKLogitsWarper", 7),
        (Sample(top_p=0.8), "TopPLogitsWarper", 0.8),
        (Sample(min_p=0.2), "MinPLogitsWarper", 0.2),
        (Sample(typical_p=0.6), "TypicalLogitsWarper", 0.6),
        (Sample(typical_p=0.95), "TypicalLogitsWarper", 0.95),
        (Sample(epsilon=0.02), "EpsilonLogitsWarper", 0.02),
        (Sample(epsilon=0.6), "EpsilonLogitsWarper", 0.6),
        (Sample(eta=0.02), "EtaLogitsWarper", 0.02),
        (Sample(eta=0.3), "EtaLogitsWarper", 0.3),
    ],
    ids=str,
)
def test_what_is_drawn_from_is_narrowed_as_the_references(ours, name, value):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    logits = np.random.default_rng(1).normal(0, 2, (40, VOCAB)).astype(np.float32)
    theirs = getattr(transformers, name)(value)(None, torch.tensor(logits)).numpy()
    found = np.asarray(ours.checked().narrowed(logits))
    np.testing.assert_allclose(found, theirs, rtol=1e-6)
    assert 40 <= np.isfinite(found).sum() < found.size


def test_all_that_narrows_acts_in_the_references_order():
    torch, t = pytest.importorskip("torch"), pytest.importorskip("transformers")
    logits = np.random.default_rng(2).normal(0, 2, (40, VOCAB)).astype(np.float32)
    ours = Sample(1.7, 30, 0.9, 0.05, 0.9, 0.01, 0.02)
    expected = torch.tensor(logits)
    chain = [t.TemperatureLogitsWarper(1.7), t.TopKLogitsWarper(30), t.TopPLogitsWarper(0.9)]
    chain += [t.MinPLogitsWarper(0.05), t.TypicalLogitsWarper(0.9), t.EpsilonLogitsWarper(0.01)]
    for warper in [*chain, t.EtaLogitsWarper(0.02)]:
        expected = warper(None, expected)
    np.testing.assert_allclose(ours.checked().narrowed(logits), expected.numpy(), rtol=1e-5)


@pytest.fixture(scope="module", params=["gpt2", "llama", "t5", "bart"])
def pair(request, reference):
    """(the reference's model, ours)."""
    model, _, ours = reference(request.param)
    return model, ours


@pytest.mark.parametrize("name", OPTIONS)
def test_generations_are_the_references(pair, name):
    torch = pytest.importorskip("torch")
    model, ours = pair
    both = model.config.is_encoder_decoder
    tokens = torch.tensor(PROMPTS)

    def theirs(beams, options):
        given = {"max_new_tokens": NEW, "do_sample": False, "num_beams": beams, "eos_token_id": EOS}
        given |= {"attention_mask": torch.ones_like(tokens), "pad_token_id": PAD}
        return model.generate(tokens, **given, **options)[:, 1 if both else len(PROMPTS[0]) :].numpy()

    options, processors = OPTIONS[name]
    changed = 0
    for strategy, beams in ((Greedy, 1), (lambda processors: Beam(3, processors=processors), 3)):
        plain = theirs(beams, {})
        if name == "bad words":  # such as would come
            words = [plain[0, 2:3].tolist(), plain[1, 1:3].tolist(), plain[2, 1:4].tolist()]
            options, processors = {"bad_words_ids": words}, [BadWords(words)]
        expected = theirs(beams, options)
        found = jaxformer.generate(*ours, PROMPTS, NEW, strategy=strategy(processors), eos=EOS, pad=PAD)
        assert found.lengths.max() == expected.shape[1], beams
        np.testing.assert_array_equal(found.tokens[:, : expected.shape[1]], expected, err_msg=str(beams))
        changed += plain.shape != expected.shape or (plain != expected).any()
    assert changed or name not in ("repetition", "ngram", "bad words", "all")
