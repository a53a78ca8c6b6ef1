"""Models under lm-eval: what it is told is what the model says, and what its own backend says of the same weights."""

import builtins
import dataclasses
import functools
import importlib.util
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxformer import harness, sharding, source
from jaxformer.config import Card
from jaxformer.generation import Greedy, Sample
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models, tiny_tokenizer
from jaxformer.text.template import Template
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

LENGTH = 40
CONTEXT = "The quick brown fox"
ENDLESS = {"until": [], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}


def tiny(name="rotary", tokenizer=None, **card):
    tokenizer = tokenizer or tiny_tokenizer()
    config = dataclasses.replace(tiny_models()[name], vocab=tokenizer.vocab_size)
    model = Model(config, compute="float32", card=Card(**card))
    return model, randomized(sharding.abstract_params(model), jax.random.key(0)), tokenizer


def asked(model, params, tokenizer, **changes):
    options = {"batch_size": 3, "max_length": LENGTH, "add_bos": None, "adapter": None} | changes
    return harness.Asked(model, params, tokenizer, **options)


@pytest.fixture(scope="module")
def case():
    return asked(*tiny())


@functools.partial(jax.jit, static_argnames="model")
def logits_of(model, params, *given):
    return model.apply({"params": params}, *given).logits[0]


def plain(case, context, continuation, start=()):
    """The same from a pass over one row alone, without padding: (log-probability, whether greedy)."""
    given = [context, [*start, *continuation[:-1]]] if start else [[*context, *continuation[:-1]]]
    logits = logits_of(case.model, case.params, *(np.array(ids).reshape(1, -1) for ids in given))
    logits = np.asarray(logits[-len(continuation) :])
    chosen = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(continuation)), continuation]
    return float(chosen.sum()), (logits.argmax(-1) == continuation).tolist() == [True] * len(continuation)


def test_a_continuation_is_as_probable_as_in_a_pass_of_its_own(case):
    random = np.random.default_rng(0)
    lengths = [(1, 1), (30, 2), (22, 10), (1, 39), (38, 2), (1, 31)]
    requests = [(random.integers(3, 300, n).tolist(), random.integers(3, 300, m).tolist()) for n, m in lengths]
    (context, (first, _)), *_ = requests[1:]
    logits = logits_of(case.model, case.params, np.array([[*context, first]]))
    requests.append((context, [first, int(logits[-1].argmax())]))
    requests.append(([*context, first], [int(logits[-1].argmax())]))
    found, wanted = case.log_likelihoods(requests), [plain(case, *request) for request in requests]
    np.testing.assert_allclose([score for score, _ in found], [score for score, _ in wanted], rtol=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted] == [False] * 7 + [True]


def test_a_long_context_loses_its_beginning(case):
    context, continuation = list(range(3, 3 + 60)), [7, 8, 9]
    (found,) = case.log_likelihoods([(context, continuation)])
    assert found[0] == pytest.approx(plain(case, context[-LENGTH + 2 :], continuation)[0], rel=1e-5)
    (whole,) = case.log_likelihoods([([5], context[:LENGTH])])
    assert whole[0] == pytest.approx(plain(case, [5], context[:LENGTH])[0], rel=1e-5)


@pytest.mark.parametrize("count", [0, LENGTH + 1])
def test_a_continuation_that_cannot_be_scored_is_refused(case, count):
    with pytest.raises(ValueError, match=f"{count} tokens: expected 1 to {LENGTH}"):
        case.log_likelihoods([([5], [6] * count)])


def test_an_encoder_reads_the_context():
    case = asked(*tiny("relative", config={"decoder_start_token_id": 0}))
    requests = [([5, 6, 7], [8, 9]), ([5] * 50, [11, 4]), ([9, 6, 6], [4, 4])]
    found = case.log_likelihoods(requests)
    wanted = [plain(case, context[-LENGTH:], continuation, start=[0]) for context, continuation in requests]
    np.testing.assert_allclose([score for score, _ in found], [score for score, _ in wanted], rtol=1e-5)


