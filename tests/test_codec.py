import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.codec import from_json, to_json
from jaxformer.config import InputConfig, LearnedConfig, ModelConfig, NormConfig, SinusoidConfig
from jaxformer.experiment import Experiment
from jaxformer.lora import LoraConfig
from jaxformer.optimizer import OptimizerConfig
from jaxformer.tasks import Classify, Seq2Seq
from jaxformer.testing import tiny_models
from jaxformer.text.corpus import DataConfig
from jaxformer.text.mixture import Part


@dataclass(frozen=True)
class Leaf:
    size: int
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Other:
    size: int


@dataclass(frozen=True)
class Nest:
    leaf: Leaf | Other | None
    leaves: tuple[Leaf, ...] = ()
    pair: tuple[int, str] = (1, "x")
    names: list[str] | None = None
    table: dict[str, float] | None = None
    anything: Any = None
    flag: bool = False
    either: int | str = 0


def through(value, hint):
    return from_json(json.loads(json.dumps(to_json(value))), hint)


numbers = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.builds(Leaf, st.integers(), numbers, st.sampled_from("ab"))
nests = st.builds(
    Nest,
    st.one_of(st.none(), leaves, st.builds(Other, st.integers())),
    st.lists(leaves, max_size=3).map(tuple),
    st.tuples(st.integers(), st.text()),
    st.none() | st.lists(st.text(), max_size=3),
    st.none() | st.dictionaries(st.text(), numbers, max_size=3),
    st.none() | st.integers() | st.lists(st.text(), max_size=2),
    st.booleans(),
    st.integers() | st.text(),
)


@given(nests)
def test_what_is_written_is_read_back_equal(nest):
    assert through(nest, Nest) == nest


@pytest.mark.parametrize("name", tiny_models())
def test_every_architecture_comes_back_equal(name):
    config = tiny_models()[name]
    assert through(config, ModelConfig) == config
    assert hash(through(config, ModelConfig)) == hash(config)


def test_an_experiment_comes_back_equal():
    model = tiny_models()["windowed"]
    for experiment in (
        Experiment("x", 10, model, optimizer=OptimizerConfig(ema=0.9), prompts=("a", "b")),
        Experiment("x", 10, start="there", task=Classify(labels=("a", "b")), adapter=LoraConfig(rank=2), bits=4),
        Experiment("x", 10, model, task=Seq2Seq(), data=DataConfig(mixture=(Part("a", ("b",), 0.5),))),
    ):
        assert through(experiment, Experiment) == experiment


@pytest.mark.parametrize("positions", [LearnedConfig(4), SinusoidConfig(), None])
def test_members_of_a_union_are_told_apart_by_their_tag(positions):
    config = InputConfig(positions)
    assert type(through(config, InputConfig).positions) is type(positions)
    assert to_json(NormConfig("rms")) == {"type": "NormConfig", "kind": "rms", "eps": 1e-5, "offset": 0.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": "1"}, "leaf.size: expected a int, got '1'"),
        ({"size": True}, "leaf.size: expected a int, got True"),
        ({"size": 1.0}, "leaf.size: expected a int, got 1.0"),
        ({"rate": "fast"}, "leaf.rate: expected a float, got 'fast'"),
        ({"kind": "c"}, "leaf.kind: expected one of 'a', 'b', got 'c'"),
        ({"sise": 1}, "leaf.sise: unknown; Leaf has size, rate, kind"),
        ({"type": "Thing"}, "leaf.type: expected one of Leaf, Other, got 'Thing'"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(change, said):
    with pytest.raises(ValueError, match="cannot read this as Nest") as error:
        from_json({"leaf": {"type": "Leaf", "size": 1} | change}, Nest)
    assert said in str(error.value)


def test_every_error_is_reported_at_once():
    bad = {
        "leaf": {"type": "Leaf", "rate": "x", "more": 1},
        "leaves": [{"type": "Leaf", "size": 1}, {"type": "Leaf", "size": None}, 3],
        "pair": [1],
        "flag": 1,
        "table": {"a": "b"},
        "either": None,
        "unknown": 0,
    }
    with pytest.raises(ValueError) as error:
        from_json(bad, Nest)
    lines = str(error.value).splitlines()[1:]
    said = (
        "leaf.size: missing",
        "leaf.more: unknown",
        "leaf.rate",
        "leaves[1].size",
        "leaves[2]",
        "pair: expected 2 values",
    )
    for part in (
        *said,
        "flag: expected a bool",
        "table.a: expected a float",
        "either: expected int or str",
        "unknown: unknown",
    ):
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert len(lines) == len(said) + 4


def test_what_is_no_object_is_refused():
    with pytest.raises(ValueError, match="the top: expected an object of type Leaf, got 3"):
        from_json(3, Leaf)


@pytest.mark.parametrize("value", [object(), {1, 2}, Leaf, b"x", Nest(Leaf(1), anything=1j)])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(TypeError, match="cannot write a"):
        to_json(value)
