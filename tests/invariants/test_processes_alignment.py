"""What draws and predicts in many processes does it as one process does, with parameters spread over all of them."""

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import pytest

from jaxformer import sharding
from jaxformer.align import Reward
from jaxformer.config import Card, ExtraHeadConfig
from jaxformer.nn.model import Model
from jaxformer.source import save_pretrained
from jaxformer.tasks import Classify
from jaxformer.testing import randomized, tiny_models, tiny_tokenizer
from jaxformer.train.metrics import read_metrics

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow

PROMPTS = ("the quick", "def", "over", "brown", "a lazy dog", "x", "return", "jumps", "fox", "two", "dog", "lazy")
RECORDS = [{"prompt": text, "target": text[::-1], "label": len(text) % 2} for text in PROMPTS]
TASKS = ("grpo", "ppo", "classify", "seq2seq")
REPLAYED = ("grpo:2", "seq2seq:1")
FLAGS = "--xla_force_host_platform_device_count={} --xla_backend_optimization_level=0"


def processes():
    specification = importlib.util.spec_from_file_location(
        "processes", HERE.parents[1] / "benchmarks" / "processes.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """job(processes, tasks): aligned.py in so many processes, of four devices in all; and where its runs are."""
    start = tmp_path_factory.mktemp("start")
    tokenizer = tiny_tokenizer()
    judge, classes = (ExtraHeadConfig("classify", n, reads="last", bias=False) for n in (1, 2))
    for name, shape, extra, card in (
        ("policy", "rotary", (), Card()),
        ("judge", "rotary", (judge,), Reward().card(Card())),
        ("classify", "rotary", (classes,), Classify(labels=("odd", "even")).card(Card())),
        ("seq2seq", "relative", (), Card(config={"decoder_start_token_id": 1})),
    ):
        config = dataclasses.replace(tiny_models()[shape], vocab=tokenizer.vocab_size, extra=extra)
        model = Model(dataclasses.replace(config, head=None) if extra else config, compute="float32", card=card)
        params = randomized(sharding.abstract_params(model), jax.random.key(3))
        save_pretrained(start / name, model, params, tokenizer)
    (start / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))

    def started(count, tasks, **more):
        folder = tmp_path_factory.mktemp(f"of_{count}")
        program = (sys.executable, "-W", "error", str(HERE / "aligned.py"))
        told = {"TASKS": " ".join(tasks), "START": str(start), "DATA": str(start / "data.jsonl")}
        told |= {"XLA_FLAGS": FLAGS.format(4 // count)} | more
        return processes().Job(folder, count, config=HERE / "aligned.py", program=program, **told), folder

    return started


@pytest.fixture(scope="module")
def both(job):
    """(what one process leaves, what two leave): (their outputs, the folder of their runs)."""
    found = []
    for count in (1, 2):
        made, folder = job(count, (*TASKS, *REPLAYED, "drawn"))
        made.finish()
        found.append(([output.read_text() for output in made.outputs], folder))
    return found


def notes(folder, process, *kinds):
    lines = map(json.loads, (folder / f"{process}.jsonl").read_text().splitlines())
    return [line for line in lines if line[1] in kinds]


def replayed(text):
    """The words of what was said of steps that were taken again."""
    lines = text[text.index("replaying step") :].splitlines()
    lines = [line for line in lines if not line.startswith(("replaying", "[Gloo]"))]
    return [word for line in lines for word in line.split() if any(map(str.isalnum, word))]


def is_number(word):
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", word) is not None


def test_two_processes_draw_what_one_draws_and_none_has_all_parameters(both):
    (_, one), (_, two) = both
    told = [(task, said) for task, _, _, said in notes(one, 0, "generate", "computed")]
    assert {task for task, _ in told} == {*TASKS}
    for process in (0, 1):
        made = notes(two, process, "generate", "computed")
        assert [(task, said) for task, _, _, said in made] == told
        assert max(share for _, _, share, _ in made) < 0.5


def test_process_0_alone_asks_functions_what_answers_are_worth(both):
    (_, one), (_, two) = both
    assert notes(two, 0, "asked") == notes(one, 0, "asked") != []
    assert notes(two, 1, "asked") == []
    assert {count for *_, count in notes(two, 0, "devices")} == {1}


def test_what_processes_told_each_other_is_forgotten(both):
    (*_, (_, two)) = both
    ((*_, count),) = notes(two, 0, "remembered")
    assert count <= 4  # of the last turn of each process, and of the one before


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_learn_and_predict_as_one(both, task):
    runs = [folder / task for _, folder in both]
    ours, theirs = (read_metrics(run) for run in runs)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["values"] == pytest.approx(b["values"], rel=1e-5, abs=1e-6), a["step"]
    ours, theirs = (json.loads((run / "result.json").read_text())["evaluation"] for run in runs)
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_a_replay_in_two_processes_says_what_one_says_and_process_0_alone_says_it(both):
    ((alone,), _), ((first, second), _) = both
    # Gloo's threads write what they say of connections, and the end of that line, one after the other.
    assert [line for line in second.splitlines() if line and "[Gloo]" not in line] == []
    said, expected = replayed(first), replayed(alone)
    assert [word for word in said if not is_number(word)] == [word for word in expected if not is_number(word)]
    here, there = ([float(word) for word in words if is_number(word)] for words in (said, expected))
    assert here == pytest.approx(there, rel=1e-3, abs=1e-5)  # norms are told to four digits
    assert "differs" not in said
    assert {"grpo", "seq2seq"} == {*re.findall(r"^replaying step \d of \S+/(\w+), ", first, re.MULTILINE)}
    assert "answer:" in said
    assert "embed/embedding" in said


def test_two_processes_draw_by_any_strategy_what_one_draws(both):
    (_, one), (_, two) = both
    assert len(notes(one, 0, "drawn")) == 4
    assert notes(two, 0, "drawn") == notes(two, 1, "drawn") == notes(one, 0, "drawn")
    assert notes(two, 0, "by chance") == notes(two, 1, "by chance") != []


def test_a_reward_that_fails_ends_all_with_its_reason(job):
    failing, _ = job(2, ("grpo",), FAIL="1")
    assert failing.codes() == [1, 1]
    first, second = (output.read_text() for output in failing.outputs)
    assert "jaxformer: the judge is out" in first
    assert "jaxformer: process 0 failed: the judge is out" in second
    assert "Traceback" not in failing.text()