def test_answers_of_one_token_share_a_pass(case, monkeypatch):
    passes = []
    real = harness.next_tokens
    monkeypatch.setattr(harness, "next_tokens", lambda *given: passes.append(given) or real(*given))
    question = [5, 6, 7]
    found = case.log_likelihoods([(question, [choice]) for choice in (8, 9, 10, 8)])
    assert len(passes) == 1
    assert found[0] == found[3] != found[1]


def test_one_length_compiles_once(case, count_compilations):
    case.log_likelihoods([([5, 6], [7]), ([5, 6, 7], [8])])
    case.continuations(["a", "b"], [ENDLESS, ENDLESS])
    with count_compilations() as compiled:
        case.log_likelihoods([([5, 6, 9, 9], [7]), ([5, 6, 3], [8]), ([5], [8]), ([1, 2, 3, 4, 5], [8])])
        case.continuations(["aa", "bbb", "c", "d"], [ENDLESS] * 4)
    assert compiled.of("next_tokens") == compiled.of("prefill") == compiled.of("steps") == 0


def test_generation_ends_before_the_first_stop_string(case):
    (whole,) = case.continuations([CONTEXT], [ENDLESS])
    assert len(whole) > 4
    middle, late = whole[2:4], whole[-1:]
    (cut,) = case.continuations([CONTEXT], [ENDLESS | {"until": [late, "", middle]}])
    assert cut == whole.split(late)[0].split(middle)[0]
    assert case.continuations([CONTEXT] * 2, [ENDLESS, ENDLESS | {"max_gen_toks": 3}])[1] != whole


def test_generation_stops_when_every_row_has_its_stop_string(case, monkeypatch):
    given = []
    real = harness.stream_tokens

    def counted(*args, **more):
        for column in real(*args, **more):
            given.append(column)
            yield column

    monkeypatch.setattr(harness, "stream_tokens", counted)
    whole = case.continuations([CONTEXT], [ENDLESS | {"max_gen_toks": 30}])[0]
    assert len(given) == 30
    del given[:]
    case.continuations([CONTEXT], [ENDLESS | {"max_gen_toks": 30, "until": [whole[:1]]}])
    assert len(given) == harness.LOOK


def test_an_eos_ends_a_text(case):
    (whole,) = case.continuations([CONTEXT], [ENDLESS])
    new = harness.stream_tokens(case.model, case.params, [case.encode(CONTEXT)], 12, eos=())
    id = [int(column[0]) for column in new][4]
    ending = dataclasses.replace(case.model, card=Card(generation={"eos_token_id": id}))
    (short,) = dataclasses.replace(case, model=ending).continuations([CONTEXT], [ENDLESS])
    assert len(short) < len(whole)
    assert whole.startswith(short)


def test_a_prompt_leaves_room_for_what_is_new(case):
    text = " ".join(map(str, range(60)))
    ids = case._prompt(text, 10)
    assert len(ids) == LENGTH - 10
    assert ids == case.encode(text)[-30:] != case.encode(text)[:30]
    with pytest.raises(ValueError, match=f"expected less than the {LENGTH} tokens"):
        case._prompt("word", LENGTH)


