"""What every pipeline promises: one or many, long or empty, right or wrong, and nothing compiled twice."""

import dataclasses
import io
import itertools
import json

import jax
import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from jaxformer import pipeline, sharding
from jaxformer.config import Card, ExtraHeadConfig, InputConfig, LearnedConfig
from jaxformer.generation import Beam, Greedy, Lookup, Sample, generate
from jaxformer.nn.model import Model
from jaxformer.pipelines import ALIASES, TASKS, progress
from jaxformer.pipelines.code_infilling import MARKS
from jaxformer.pipelines.generating import strategy_of, usual
from jaxformer.pipelines.token_classification import apart
from jaxformer.tasks.infill import SENTINELS, infill_prompt
from jaxformer.testing import randomized, tiny_models
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer
from jaxformer.text.tokenizer_json import JsonTokenizer

CLASSES, TAGS = ("contradiction", "neutral", "entailment"), ("O", "B-PER", "I-PER")
LONG = "anna lives in paris and sees the river . " * 12
MODELS = {
    "text-classification": ("encoder", "words", CLASSES, ExtraHeadConfig("classify", 3, "first")),
    "zero-shot-classification": ("encoder", "words", CLASSES, ExtraHeadConfig("classify", 3, "first")),
    "token-classification": ("encoder", "words", TAGS, ExtraHeadConfig("tag", 3)),
    "question-answering": ("encoder", "words", (), ExtraHeadConfig("answer", 2)),
    "fill-mask": ("encoder", "words", (), None),
    "feature-extraction": ("encoder", "words", (), None),
    "sentence-similarity": ("encoder", "words", (), None),
    "text-generation": ("learned", "bytes", (), None),
    "code-infilling": ("learned", "bytes", (), None),
    "text2text-generation": ("encoder_decoder", "bytes", (), None),
    "translation": ("encoder_decoder", "bytes", (), None),
    "summarization": ("encoder_decoder", "bytes", (), None),
}
INPUTS = {
    "zero-shot-classification": lambda text: ((text,), {"candidate_labels": "sport, politics"}),
    "question-answering": lambda text: (({"question": "who ?", "context": text},), {}),
    "fill-mask": lambda text: ((f"[MASK] {text}",), {}),
    "sentence-similarity": lambda text: (({"source_sentence": text, "sentences": ["anna", text]},), {}),
    "code-infilling": lambda text: ((f"{text}<FILL_ME>",), {}),
}
WRITING = ("text-generation", "code-infilling", "text2text-generation", "translation", "summarization")
READING = [task for task in MODELS if task not in WRITING]


def parts(kit, task):
    name, kind, names, extra = MODELS[task]
    return kit.parts(name, kind, names, () if extra is None else (extra,))


@pytest.fixture(scope="module")
def made(kit):
    """made(task): its pipeline."""
    found = {}

    def make(task):
        if task not in found:
            found[task] = pipeline(task, parts(kit, task), **({"max_new_tokens": 5} if task in WRITING else {}))
        return found[task]

    return make


def say(made, task, text, **more):
    inputs, options = INPUTS.get(task, lambda text: ((text,), {}))(text)
    return made(task)(*inputs, **options, **more)


def say_all(made, task, texts, **more):
    calls = [INPUTS.get(task, lambda text: ((text,), {}))(text) for text in texts]
    return made(task)([inputs for (inputs,), _ in calls], **calls[0][1], **more)


def alone(task, results):
    """A result of a list as it is when its text comes alone."""
    wraps = task in ("text-classification", "text2text-generation", "translation", "summarization")
    return [results] if wraps else results


def test_there_is_a_pipeline_for_every_task():
    assert MODELS.keys() == TASKS.keys()
    assert set(ALIASES.values()) <= TASKS.keys()


