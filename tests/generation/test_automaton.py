"""The laws of a token automaton in the loop: what it forbids never comes, and it is felt nowhere else."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import testing
from jaxformer.config import Card
from jaxformer.generation import Beam, Greedy, MinNewTokens, Sample, TokenAutomaton, generate, process, stream_tokens
from jaxformer.generation.automaton import automaton
from jaxformer.nn.model import Model

VOCAB, NEW, EOS, PAD = 37, 12, 3, 36
PROMPTS = [[5, 9, 2, 33], [7], [30, 1, 1, 8, 20, 14, 3]]
STRATEGIES = [Greedy(), Sample(1.5), Beam(3)]
A, B, C = range(5, 10), range(10, 15), range(15, 20)
LETTERS = {id: letter for letter, ids in zip("abc", (A, B, C), strict=True) for id in ids} | {EOS: "."}


def letters(classes=25):
    """int32 [25]: ids of a are class 1, of b 2, of c 3; all else, eos too, is 0."""
    table = np.zeros(classes, np.int32)
    for number, ids in enumerate((A, B, C), start=1):
        table[ids] = number
    return table


def spells(**ways):
    """An automaton of {state: {letter: state}}; its states are written s0, s1 ...; a capital S accepts."""
    names = sorted(ways, key=str.lower)
    next = np.full((len(names), 4), -1)
    for name, each in ways.items():
        for letter, after in each.items():
            next[names.index(name), "_abc".index(letter)] = [n.lower() for n in names].index(after)
    accept = np.array([name[0] == "S" for name in names])
    return automaton(next, letters(), accept, accept & (next < 0).all(1))


ABS = spells(s0={"a": "s1"}, s1={"a": "s1", "b": "s2"}, S2={"a": "s1"})
"""(a+b)+"""
ABC = spells(s0={"a": "s1"}, s1={"b": "s2"}, s2={"c": "s3", "b": "s2"}, S3={})
"""ab+c"""


@functools.cache
def case(name="rotary"):
    model = Model(testing.tiny_models()[name], compute="float32", card=Card())
    given = [jax.ShapeDtypeStruct((1, 2), jnp.int32)] * (2 if model.config.encoder is not None else 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *given)["params"]
    return model, testing.randomized(shapes, jax.random.key(1))


def run(strategy, *processors, new=NEW, eos=EOS, card=None, prompts=PROMPTS, name="rotary", **given):
    model, params = case(name)
    if card is not None:
        model = model.clone(card=Card(config=card))
    if name == "relative":
        given |= {"decoder_tokens": [[0]] * len(prompts)}
    strategy = strategy.replace(processors=processors)
    return generate(model, params, prompts, new, strategy=strategy, eos=eos, pad=PAD, key=jax.random.key(4), **given)


def spelt(out):
    return [
        "".join(LETTERS.get(id, "?") for id in row[:n])
        for row, n in zip(out.tokens.tolist(), out.lengths, strict=True)
    ]


@pytest.mark.parametrize("name", ["rotary", "relative"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_rows_are_what_the_automaton_spells(strategy, name):
    for text in spelt(run(strategy, ABS, samples=2 if strategy != Greedy() else 1, name=name)):
        assert re.fullmatch(r"(a+b)+\.", text) or (len(text) == NEW and re.fullmatch("(a+b)+a*", text)), text


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_one_that_allows_everything_changes_nothing(strategy):
    free = automaton(np.zeros((1, 1)), np.zeros(20), np.ones(1, bool), np.zeros(1, bool))
    plain, held = run(strategy), run(strategy, free)
    np.testing.assert_array_equal(held.tokens, plain.tokens)
    np.testing.assert_array_equal(held.scores, plain.scores)
    np.testing.assert_array_equal(held.lengths, plain.lengths)


@pytest.mark.parametrize("eos", [(), EOS])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_a_row_ends_where_nothing_may_follow(strategy, eos):
    out = run(strategy, ABC, eos=eos, new=20)
    for row, text in zip(out.tokens, spelt(out), strict=True):
        assert re.fullmatch("ab+c", text) or (len(text) == 20 and re.fullmatch("ab+", text)), text
        assert (row[len(text) :] == PAD).all()
    assert min(out.lengths) < 20 or isinstance(strategy, Beam)
    once = run(strategy, spells(s0={"a": "s1"}, s1={"b": "s2"}, S2={}), eos=eos, new=20)
    assert spelt(once) == ["ab"] * 3


def test_an_eos_stands_where_the_automaton_accepts_and_nowhere_else():
    rows = jnp.zeros((3, VOCAB))
    history = process.History(None, None, None, None, None, jnp.array([EOS, 7]))
    allowed = np.asarray(ABS(rows, history, jnp.arange(3)) == 0)
    for state, ids in enumerate([A, [*A, *B], A]):
        assert set(np.flatnonzero(allowed[state])) == {*ids} - {7} | ({EOS, 7} if state == 2 else set())
    moved = ABS.advance(jnp.array([0, 1, 1, 2, 2]), jnp.array([6, 11, 17, EOS, VOCAB - 1]))
    assert moved.tolist() == [1, 2, 1, 2, 2]  # what may not stand leaves the state


@pytest.mark.parametrize("strategy", STRATEGIES[:2], ids=lambda s: type(s).__name__)
def test_a_stream_is_the_columns_of_generate(strategy):
    model, params = case()
    for held in (ABC, ABS):
        strategy = strategy.replace(processors=(held,))
        given = {"strategy": strategy, "eos": EOS, "pad": PAD, "key": jax.random.key(4)}
        out = generate(model, params, PROMPTS, NEW, **given)
        columns = np.stack([*stream_tokens(model, params, PROMPTS, NEW, **given)], axis=1)
        np.testing.assert_array_equal(columns, out.tokens[:, : out.lengths.max()])


def test_of_several_all_hold():
    for strategy in STRATEGIES:
        for text in spelt(run(strategy, ABS, spells(S0={"a": "s1", "b": "s0"}, s1={"b": "s0"}))):
            assert re.fullmatch(r"(ab)+\.", text) or (len(text) == NEW and re.fullmatch("(ab)+a?", text)), text


def test_where_nothing_is_allowed_a_row_ends_without_a_token():
    apart = [ABC, spells(s0={"a": "s1"}, s1={"c": "s2"}, S2={})]
    for strategy in STRATEGIES[:2]:
        out = run(strategy, *apart)
        assert spelt(out) == ["a"] * 3
        assert (out.tokens[:, 1:] == PAD).all()
        assert not out.scores[:, 1:].any()
        assert spelt(run(strategy, ABC, spells(s0={"b": "s1"}, S1={}))) == [""] * 3
    out = run(Beam(3), *apart, samples=2)
    assert (out.lengths == 0).all()
    assert (out.ranks == -np.inf).all()
    model, params = case()
    stream = stream_tokens(model, params, PROMPTS, NEW, strategy=Greedy(apart), eos=EOS, pad=PAD)
    assert [[LETTERS[id] for id in column.tolist()] for column in stream] == [["a"] * 3]


def test_penalties_act_before_it_and_forced_tokens_over_it():
    out = run(Sample(1.5), ABS, MinNewTokens(6), prompts=[[7]] * 8)
    assert min(out.lengths) > 6
    card = {"forced_bos_token_id": 30, "forced_eos_token_id": EOS}
    for row, text in zip(
        (out := run(Sample(), ABC, card=card, prompts=[[7]], new=5)).tokens, spelt(out), strict=True
    ):
        assert row[0] == 30
        assert re.fullmatch(r"\?(ab+c|ab+\.)", text)
    order = process.ordered(
        (*process.ordered([MinNewTokens(1)]), process.ForcedLast(1), ABC, process.BadWords([[1]]))
    )
    assert [type(each) for each in order] == [process.BadWords, MinNewTokens, TokenAutomaton, process.ForcedLast]


def test_tables_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match=r"accept.*\(63,\)"):
        run(Greedy(), ABS.replace(accept=ABS.accept[1:]))
    with pytest.raises(ValueError, match="expected next"):
        run(Greedy(), ABS.replace(next=ABS.next[0]))
