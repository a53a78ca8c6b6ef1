"""An experiment as a value: it says all that is wrong with it at once, and goes through JSON unharmed."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from jaxformer import codec, tree
from jaxformer.experiment import CHANGEABLE, Experiment, problems
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import Seq2Seq
from jaxformer.testing import tiny_models
from jaxformer.text.tokenizer import TokenizerConfig

GOOD = Experiment(
    name="good",
    model=replace(tiny_models()["rotary"], vocab=320),
    steps=10,
    tokenizer=TokenizerConfig(vocab_size=320),
    optimizer=OptimizerConfig(warmup_steps=2),
)


def test_a_good_experiment_has_no_problems_and_is_its_own_validation():
    assert problems(GOOD) == []
    assert GOOD.validate() is GOOD


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"steps": 0}, "steps is 0: it must be above zero"),
        ({"rows": -1}, "rows is -1: it must be above zero"),
        ({"length": 0}, "length is 0: it must be above zero"),
        ({"accumulate": 0}, "accumulate is 0: it must be above zero"),
        ({"keep": 0}, "keep is 0: it must be above zero"),
        ({"save_every": 0, "patience": 1}, "save_every is 0: it must be above zero"),
        ({"patience": 0}, "patience is 0: make it above zero, or None"),
        ({"keep_every": 0}, "keep_every is 0: make it above zero, or None"),
        ({"profile": -1}, "profile is -1: it must be a number of steps, or 0"),
        ({"rows": 16, "accumulate": 3}, "rows is 16: it must be a multiple of accumulate, 3"),
        ({"evaluation_stride": 513}, "evaluation_stride is 513: it can be at most length, 512"),
        (
            {"patience": 2, "save_every": 100},
            "evaluate_every is 250: with patience, which takes the best model that was evaluated, it must be a"
            " multiple of save_every, 100",
        ),
        (
            {"tokenizer": TokenizerConfig(vocab_size=321)},
            "tokenizer.vocab_size is 321: model.vocab, 320, must hold it",
        ),
        (
            {"model": replace(tiny_models()["learned"], vocab=320), "length": 65},
            "rows of 65 tokens: the model's decoder has learned positions for 64",
        ),
        (
            {"model": replace(tiny_models()["encoder"], vocab=320)},
            "model.encoder is set: the task needs a model without one",
        ),
        ({"start": "somewhere"}, "model and start: give either an architecture or a model to begin from"),
        ({"model": None}, "model and start: give either an architecture or a model to begin from"),
        ({"average": 3}, "average is 3: it needs keep, 2, to be as much"),
        ({"task": Seq2Seq(), "evaluation_stride": 4}, "evaluation_stride is set: it is for language modelling"),
        ({"task": Seq2Seq()}, "model.encoder is missing: the task needs a model with one"),
        ({"name": "a/b"}, "name is 'a/b': it must be able to name a folder"),
        ({"name": ""}, "name is '': it must be able to name a folder"),
        ({"name": ".."}, "name is '..': it must be able to name a folder"),
        ({"optimizer": OptimizerConfig(warmup_steps=10)}, "optimizer.warmup_steps is 10: make it"),
    ],
    ids=lambda part: part[:24] if isinstance(part, str) else "",
)
def test_each_problem_says_what_to_change(change, line):
    assert any(found.startswith(line) for found in problems(replace(GOOD, **change)))


def test_all_problems_are_told_at_once():
    wrong = replace(GOOD, steps=0, rows=0, length=0, patience=0, name=".hidden")
    with pytest.raises(ValueError, match=r"experiment '\.hidden' cannot run") as error:
        wrong.validate()
    assert len(str(error.value).splitlines()) == 1 + len(problems(wrong)) >= 6


@pytest.mark.parametrize("name", ["learned", "rotary", "windowed"])
def test_an_experiment_comes_back_from_json(name):
    experiment = replace(GOOD, model=tiny_models()[name], prompts=("a", "b"), patience=3)
    assert codec.from_json(json.loads(json.dumps(experiment.identity())), Experiment) == experiment


def test_documents_from_memory_are_part_of_what_a_run_is():
    assert GOOD.identity("abc")["data"] == {"type": "Memory", "fingerprint": "abc"}
    assert {**GOOD.identity("abc"), "data": GOOD.identity()["data"]} == GOOD.identity()


def test_what_may_change_names_fields_that_there_are():
    fields = {field.name for field in dataclasses.fields(Experiment)}
    assert {pattern.split("/")[0] for pattern in CHANGEABLE} <= fields


@pytest.mark.parametrize("path", ["seed", "model/width", "optimizer/peak_lr", "rows", "length", "data/files/0"])
def test_what_decides_the_numbers_may_not_change(path):
    assert not any(tree.matches(pattern, path) for pattern in CHANGEABLE)


def test_the_folder_of_a_run():
    assert replace(GOOD, folder="~/runs").path == Path.home() / "runs" / "good"