@pytest.mark.parametrize("task", MODELS)
def test_a_list_gives_what_each_text_gives_alone_in_any_batch(made, kit, task):
    texts = ["anna lives in paris .", "bob", "who sees the river thames in london ? bob sees the fox"]
    many = say_all(made, task, texts)
    assert len(many) == 3
    for text, result in zip(texts, many, strict=True):
        kit.assert_same(say(made, task, text), alone(task, result), close=2e-5)
    for size in (1, 2):
        kit.assert_same(say_all(made, task, texts, batch_size=size), many, close=2e-5)
    json.dumps(many)  # plain data


@pytest.mark.parametrize("task", MODELS)
def test_a_second_call_in_the_same_bucket_compiles_nothing(made, count_compilations, task):
    say_all(made, task, ["anna lives in paris", "bob"])
    with count_compilations() as compiled:
        say_all(made, task, ["who sees the river in london ?", "a fox jumps over bob"])
        say_all(made, task, ["fox", "the lazy dog"])
    assert compiled.names == []


def test_pipelines_of_one_model_share_their_programs(kit, count_compilations):
    model, params, tokenizer = parts(kit, "text-classification")
    pipeline("text-classification", (model, params, tokenizer))("anna")
    with count_compilations() as compiled:
        pipeline("zero-shot-classification", (model, params, tokenizer))("bob", "fox")
    assert compiled.names == []


@pytest.mark.parametrize("task", MODELS)
def test_an_empty_list_gives_an_empty_list(made, task):
    options = {"candidate_labels": "sport"} if task == "zero-shot-classification" else {}
    assert made(task)([], **options) == []


@pytest.mark.parametrize("task", MODELS)
def test_an_empty_text_is_defined(made, task):
    if task in ("zero-shot-classification", "question-answering"):
        with pytest.raises(ValueError, match="is empty"):
            say(made, task, "")
    elif task == "token-classification":
        assert say(made, task, "") == []
    else:
        assert say(made, task, "")


def test_without_a_template_an_empty_text_is_an_error(kit):
    model, params, tokenizer = kit.parts("learned", "bytes", (), (ExtraHeadConfig("classify", 3, "last"),))
    with pytest.raises(ValueError, match="text 1 is empty"):
        pipeline("text-classification", (model, params, tokenizer))(["anna", ""])


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize("wrong", [3, None, {"text": 3}, ["anna", 3], [["anna"]], b"anna"], ids=repr)
def test_wrong_types_are_one_clear_error(made, task, wrong):
    options = {"candidate_labels": "sport"} if task == "zero-shot-classification" else {}
    with pytest.raises(TypeError, match=f"^{task}: .*expected"):
        made(task)(wrong, **options)


@pytest.mark.parametrize("task", MODELS)
def test_options_are_checked(made, task):
    with pytest.raises(TypeError, match=f"^{task} has no option topk; it has .*batch_size"):
        made(task)("anna", topk=3)
    with pytest.raises(ValueError, match="batch_size is 0: give a whole number from 1 on"):
        made(task)("anna", batch_size=0)


