"""The order of things, recorded by a fake step whose metrics tell when they are read."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.train.heartbeat import Stopwatch
from jaxformer.train.loop import NotFiniteError, Rhythm, run
from jaxformer.train.state import TrainState

START = TrainState(step=jnp.int32(0), params={}, opt_state=())


class Number:
    """An array on a device, as it were: to read it is to wait."""

    def __init__(self, value, told):
        self.value, self.told = value, told

    def __array__(self, dtype=None, copy=None):
        self.told()
        return np.asarray(self.value, dtype)

    def __float__(self):
        return float(np.asarray(self))


class World:
    """A step, its batches and the callbacks; `log` is what happened, in order."""

    def __init__(self, bad=(), losses=()):
        self.log, self.bad, self.losses = [], bad, iter(losses)

    def step(self, state, frozen, batch):
        number = int(state.step) + 1
        assert batch == number, "each step gets its own batch"
        self.log.append(("step", number))
        skipped = float(number in self.bad)
        read = lambda: self.log.append(("read", number))
        loss = Number(math.nan if skipped else 10.0 - number, read)
        metrics = {"loss": (loss, 1.0), "gradient_norm": (1.0, 1.0), "skipped": (skipped, 1.0)}
        return TrainState(step=jnp.int32(number), params={}, opt_state=()), metrics

    def on_metrics(self, step, values, seconds):
        assert seconds >= 0
        self.log.append(("metrics", step))

    def on_evaluation(self, step, state):
        assert int(state.step) == step
        self.log.append(("evaluation", step))
        return {"loss": next(self.losses)} if self.losses.__length_hint__() else {}

    def on_checkpoint(self, state, values):
        self.log.append(("checkpoint", int(state.step), values))

    def run(self, rhythm, start=0, **options):
        state = TrainState(step=jnp.int32(start), params={}, opt_state=())
        return run(self.step, state, None, iter(range(start + 1, 100)), rhythm, self, **options)

    def of(self, kind):
        return [event[1] for event in self.log if event[0] == kind]


def test_metrics_of_a_step_are_read_after_the_next_was_dispatched():
    world = World()
    world.run(Rhythm(4, evaluate_every=9, save_every=9))
    want = [("step", 1)]
    for number in (2, 3, 4):
        want += [("step", number), ("read", number - 1), ("metrics", number - 1)]
    want += [("read", 4), ("metrics", 4), ("evaluation", 4), ("checkpoint", 4, {})]
    assert world.log == want


def test_before_an_evaluation_or_a_checkpoint_all_metrics_are_told():
    """A step that a continued run finds behind it has left its line in the log."""
    world = World()
    world.run(Rhythm(7, evaluate_every=2, save_every=3))
    assert world.of("evaluation") == [2, 4, 6, 7]
    assert world.of("checkpoint") == [3, 6, 7]
    for i, event in enumerate(world.log):
        if event[0] in ("evaluation", "checkpoint"):
            assert ("metrics", event[1]) in world.log[:i]
    assert world.of("metrics") == list(range(1, 8))


@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_last_step_is_evaluated_and_saved_once(every):
    world = World()
    state = world.run(Rhythm(5, every, every))
    assert int(state.step) == 5
    assert world.of("evaluation").count(5) == world.of("checkpoint").count(5) == 1


def test_a_checkpoint_is_told_the_evaluation_of_its_step():
    world = World(losses=[3.0, 2.0])
    world.run(Rhythm(4, evaluate_every=2, save_every=1))
    values = {event[1]: event[2] for event in world.log if event[0] == "checkpoint"}
    assert values == {1: {}, 2: {"loss": 3.0}, 3: {}, 4: {"loss": 2.0}}


def test_a_stop_saves_the_step_under_way_and_ends():
    world = World()
    state = world.run(Rhythm(9, 4, 4), should_stop=lambda: len(world.of("step")) == 3)
    assert int(state.step) == 3
    assert world.log[-3:] == [("read", 3), ("metrics", 3), ("checkpoint", 3, {})]
    assert not world.of("evaluation")


def test_a_continued_run_goes_on_from_its_step_and_does_the_same():
    whole, first, second = World(), World(), World()
    whole.run(Rhythm(6, 2, 2))
    first.run(Rhythm(6, 2, 2), should_stop=lambda: len(first.of("step")) == 4)
    second.run(Rhythm(6, 2, 2), start=4)
    for kind in ("step", "metrics", "evaluation", "checkpoint"):
        assert first.of(kind) + second.of(kind) == whole.of(kind)


# Whatever ends it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("no disk"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_an_error_in_a_batch_leaves_each_step_before_it_told(error):
    world = World()

    def batches():
        yield from (1, 2, 3)
        raise error

    with pytest.raises(type(error)):
        run(world.step, START, None, batches(), Rhythm(9, 9, 9), world)
    assert world.of("metrics") == [1, 2, 3]


@pytest.mark.parametrize("name", ["step", "on_evaluation", "on_checkpoint"])
def test_an_error_in_a_step_or_beside_it_leaves_each_step_before_it_told(name):
    world = World()
    real, calls = getattr(world, name), iter(range(9))

    def fails(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    setattr(world, name, fails)
    with pytest.raises(KeyboardInterrupt):
        world.run(Rhythm(9, 2, 2))
    assert world.of("metrics") == [1, 2] if name == "step" else list(range(1, 7))


def test_an_interrupt_while_metrics_are_read_loses_none_and_tells_none_twice():
    world = World()
    real, interrupted = world.step, []

    def step(state, frozen, batch):
        state, metrics = real(state, frozen, batch)

        def told():
            if int(state.step) == 2 and not interrupted:
                interrupted.append(True)
                raise KeyboardInterrupt

        metrics["loss"] = (Number(1.0, told), 1.0)
        return state, metrics

    world.step = step
    with pytest.raises(KeyboardInterrupt):
        world.run(Rhythm(9, 9, 9))
    assert world.of("metrics") == [1, 2]


def test_the_error_that_came_first_is_the_one_that_is_raised():
    """And a step that is not finite, told of while another error is on its way, does not take its place."""
    world = World(bad={3})

    def batches():
        yield from (1, 2, 3)
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        run(world.step, START, None, batches(), Rhythm(9, 9, 9), world)
    assert world.of("metrics") == [1, 2, 3]
    world = World()
    world.on_metrics = lambda *arguments: 1 / 0
    with pytest.raises(ZeroDivisionError):
        world.run(Rhythm(9, 9, 9))


def test_the_loop_tells_a_stopwatch_what_it_does():
    world, watch, seen = World(losses=[1.0, 2.0]), Stopwatch(), []
    for name in ("step", "on_evaluation", "on_checkpoint"):
        real = getattr(world, name)
        setattr(world, name, lambda *a, name=name, real=real: (seen.append((name, watch.doing)), real(*a))[1])

    def batches():
        for number in (1, 2, 3):
            seen.append(("batch", watch.doing))
            yield number

    run(world.step, START, None, batches(), Rhythm(3, 2, 3), world, watch=watch)
    assert seen == [
        *(
            ("batch", "data"),
            ("step", "compile"),
            ("batch", "data"),
            ("step", "steps"),
            ("on_evaluation", "evaluation"),
        ),
        *(("batch", "data"), ("step", "steps"), ("on_evaluation", "evaluation"), ("on_checkpoint", "saves")),
    ]
    assert watch.doing == "other"


def test_a_run_at_its_end_does_nothing():
    world = World()
    assert int(world.run(Rhythm(4, 1, 1), start=4).step) == 4
    assert world.log == []


# Patience ---------------------------------------------------------------------------------------------------


def test_a_run_stops_and_saves_after_evaluations_without_a_better_loss():
    world, history = World(losses=[5.0, 4.0, 4.5, 4.0, 1.0]), []
    state = world.run(Rhythm(20, evaluate_every=2, save_every=50, patience=2), history=history)
    assert int(state.step) == 8
    assert history == [5.0, 4.0, 4.5, 4.0]
    assert world.of("checkpoint") == [8]


def test_patience_remembers_the_evaluations_of_the_run_that_is_continued():
    world = World(losses=[4.2, 3.0])
    assert int(world.run(Rhythm(20, 2, 50, patience=2), start=4, history=[4.0, 4.1]).step) == 6


def test_without_patience_or_evaluations_nothing_stops_it():
    assert int(World(losses=[1.0, 2.0, 3.0]).run(Rhythm(6, 2, 50)).step) == 6
    assert int(World().run(Rhythm(6, 2, 50, patience=1)).step) == 6


@pytest.mark.parametrize(
    ("step", "patience", "history", "over"),
    [
        (3, None, [], False),
        (4, None, [], True),
        (5, None, [], True),
        (1, None, [1.0, 2.0, 3.0], False),
        (1, 1, [], False),
        (1, 1, [2.0], False),
        (1, 1, [2.0, 1.0], False),
        (1, 1, [2.0, 2.0], True),
        (1, 2, [1.0, 2.0], False),
        (1, 2, [1.0, 2.0, 3.0], True),
        (1, 2, [math.nan, 3.0, 2.0], False),
        (1, 2, [3.0, math.nan, math.nan], True),
        (1, 2, [math.nan, math.nan, math.nan], True),
    ],
)
def test_when_a_run_is_over(step, patience, history, over):
    assert Rhythm(4, 1, 1, patience=patience).is_over(step, history) is over


# Not finite -------------------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_stops_the_run_and_says_what_to_do():
    world = World(bad={3})
    text = r'step 3: the loss is nan .* of step 2 are kept.*not_finite="skip".*"roll_back"'
    with pytest.raises(NotFiniteError, match=text) as error:
        world.run(Rhythm(9, 9, 9))
    assert error.value.step == 3
    assert world.of("metrics") == [1, 2, 3]  # its line is in the log


def test_a_step_that_is_not_finite_is_never_saved():
    world = World(bad={4})
    with pytest.raises(NotFiniteError):
        world.run(Rhythm(9, 2, 2))
    assert world.of("checkpoint") == [2]
    assert world.of("evaluation") == [2]


def test_a_run_may_go_on_over_steps_that_are_not_finite():
    world = World(bad={3, 5})
    assert int(world.run(Rhythm(6, 9, 9, not_finite="skip")).step) == 6
    assert world.of("metrics") == list(range(1, 7))
