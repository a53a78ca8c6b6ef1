"""A config.json that lies: whatever it says is read, or refused by name, before anything is built of it."""

import contextlib
import functools
import runpy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer import families
from jaxformer.config import ModelConfig
from jaxformer.families import attributes
from jaxformer.families.attributes import LARGEST, MOST, UNROLLED, Attributes

FILES = [runpy.run_path(str(path)) for path in sorted(Path(__file__).parent.glob("rows_*.py"))]
ROWS = {name: hf for file in FILES for name, hf in file["ROWS"].items()}
FIRST = {hf["model_type"]: hf for hf in reversed(ROWS.values())}
HUGE, INFINITE, NO_NUMBER = 10**400, float("inf"), float("nan")
NO_SIZE = [0, -1, LARGEST + 1, HUGE, 4.0, True, False, "4", [], [4], {}, {"size": {"of": [4]}}, INFINITE, NO_NUMBER]
NO_NUMBER_AT_ALL = [True, "0.1", None, [], {"eps": 0.1}, INFINITE, -INFINITE, NO_NUMBER, HUGE]
one_of_each = pytest.mark.parametrize("hf", FIRST.values(), ids=FIRST.keys())

READS = {
    **{"width": 8, "layers": 2, "heads": 2, "inner": None, "eps": 1e-5, "tied": True},
    **{"activation": "gelu", "kinds": [], "scaling": {}},
}


def read(nullable=(), **given):
    return Attributes({"model_type": "toy", **given}, READS, {"causal": True}, ("note",), nullable)


def refused(a):
    with pytest.raises(ValueError) as error:
        a.check()
    return str(error.value).splitlines()


@pytest.mark.parametrize("name", ["width", "inner"])
@pytest.mark.parametrize("value", NO_SIZE, ids=lambda value: repr(value)[:20])
def test_what_is_no_size_is_refused(name, value):
    assert refused(read(**{name: value})) == [f"toy: {name}={value!r} is not supported"]


def test_a_size_may_be_null_where_it_may_be_missing_and_where_the_family_says_so():
    assert refused(read(width=None)) == ["toy: width=None is not supported"]
    assert read(inner=None)["inner"] is None
    assert read(width=None, nullable=("width",))["width"] is None


@pytest.mark.parametrize("end", UNROLLED)
def test_what_is_written_out_before_a_tensor_is_missed_has_a_smaller_limit(end):
    reads = {f"num_{end}": 2}
    assert Attributes({f"num_{end}": MOST}, reads, {}, ())[f"num_{end}"] == MOST
    assert refused(Attributes({"model_type": "toy", f"num_{end}": MOST + 1}, reads, {}, ())) == [
        f"toy: num_{end}={MOST + 1} is not supported"
    ]
    assert read(width=LARGEST)["width"] == LARGEST


@pytest.mark.parametrize("value", NO_NUMBER_AT_ALL, ids=lambda value: repr(value)[:20])
def test_what_is_no_number_is_refused(value):
    assert refused(read(eps=value)) == [f"toy: eps={value!r} is not supported"]
    assert read(eps=1)["eps"] == 1
    assert read(eps=3.6e9)["eps"] == 3.6e9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("tied", value) for value in (1, 0, "true", None, [True])),
        *(("activation", value) for value in (3, None, True, ["gelu"], {})),
        *(("kinds", value) for value in (3, None, "abc", {})),
        *(("scaling", value) for value in (3, "linear", [], True)),
        ("causal", False),
        ("is_encoder_decoder", True),
        ("mystery", 0),
    ],
)
def test_a_value_of_another_kind_is_refused(name, value):
    assert refused(read(**{name: value})) == [f"toy: {name}={value!r} is not supported"]


def test_what_says_nothing_is_passed_over():
    read(causal=True, note="anything", scaling=None, mystery=None, top_p=0.9, attention_dropout=0.1).check()


def test_all_that_is_wrong_is_listed_and_each_is_named_once():
    a = read(width=0, layers="2", heads=3)
    a.head_dim("width", "heads")  # of a width that is not the file's
    a.refuse("layers", 7)
    assert refused(a) == ["toy: layers='2' is not supported", "toy: width=0 is not supported"]
    a = read(width=8, heads=3)
    a.head_dim("width", "heads")
    assert refused(a) == ["toy: heads=3 is not supported"]