def test_an_adapter_is_asked_with_its_model(case):
    random = np.random.default_rng(0)
    kernel = case.params["decoder"]["blocks"]["mlp"]["down"]["kernel"]
    a, b = (
        random.normal(size=shape).astype(np.float32) for shape in ((*kernel.shape[:2], 2), (2, 2, kernel.shape[2]))
    )
    lora = {"a": a, "b": b, "scale": np.full(2, 0.1, np.float32)}
    with_it = dataclasses.replace(case, adapter={"decoder": {"blocks": {"mlp": {"down": lora}}}})
    blocks = case.params["decoder"]["blocks"]
    mlp = blocks["mlp"] | {"down": {"kernel": kernel + a @ b * 0.1}}
    params = case.params | {"decoder": case.params["decoder"] | {"blocks": blocks | {"mlp": mlp}}}
    merged = dataclasses.replace(case, params=params)
    bare, found, wanted = (each.log_likelihoods([([5, 6], [7, 8])])[0][0] for each in (case, with_it, merged))
    assert found == pytest.approx(wanted, rel=1e-5)
    assert found != pytest.approx(bare, rel=1e-3)
    assert with_it.continuations([CONTEXT], [ENDLESS]) == merged.continuations([CONTEXT], [ENDLESS])


def test_special_tokens_stand_where_the_template_or_the_caller_wants_them():
    model, params, tokenizer = tiny()
    ids = tokenizer.encode("fox")
    around = SimpleNamespace(
        **{name: getattr(tokenizer, name) for name in ("bos", "eos", "encode", "piece", "decode")},
        template=Template(single=(((tokenizer.bos,), 0), ("A", 0))),
    )
    assert asked(model, params, around).encode("fox") == [tokenizer.bos, *ids]
    assert asked(model, params, around).encode("fox", False) == ids
    assert asked(model, params, around, add_bos=False).encode("fox") == ids
    assert asked(model, params, around, add_bos=True).encode("fox") == [tokenizer.bos, *ids]
    begun = tokenizer.piece(tokenizer.bos) + "fox"
    assert asked(model, params, around).encode(begun) == tokenizer.encode(begun)
    assert asked(model, params, around).prefix == tokenizer.bos
    around.bos = None
    assert asked(model, params, around).prefix == tokenizer.eos
    around.eos = None
    with pytest.raises(ValueError, match="neither bos nor eos"):
        _ = asked(model, params, around).prefix


def test_the_longest_text_is_the_published_one():
    assert harness.longest(tiny()[0]) == harness.UNKNOWN
    assert harness.longest(tiny("learned")[0]) == 64
    assert harness.longest(tiny("learned", config={"max_position_embeddings": 48})[0]) == 48


def test_settings_become_a_strategy():
    assert harness._strategy(ENDLESS) == Greedy()
    assert harness._strategy({"do_sample": True, "temperature": 0.5, "top_k": 3}) == Sample(0.5, 3, 1.0)
    with pytest.raises(ValueError, match="num_beams cannot be set here"):
        harness._strategy(ENDLESS | {"num_beams": 4})


def test_a_chat_ends_with_the_answer_that_is_begun():
    template = "{% for m in messages %}<{{m.role}}>{{m.content}};{% endfor %}{{'<bot>' if add_generation_prompt}}"
    tokenizer = SimpleNamespace(chat_template=template, specials={})
    messages = [{"role": "user", "content": "How?"}, {"role": "bot", "content": "So "}]
    assert harness.chat_text(tokenizer, messages[:1], True) == "<user>How?;<bot>"
    assert harness.chat_text(tokenizer, messages, False) == "<user>How?;<bot>So"


def test_a_model_without_next_tokens_is_refused():
    pytest.importorskip("lm_eval", reason="not installed: lm-eval")
    with pytest.raises(ValueError, match="cannot generate"):
        harness.lm_eval_model(*tiny("encoder"))


def test_a_missing_harness_is_named_with_its_extra(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **more):
        if name.partition(".")[0] == "lm_eval":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r'lm-eval: pip install "jaxformer\[harness\]"'):
        harness.lm_eval_model(*tiny())


TEXTS = [CONTEXT, "def double(x):", "Äpfel, 日本語", "It jumps over the lazy dog. " * 9, "Lazy \n"]


