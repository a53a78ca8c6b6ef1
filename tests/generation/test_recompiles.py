"""What shares a compiled program, and what does not: numbers do, and lengths of one bucket; sizes do not."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest

from jaxformer import sharding
from jaxformer.config import Card
from jaxformer.generation import (
    BadWords,
    Beam,
    Contrastive,
    Draft,
    ForcedLast,
    FrequencyPenalty,
    Greedy,
    Guided,
    Lookup,
    MinLength,
    MinNewTokens,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
    Sample,
    generate,
    remember,
    stream_tokens,
)
from jaxformer.generation.automaton import automaton
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models

VOCAB = 41  # of no other test's models, whose programs these would share
SHORT, OTHER = [[5, 9, 2, 33], [7]], [[1] * 30, [2] * 17]  # of one bucket
START = [5, 9, 2, 33, 7]
ONE, TWO = (jax.random.key(seed) for seed in (1, 2))


@cache
def made(name="rotary", seed=0):
    config = dataclasses.replace(tiny_models()[name], vocab=VOCAB)
    one = dataclasses.replace(config.decoder, layers=1)
    model = Model(dataclasses.replace(config, decoder=one), compute="float32")
    return model, randomized(sharding.abstract_params(model), jax.random.key(seed))


def run(strategy=Greedy(), prompts=SHORT, new=24, name="rotary", card=None, **given):
    model, params = made(name)
    model = model if card is None else dataclasses.replace(model, card=Card(generation=card))
    return generate(model, params, prompts, new, strategy=strategy, **({"eos": 3, "key": ONE} | given))


def stream(strategy=Greedy(), prompts=SHORT, new=24, key=ONE, eos=3):
    return list(stream_tokens(*made(), prompts, new, strategy=strategy, eos=eos, key=key))


@cache
def table(states):
    """A constraint of so many states, of which each goes on to the next by any token."""
    next = np.repeat((np.arange(states)[:, None] + 1) % states, 2, axis=1)
    return automaton(next, np.arange(VOCAB) % 2, np.ones(states, bool), np.zeros(states, bool))


def held(penalty, count, word, ngram=3):
    """One of each kind of processor."""
    return [
        *(RepetitionPenalty(penalty), PresencePenalty(penalty), FrequencyPenalty(penalty), NoRepeatNgram(ngram)),
        *(BadWords([[word, 2], [word]]), MinLength(count), MinNewTokens(count), ForcedLast(word)),
    ]


def turn(more):
    """A chat goes on from what was read of it, with others' questions between."""
    past = remember(*made(), START)
    remember(*made(), [*START, *more], past)
    return run(prompts=[[*START, *more, 7]], past=past)


SHARED = {  # the first compiles for all
    "prompts, ends and new tokens": [
        lambda: run(),
        lambda: run(prompts=OTHER),
        lambda: run(new=5),
        lambda: run(new=32, eos=9, pad=1, key=TWO),
        lambda: run(eos=None, card={"eos_token_id": 2, "pad_token_id": 6}),
        lambda: stream(),
        lambda: stream(prompts=OTHER, new=17, eos=8),
    ],
    "sampling": [
        lambda: run(Sample(0.7, 3, 0.9)),
        lambda: run(Sample(0), key=TWO),
        lambda: run(Sample(1.3, 0, 1.0, 0.1, 0.6, 0.01, 0.02), OTHER, 9),
        lambda: stream(Sample(2.0), key=TWO),
    ],
    "processors": [
        lambda: run(Sample(processors=held(1.1, 2, 3))),
        lambda: run(Sample(0.4, processors=held(1.7, 4, 5)), OTHER, 7),
        lambda: run(Sample(processors=held(0.7, 0, 6)[::-1]), key=TWO),
        lambda: stream(Sample(processors=held(0.7, 0, 6))),
    ],
    "a constraint": [
        lambda: run(Greedy([table(5)])),
        lambda: run(Greedy([table(60)]), OTHER, 9),
        lambda: stream(Greedy([table(7)])),
    ],
    "a constraint of beams": [
        lambda: run(Beam(2, processors=[table(5)])),
        lambda: run(Beam(2, 0.5, processors=[table(60)]), OTHER, 9),
    ],
    "beams": [
        lambda: run(Beam(3, 1.0), samples=2),
        lambda: run(Beam(3, 0.3), samples=3),
        lambda: run(Beam(3, -2), OTHER, 5, eos=4),
    ],
    "behind an encoder": [
        lambda: run(name="relative", decoder_tokens=[[3], [4]]),
        lambda: run(Greedy(), OTHER, 9, name="relative", decoder_tokens=[[3, 4, 5], [4]]),
    ],
    "contrastive": [lambda: run(Contrastive(0.6)), lambda: run(Contrastive(0.2), OTHER, 9)],
    "guided": [
        lambda: run(Guided(1.5, [1, 2], Sample())),
        lambda: run(Guided(3.0, [4] * 9, Sample(0.5)), OTHER, 9),
    ],
    "looked up": [lambda: run(Lookup(Sample())), lambda: run(Lookup(Sample(0.5)), OTHER, 9, key=TWO)],
    "drafted": [
        lambda: run(Draft(*made(seed=3), Sample(0.5))),
        lambda: run(Draft(*made(seed=4), Sample(0.9, top_p=0.5)), OTHER, 9),
    ],
    "turns of a chat": [lambda: turn([1, 2]), lambda: turn([8, 8, 8, 9])],
}
APART = {
    "prompts of another bucket": [lambda: run(), lambda: run(prompts=[[1] * 33, [2]])],
    "room of another bucket": [lambda: run(), lambda: run(new=33)],
    "more rows": [lambda: run(), lambda: run(prompts=[*SHORT, [1]])],
    "more ends": [lambda: run(), lambda: run(eos=(3, 4))],
    "another width": [lambda: run(Beam(3)), lambda: run(Beam(2))],
    "another ngram": [
        lambda: run(Sample(processors=held(1.1, 2, 3))),
        lambda: run(Sample(processors=held(1.1, 2, 3, ngram=2))),
    ],
    "a larger constraint": [lambda: run(Greedy([table(5)])), lambda: run(Greedy([table(65)]))],
}


@pytest.mark.parametrize("row", SHARED)
def test_these_calls_share_their_programs(row, count_compilations):
    first, *others = SHARED[row]
    first()
    for states in (60, 7):
        table(states)  # is made outside
    with count_compilations() as compiled:
        for call in others:
            call()
    assert compiled.names == []


@pytest.mark.parametrize("row", APART)
def test_these_calls_do_not(row, count_compilations):
    """Else the table above would say nothing."""
    first, other = APART[row]
    first()
    with count_compilations() as compiled:
        other()
    assert compiled.of("prefill")
    assert compiled.of("steps")