def test_an_activation_is_refused_as_the_attribute_that_holds_it():
    assert read(activation="gelu_new").activation("activation") == "gelu_tanh"
    assert read(activation="gated-silu").activation("activation", "silu") == "silu"
    a = read(activation="gated-xielu")
    a.activation("activation", "xielu")
    assert refused(a) == ["toy: activation='gated-xielu' is not supported"]


# Every family.


@one_of_each
@pytest.mark.parametrize("value", NO_SIZE, ids=lambda value: repr(value)[:20])
def test_every_size_of_every_family_is_checked(hf, value):
    family = families.family(hf["model_type"])
    passed_over = {*getattr(family, "MAY_BE", ()), *attributes.HARMLESS}
    names = [name for name, size in hf.items() if type(size) is int and name not in passed_over]
    assert len(names) >= 4
    for name in names:
        with pytest.raises(ValueError) as error:
            family.config(hf | {name: value})
        assert f"{hf['model_type']}: {name}={value!r} is not supported" in str(error.value).splitlines()


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
JUNK = [
    *(("llama", "rope_scaling", value) for value in ("linear", ["linear"], 4, {"rope_type": []}, {"rope_type": {}})),
    *(
        ("llama", "rope_scaling", {"rope_type": "linear", "factor": value})
        for value in ([4.0], "4", True, {}, INFINITE, NO_NUMBER, HUGE, -4.0)
    ),
    *(("llama", "rope_scaling", LONG | {"short_factor": value}) for value in (4.0, [], [[1.0]], ["1"], None)),
    ("llama", "rope_scaling", LONG | {"original_max_position_embeddings": 1}),
    ("llama", "rope_scaling", {"rope_type": "yarn", "factor": 4.0, "truncate": 1}),
    *(("llama", "rope_parameters", {"rope_theta": value}) for value in ("1", [], True, NO_NUMBER)),
    *(("gemma3_text", "rope_parameters", value) for value in ({"elsewhere": {}}, {"full_attention": [1.0]})),
    ("gemma3_text", "rope_parameters", {"sliding_attention": {"rope_type": []}}),
    *(("gemma2", "layer_types", value) for value in ([["full_attention"]], [{}], ["full_attention"] * 99)),
    *(("smollm3", "no_rope_layers", value) for value in ([[1]], ["x"] * 9, [1])),
    *(("gpt_neo", "attention_types", value) for value in (["global"], [[["global"], 10**15]], [[[[]], 4]], [[4, 4]])),
    *((name, "architectures", value) for name in ("bert", "camembert", "mt5") for value in (4, "x", {"x": 1}, [[]])),
    *(("bert", "id2label", value) for value in ("x", [1], 3)),
    *(("bert", "num_labels", value) for value in (0, -1, LARGEST + 1, 2.0, True, "3")),
    ("roberta", "pad_token_id", LARGEST),
    ("marian", "decoder_vocab_size", [61]),
]


@pytest.mark.parametrize(("model_type", "name", "value"), JUNK, ids=lambda value: repr(value)[:60])
def test_nested_junk_is_refused_by_name(model_type, name, value):
    with pytest.raises(ValueError) as error:
        families.family(model_type).config(FIRST[model_type] | {name: value})
    assert str(error.value).startswith(f"{model_type}: ")
    assert f"{name}=" in str(error.value)
    assert "is not supported" in str(error.value)


WORDS = [
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor"),
    *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "attention_factor", "mscale"),
    *(
        "linear",
        "dynamic",
        "yarn",
        "llama3",
        "longrope",
        "full_attention",
        "sliding_attention",
        "global",
        "local",
        "",
    ),
]
LEAVES = st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from([LARGEST, HUGE, *WORDS])
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
)
OTHERS = {"rope_scaling", "rope_parameters", "layer_types", "id2label", "num_labels"}


@functools.cache
def names_of(model_type):
    """The attributes that rows of this model type speak of, and some more."""
    rows = [hf for hf in ROWS.values() if hf["model_type"] == model_type]
    return sorted({name for hf in rows for name in hf} - {"model_type"} | OTHERS)


@given(data=st.data())
@settings(max_examples=500)
def test_whatever_a_config_says_it_is_read_or_a_value_error(data):
    hf = data.draw(st.sampled_from(list(ROWS.values())))
    changed = data.draw(st.dictionaries(st.sampled_from(names_of(hf["model_type"])), JSON, min_size=1, max_size=3))
    with contextlib.suppress(ValueError):
        assert isinstance(families.family(hf["model_type"]).config(hf | changed), ModelConfig)