def needs(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def both(folder, name, kind, add_bos=None):
    """(ours, the harness's own backend) of a tiny model with random parameters, in float32."""
    from lm_eval.models.huggingface import HFLM

    words = train_tokenizer(TokenizerConfig(kind, 320), [text * 3 for text in TEXTS])
    source.save_pretrained(folder, *tiny(name, words))
    (folder / "tokenizer.model").unlink(missing_ok=True)  # sentencepiece writes broken characters in its own way
    options = {"max_length": LENGTH, "batch_size": 3}
    theirs = HFLM(str(folder), device="cpu", dtype="float32", add_bos_token=add_bos, **options)
    return harness.lm_eval_model(*source.from_pretrained(folder), add_bos=add_bos, **options), theirs


def answers(lms, kind, rows):
    from lm_eval.api.instance import Instance

    return [getattr(lm, kind)([Instance(kind, {}, row, i, ("", i, 1)) for i, row in enumerate(rows)]) for lm in lms]


def scores_agree(lms, pairs, texts):
    found, wanted = (list(zip(*each, strict=True)) for each in answers(lms, "loglikelihood", pairs))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4)
    assert found[1] == wanted[1]
    np.testing.assert_allclose(*answers(lms, "loglikelihood_rolling", [(text,) for text in texts]), rtol=1e-4)


PAIRS = [*[(text, " and more") for text in TEXTS], *[("", text) for text in TEXTS[:3]]]
PAIRS += [(CONTEXT, end) for end in (" a", " b", " jumps over")]


@pytest.mark.parity
@needs("lm_eval", "accelerate")
@pytest.mark.parametrize(
    ("name", "kind", "add_bos"), [("rotary", "sentencepiece", True), ("learned", "byte_bpe", None)]
)
def test_every_answer_is_that_of_the_harness_on_the_same_weights(name, kind, add_bos, tmp_path):
    lms = ours, theirs = both(tmp_path / "model", name, kind, add_bos)
    assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, theirs.eot_token_id)
    scores_agree(lms, PAIRS, [*TEXTS, ""])
    rows = [(text, {"until": ["\n", "e"], "max_gen_toks": 16}) for text in TEXTS] + [(CONTEXT, {"max_gen_toks": 9})]
    found, wanted = answers(lms, "generate_until", rows)
    assert found == wanted


@pytest.mark.parity
@needs("lm_eval", "accelerate")
def test_an_encoder_is_asked_as_the_harness_does(tmp_path):
    scores_agree(both(tmp_path / "model", "relative", "sentencepiece"), PAIRS, TEXTS)


def local_tasks(folder):
    """Tasks on sums, one of each kind of request."""
    sums = [
        {"question": f"{a} + {b} =", "right": a + b, "wrong": a + b + 1} for a, b in ((1, 2), (3, 4), (9, 8), (6, 1))
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(each) + "\n" for each in sums))
    data = {"data_files": {"test": str(folder / "sums.jsonl")}, "cache_dir": str(folder / "cache")}
    common = {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test", "doc_to_text": "{{question}}"}
    choices = {"doc_to_choice": ["{{right}}", "{{wrong}}"], "doc_to_target": 0}
    kinds = {
        "multiple_choice": choices,
        "loglikelihood_rolling": {"doc_to_text": "", "doc_to_target": "{{question}} {{right}}"},
        "generate_until": {
            "doc_to_target": "{{right}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    return [common | {"task": kind, "output_type": kind} | more for kind, more in kinds.items()]


@pytest.mark.parity
@needs("lm_eval", "accelerate", "datasets")
def test_a_task_scores_as_with_the_harness(tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = [
        lm_eval.simple_evaluate(
            lm,
            tasks=local_tasks(tmp_path),
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )["results"]
        for lm in both(tmp_path / "model", "rotary", "byte_bpe")
    ]
    figures = {"multiple_choice": "acc,none", "loglikelihood_rolling": "bits_per_byte,none"}
    figures["generate_until"] = "exact_match,none"
    found, wanted = ({task: each[task][figure] for task, figure in figures.items()} for each in results)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert found["loglikelihood_rolling"] > 1