@pytest.mark.parametrize(
    ("task", "options", "named"),
    [
        ("text-classification", {"top_k": 0}, "top_k is 0"),
        ("text-classification", {"function_to_apply": "tanh"}, "'tanh': give one of 'softmax'"),
        ("zero-shot-classification", {"hypothesis_template": "so"}, "write {}"),
        ("zero-shot-classification", {"hypothesis_template": "{so}"}, "write {}"),
        ("zero-shot-classification", {}, "there is no class"),
        ("token-classification", {"aggregation_strategy": "mean"}, "'mean': give one of 'none'"),
        ("token-classification", {"stride": 3}, "another aggregation_strategy"),
        ("token-classification", {"stride": 62, "aggregation_strategy": "max"}, "a window has 62 tokens"),
        ("fill-mask", {"targets": []}, "at least one"),
        ("fill-mask", {}, "write \\[MASK\\]"),
        ("text-generation", {"strategy": "greedy"}, "give Greedy"),
        ("text-generation", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("text-generation", {"handle_long_generation": "cut"}, "'hole'"),
        ("text-generation", {"stop_sequence": ["a", ""]}, "one character or more"),
        ("translation", {"src_lang": "en_XX"}, "src_lang is 'en_XX': the languages of this tokenizer are none"),
        ("translation", {"tgt_lang": "<s>"}, "tgt_lang is '<s>'"),
        ("code-infilling", {}, "0 gaps: write <FILL_ME> once"),
    ],
)
def test_values_out_of_their_range_are_told(made, task, options, named):
    with pytest.raises(ValueError, match=named):
        made(task)("anna", **options)


@pytest.mark.parametrize("task", [task for task in MODELS if task != "question-answering"])
def test_long_texts_are_an_error_or_cut_as_documented(made, task):
    if task in ("zero-shot-classification", "sentence-similarity"):
        assert say(made, task, LONG)
        return
    if task in ("text2text-generation", "translation", "summarization"):
        pytest.skip("sinusoid positions have no end")
    with pytest.raises(ValueError, match="64"):
        say(made, task, LONG)
    if task == "text-generation":
        assert say(made, task, LONG, handle_long_generation="hole")
    elif task not in WRITING:
        assert say(made, task, LONG, truncation=True)


def test_a_long_source_is_an_error_or_cut(kit):
    model, _, tokenizer = kit.parts("encoder_decoder", "bytes")
    encoder = dataclasses.replace(model.config.encoder, input=InputConfig(LearnedConfig(16)))
    model = model.clone(config=dataclasses.replace(model.config, encoder=encoder))
    params = sharding.init(model, jax.random.key(0))
    made = pipeline("translation", (model, params, tokenizer), max_new_tokens=3)
    with pytest.raises(ValueError, match=r"text 0: rows of \d+ tokens.*truncation=True"):
        made(LONG)
    assert made(LONG, truncation=True)


def test_questions_find_their_answer_in_any_window(made):
    answer = made("question-answering")(question="who ?", context=LONG, doc_stride=4, max_answer_len=6)
    assert LONG[answer["start"] : answer["end"]] == answer["answer"]
    with pytest.raises(ValueError, match="doc_stride"):
        made("question-answering")(question=LONG, context="anna")
    with pytest.raises(ValueError, match="max_seq_len is 65"):
        made("question-answering")(question="who ?", context="anna", max_seq_len=65)
    with pytest.raises(ValueError, match="2 questions and 1 contexts"):
        made("question-answering")(question=["who ?", "where ?"], context=["anna"])
    both = made("question-answering")("who ?", "anna sees bob")
    assert both == made("question-answering")(question="who ?", context="anna sees bob")


def test_windows_of_entities_give_what_the_text_alone_would(made):
    short = "anna lives in paris"
    every = {"aggregation_strategy": "simple", "ignore_labels": []}
    assert say(made, "token-classification", short, stride=4, **every) == say(
        made, "token-classification", short, **every
    )
    found = say(made, "token-classification", LONG, stride=4, **every)
    assert found[0]["start"] == 0
    assert found[-1]["end"] == len(LONG.rstrip())
    assert all(one["end"] <= two["start"] for one, two in itertools.pairwise(found))


def test_of_entities_that_overlap_the_longest_and_surest_stay():
    spans = [(0, 3, 0.5), (2, 6, 0.1), (6, 8, 0.2), (6, 8, 0.9)]
    windows = [[{"start": a, "end": b, "score": score}] for a, b, score in spans]
    assert [(each["start"], each["score"]) for each in apart(windows)] == [(2, 0.1), (6, 0.9)]


def test_a_model_that_lacks_the_head_is_told_what_to_do(kit):
    plain = kit.parts("encoder")
    for task, named in (
        ("text-classification", "no head 'classify' \\(its heads: lm\\).*jaxformer.tasks.Classify"),
        ("ner", "no head 'tag'.*head='tag:N'.*jaxformer.tasks.Tag"),
        ("question-answering", "no head 'answer'.*jaxformer.tasks.Answer"),
        ("text-generation", "model.decoder is missing"),
        ("translation", "model.decoder is missing"),
        ("code-infilling", "(?s)model.decoder is missing.*fim_prefix"),
    ):
        with pytest.raises(ValueError, match=named):
            pipeline(task, plain)
    opinions = kit.parts("encoder", "words", ("bad", "good", "x"), (ExtraHeadConfig("classify", 3, "first"),))
    with pytest.raises(ValueError, match=r"none of its classes is called entailment \(bad, good, x\)"):
        pipeline("zero-shot-classification", opinions)
    with pytest.raises(ValueError, match=r"(?s)no encoder.*no mask"):
        pipeline("fill-mask", kit.parts("learned", "bytes"))
    with pytest.raises(ValueError, match="either"):
        pipeline("sentence-similarity", kit.parts("encoder_decoder", "bytes"))


def test_tasks_and_sources_that_there_are_not(kit):
    plain = kit.parts("encoder")
    with pytest.raises(ValueError, match="there is no task 'summarisation': give one of text-generation"):
        pipeline("summarisation", plain)
    with pytest.raises(TypeError, match="a tuple"):
        pipeline("fill-mask", plain[:2])
    with pytest.raises(ValueError, match="has no tokenizer"):
        pipeline("fill-mask", (*plain[:2], None))
    with pytest.raises(TypeError, match="stands in memory"):
        pipeline("fill-mask", plain, dtype="float32")
    with pytest.raises(FileNotFoundError):
        pipeline("fill-mask", "/no/such/folder")


def test_chats_go_on_and_keep_their_messages(kit):
    model, params, tokenizer = kit.parts("learned", "bytes")
    with pytest.raises(ValueError, match="no chat template"):
        pipeline("text-generation", (model, params, tokenizer))([{"role": "user", "content": "anna"}])


def test_samples_are_as_many_as_asked_and_reproducible(made):
    options = {"strategy": Sample(), "num_return_sequences": 3, "key": jax.random.key(5), "batch_size": 1}
    texts = ["anna lives", "bob"]
    first = made("text-generation")(texts, **options)
    assert [len(each) for each in first] == [3, 3]
    assert len({each["generated_text"] for each in first[0]}) > 1
    assert made("text-generation")(texts, **options) == first
    both = made("translation")("anna", strategy=Beam(2), num_return_sequences=2)
    assert [list(each) for each in both] == [["translation_text"]] * 2


def test_a_gap_is_filled_between_its_sides(made):
    (full,) = made("code-infilling")({"prefix": "anna ", "suffix": " paris"})
    (middle,) = made("code-infilling")("anna <FILL_ME> paris", return_full_text=False)
    assert full["generated_text"] == f"anna {middle['generated_text']} paris"
    assert made("code-infilling")("anna <FILL_ME> paris", spm=True)


def test_a_text_ends_with_a_stop_sequence_wherever_tokens_do(made):
    run = lambda **options: made("text-generation")("anna", max_new_tokens=24, return_full_text=False, **options)
    free = run()[0]["generated_text"]
    ends = (free[4:6], [free[2:9], free[7:10], "\0"])
    for stop in ends:
        strings = [stop] if isinstance(stop, str) else stop
        at = min(free.index(each) + len(each) for each in strings if each in free)
        for strategy in (Greedy(), Lookup()):
            assert run(stop_sequence=stop, strategy=strategy)[0]["generated_text"] == free[:at]


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.names[0])
def test_gaps_are_marked_as_the_model_learned_it(marks):
    """Read off the vocabulary; the model's own tokens begin the row, and its own mark ends it."""
    inner = Tokenizer(models.BPE({each: i for i, each in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(["<s>", *marks.names, *([] if marks.end is None else [marks.end])])
    start = inner.token_to_id("<s>")
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", start)])
    tokenizer = JsonTokenizer(inner, {"bos": "<s>"})
    prefix, suffix, middle = map(tokenizer.id, marks.names)
    before, after = map(tokenizer.encode, ("ab", "cd"))
    found = infill_prompt(tokenizer, "ab", "cd", False, marks.names)
    assert found.tolist() == [start, prefix, *before, suffix, *after, middle]
    config = dataclasses.replace(tiny_models()["learned"], vocab=tokenizer.vocab_size)
    model = Model(config, compute="float32", card=Card(config={"eos_token_id": 0}))
    params = randomized(sharding.abstract_params(model), jax.random.key(3))
    run = pipeline("code-infilling", (model, params, tokenizer), max_new_tokens=6)
    assert run.marks == marks
    (both,) = run("ab<FILL_ME>cd")
    new = generate(model, params, [found], 6, eos=[0] if marks.end is None else [0, tokenizer.id(marks.end)])
    assert both["generated_text"] == f"ab{tokenizer.decode(new.tokens[0, : new.lengths[0]])}cd"


def test_what_is_behind_a_gap_begins_without_a_space_of_the_tokenizers_own(kit):
    tokenizer = train_tokenizer(TokenizerConfig("sentencepiece", 330, specials=SENTINELS), kit.texts)
    for after in ("lives", " lives", "", "\n  x"):
        ids = infill_prompt(tokenizer, "anna", after).tolist()
        suffix, middle = (ids.index(tokenizer.id(name)) for name in SENTINELS[1:])
        joined = "".join(map(tokenizer.piece, ids[suffix + 1 : middle]))
        assert joined.replace("<0x0A>", "\n").replace("▁", " ") == after


def test_a_bar_shows_on_a_terminal_once_it_lasts(monkeypatch):
    def shown(patience, is_terminal, count=3):
        monkeypatch.setattr(progress, "PATIENCE", patience)
        out = io.StringIO()
        console = Console(file=out, force_terminal=is_terminal, width=60, legacy_windows=False)
        assert list(progress.tracked(range(count), console)) == list(range(count))
        return out.getvalue()

    assert "2/3" in shown(0.0, True)
    assert shown(60.0, True) == shown(0.0, False) == shown(0.0, True, 1) == ""


@pytest.mark.parametrize("task", ["text-generation", "feature-extraction"])
def test_each_batch_is_told(made, monkeypatch, task):
    told = []
    where = "jaxformer.pipelines.generating" if task in WRITING else "jaxformer.pipelines.forward"
    monkeypatch.setattr(f"{where}.tracked", lambda batches: told.append(len(batches)) or batches)
    say_all(made, task, ["anna", "bob", "fox"], batch_size=2)
    assert told == [2]


def test_the_checkpoints_defaults_say_how_to_write():
    assert strategy_of({}) == Greedy([])
    assert strategy_of({"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}) == Beam(4, 2.0, True, [])
    assert strategy_of({"num_beams": 4, "num_beam_groups": 2}) == Beam(4, processors=[], groups=2)
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.2, "min_length": 3}
    found = strategy_of(said)
    assert (found.temperature, found.top_k, found.top_p) == (0.6, 50, 0.9)
    assert [type(each).__name__ for each in found.processors] == ["RepetitionPenalty", "MinLength"]
    assert usual({"max_new_tokens": 7}, 3) == 7
    assert usual({"max_length": 60}, 3) == 57
    assert usual({"max_length": 20}, 3) == usual({}, 3) == 256


@pytest.mark.parametrize("task", READING)
def test_padding_tells_nothing(made, kit, task):
    """A text beside a longer one, in a batch of another width."""
    near = say_all(made, task, ["anna lives in paris", "fox"])[0]
    far = say_all(made, task, ["anna lives in paris", "the fox sees bob " * 9])[0]
    kit.assert_same(far, near, close=2e-5)


def test_scores_are_plain_floats_that_add_up(made):
    found = say(made, "text-classification", "anna", top_k=None)
    assert sum(each["score"] for each in found) == pytest.approx(1, abs=1e-5)
    assert [each["score"] for each in found] == sorted((each["score"] for each in found), reverse=True)
    vectors = say(made, "feature-extraction", "anna", return_tensors=True)
    assert vectors.dtype == np.float32
