"""The laws of one step, on a loss small enough to check by hand: weighted least squares with a frozen offset."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer.opt_state import WARM, WINDOW, Norms, loss_scale
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.train.state import DROPOUT, INIT, TrainState, stream_key
from jaxformer.train.step import make_step

SGD = optax.sgd(0.1)
random = np.random.default_rng(0)
BATCH = {
    "x": jnp.asarray(random.normal(size=(8, 3)), jnp.float32),
    "y": jnp.asarray(random.normal(size=8), jnp.float32),
    "weights": jnp.asarray([1, 0, 3, 0.5, 0, 2, 1, 4], jnp.float32),
}
FROZEN = {"offset": jnp.float32(0.3)}


def loss_fn(params, frozen, batch, key):
    """A mean over the batch, whose weights differ from row to row."""
    guess = (batch["x"] @ params["w"].astype(jnp.float32)) + frozen["offset"]
    total = (batch["weights"] * jnp.square(guess - batch["y"])).sum()
    weight = batch["weights"].sum()
    return total / jnp.maximum(weight, 1e-9), {
        "loss": (total, weight),
        "rows": (jnp.float32(len(batch["y"])), jnp.float32(1)),
        "by_axis": (batch["weights"] @ batch["x"], weight),
    }


def noisy(params, frozen, batch, key):
    noise = jax.random.normal(key)
    loss, metrics = loss_fn(params, frozen, batch, key)
    return loss + 0 * noise, metrics | {"noise": (noise, jnp.float32(1))}


def start(optimizer=SGD, dtype=jnp.float32, step=0):
    params = {"w": jnp.asarray([0.5, -1, 2], dtype)}
    return TrainState(step=jnp.int32(step), params=params, opt_state=optimizer.init(params))


def take(state, loss=loss_fn, optimizer=SGD, batch=BATCH, frozen=FROZEN, **options):
    return jax.jit(make_step(loss, optimizer, **options))(state, frozen, batch)


def test_a_step_goes_down_the_gradient():
    state, metrics = take(start())
    gradient = jax.grad(lambda p: loss_fn(p, FROZEN, BATCH, None)[0])(start().params)["w"]
    np.testing.assert_allclose(state.params["w"], start().params["w"] - 0.1 * gradient, rtol=1e-6)
    assert int(state.step) == 1
    np.testing.assert_allclose(metrics["gradient_norm"][0], np.linalg.norm(gradient), rtol=1e-6)
    assert float(metrics["skipped"][0]) == 0


@pytest.mark.parametrize("accumulate", [2, 4, 8])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_accumulation_equals_the_big_batch(accumulate, dtype):
    """Also where microbatches weigh unequally, or nothing at all."""
    (once, whole), (state, parts) = take(start(dtype=dtype)), take(start(dtype=dtype), accumulate=accumulate)
    exact = 1e-6 if dtype == jnp.float32 else 1e-2
    assert state.params["w"].dtype == dtype
    np.testing.assert_allclose(
        state.params["w"].astype(jnp.float32), once.params["w"].astype(jnp.float32), rtol=exact
    )
    for name in ("loss", "gradient_norm", "by_axis"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=exact), parts[name], whole[name])
    assert tuple(map(float, parts["rows"])) == (8.0, accumulate)


def test_rows_that_cannot_be_split_evenly_are_an_error():
    with pytest.raises(ValueError, match="a batch of 8 rows cannot be split into 3 equal microbatches"):
        take(start(), accumulate=3)


def test_microbatches_draw_different_numbers():
    noise = take(start(), noisy)[1]["noise"][0]
    split = take(start(), noisy, accumulate=2)[1]["noise"][0]
    key = stream_key(0, DROPOUT, 0)
    np.testing.assert_allclose(noise, jax.random.normal(key), rtol=1e-6)
    np.testing.assert_allclose(split, sum(jax.random.normal(jax.random.fold_in(key, i)) for i in range(2)), rtol=1e-6)


def test_the_key_of_a_step_comes_from_its_number_alone():
    step = jax.jit(make_step(noisy, SGD, seed=5))
    state, drawn = start(), []
    for _ in range(3):
        state, metrics = step(state, FROZEN, BATCH)
        drawn.append(float(metrics["noise"][0]))
    assert len(set(drawn)) == 3
    again = [float(step(start(step=n), FROZEN, BATCH)[1]["noise"][0]) for n in (2, 0, 1)]
    assert again == [drawn[2], drawn[0], drawn[1]]
    assert float(take(start(), noisy, seed=6)[1]["noise"][0]) != drawn[0]


def test_streams_share_no_key():
    keys = [stream_key(seed, stream, step) for seed in (0, 1) for stream in (INIT, DROPOUT, 3, 4) for step in (0, 1)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


# Not finite -------------------------------------------------------------------------------------------------

ADAM = make_optimizer(OptimizerConfig(warmup_steps=1, ema=0.9), 10, decay=[("**", True)])


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("where", ["y", "x"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_keeps_everything_but_its_number(where, bad, accumulate):
    state, _ = take(start(ADAM), optimizer=ADAM)
    batch = BATCH | {where: BATCH[where].at[0].set(bad)}
    after, metrics = take(state, optimizer=ADAM, batch=batch, accumulate=accumulate)
    assert float(metrics["skipped"][0]) == 1
    assert int(after.step) == 2
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (state.params, state.opt_state))
    again, metrics = take(after, optimizer=ADAM)
    assert float(metrics["skipped"][0]) == 0
    assert not np.array_equal(again.params["w"], after.params["w"])


SCALED = make_optimizer(OptimizerConfig(warmup_steps=1, clip_norm=None), 10, decay=[("**", True)], dynamic_scale=True)


def test_the_loss_scale_is_divided_out_and_falls_when_a_gradient_overflows():
    plain = make_optimizer(OptimizerConfig(warmup_steps=1, clip_norm=None), 10, decay=[("**", True)])
    state, metrics = take(start(SCALED), optimizer=SCALED)
    want, plainly = take(start(plain), optimizer=plain)
    np.testing.assert_allclose(state.params["w"], want.params["w"], rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"][0], plainly["gradient_norm"][0], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, metrics["loss"], plainly["loss"])
    after, metrics = take(state, optimizer=SCALED, batch=BATCH | {"y": BATCH["y"].at[0].set(np.inf)})
    assert float(loss_scale(after.opt_state)) == float(loss_scale(state.opt_state)) / 2
    np.testing.assert_array_equal(after.params["w"], state.params["w"])


def test_a_gradient_that_only_the_scale_makes_overflow_is_met_by_a_smaller_scale():
    def half(params, frozen, batch, key):
        guess = (batch["x"].astype(jnp.float16) @ params["w"].astype(jnp.float16)).astype(jnp.float32)
        loss = jnp.square(guess - batch["y"]).mean()
        return loss, {"loss": (loss, jnp.float32(1))}

    state, skipped = start(SCALED), []
    step = jax.jit(make_step(half, SCALED))
    for _ in range(6):
        state, metrics = step(state, FROZEN, BATCH | {"y": BATCH["y"] * 30})
        skipped.append(float(metrics["skipped"][0]))
        assert np.isfinite(state.params["w"]).all()
    assert skipped[0] == 1
    assert skipped[-1] == 0


def test_the_gradient_norm_of_half_precision_parameters_is_taken_in_float32():
    batch, optimizer = BATCH | {"x": BATCH["x"] * 30}, optax.sgd(1e-9)
    want = take(start(optimizer), optimizer=optimizer, batch=batch)[1]["gradient_norm"][0]
    assert 256 < want < 60_000  # its square is beyond float16
    metrics = take(start(optimizer, jnp.float16), optimizer=optimizer, batch=batch)[1]
    np.testing.assert_allclose(metrics["gradient_norm"][0], want, rtol=1e-2)


# Spikes -----------------------------------------------------------------------------------------------------

WATCHING = make_optimizer(
    OptimizerConfig("sgd", peak_lr=1e-4, warmup_steps=0, b1=0.0, ema=0.9, spike=10.0),
    1000,
    decay=[("**", True)],
    dynamic_scale=True,
)
STEEP = BATCH | {"y": BATCH["y"] + 1000}


def watched(state, batches):
    """The state after these batches, and whether each was taken for a spike."""
    step, spiked = jax.jit(make_step(loss_fn, WATCHING)), []
    for batch in batches:
        state, metrics = step(state, FROZEN, batch)
        assert float(metrics["skipped"][0]) == 0
        spiked.append(float(metrics["spiked"][0]))
    return state, spiked


def test_a_spike_keeps_everything_but_the_number_and_the_norms():
    state, spiked = watched(start(WATCHING), [BATCH] * WARM)
    after, (last,) = watched(state, [STEEP])
    assert (sum(spiked), last) == (0, 1)
    assert int(after.step) == WARM + 1
    jax.tree.map(
        np.testing.assert_array_equal, (after.params, after.opt_state[:2]), (state.params, state.opt_state[:2])
    )
    before, scale, norms = state.opt_state[3], after.opt_state[2], after.opt_state[3]
    assert isinstance(norms, Norms)
    assert int(norms.seen) == int(before.seen) + 1
    assert float(norms.values[WARM]) > 10 * float(before.values[:WARM].max())
    assert int(scale.good_steps) == WARM + 1  # its gradients were finite
    again, (last,) = watched(after, [BATCH])
    assert last == 0
    assert not np.array_equal(again.params["w"], after.params["w"])


def test_there_are_no_spikes_before_enough_norms_were_seen():
    state, spiked = watched(start(WATCHING), [BATCH] * (WARM - 1) + [STEEP])
    assert sum(spiked) == 0
    assert watched(state, [STEEP])[1] == [1]


def test_norms_that_rise_for_good_are_spikes_until_the_median_has_followed():
    _, spiked = watched(start(WATCHING), [BATCH] * WINDOW + [STEEP] * WINDOW)
    most = WINDOW // 2 + 1
    assert spiked[WINDOW:] == [1.0] * (most - 1) + [0.0] * (WINDOW - most + 1)


def test_a_gradient_that_is_not_finite_is_no_spike():
    state, _ = watched(start(WATCHING), [BATCH] * WARM)
    after, metrics = take(state, optimizer=WATCHING, batch=BATCH | {"y": BATCH["y"].at[0].set(np.inf)})
    assert (float(metrics["skipped"][0]), float(metrics["spiked"][0])) == (1, 0)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state[3], state.opt_state[3])
    assert "spiked" not in take(start())[1]


# Frozen and donated -----------------------------------------------------------------------------------------


def test_what_is_frozen_is_an_argument_that_costs_no_gradient():
    """One compiled step serves any frozen values, and its program has no product for their gradient."""

    def loss(params, frozen, batch, key):
        hidden = jnp.tanh(batch["x"] @ frozen["base"])
        value = jnp.square(hidden @ params["w"]).mean()
        return value, {"loss": (value, jnp.float32(1))}

    params = {"w": jnp.ones((5, 2))}
    state = TrainState(step=jnp.int32(0), params=params, opt_state=SGD.init(params))
    step = jax.jit(make_step(loss, SGD))
    frozen = {"base": jnp.ones((3, 5))}
    text = step.lower(state, frozen, BATCH).as_text()
    assert text.count("dot_general") == 3  # two forward, one back: for w
    one, other = (step(state, {"base": frozen["base"] * factor}, BATCH)[0].params["w"] for factor in (1, 2))
    assert not np.allclose(one, other)
    assert step._cache_size() == 1


def equations(jaxpr):
    """Each equation of a program, those of its inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_adapter_trains_beside_a_frozen_base_of_any_kind(accumulate):
    """No value of the base's shape, or of its whole-number form's, is computed but the one that the loss asks for."""

    def loss(params, frozen, batch, key):
        base = frozen["params"]["base"].astype(jnp.float32) * frozen["params"]["head"]["scale"]
        low = params["lora"]["base"]
        hidden = batch["x"] @ base + (batch["x"] @ low["a"]) @ low["b"] * frozen["lora"]["base"]["scale"]
        value = jnp.square(hidden @ params["head"]["kernel"]).mean()
        return value, {"loss": (value, jnp.float32(1))}

    low = {"a": jnp.ones((3, 2)), "b": jnp.full((2, 7), 0.1)}
    params = {"lora": {"base": low}, "head": {"kernel": jnp.ones((7, 1))}}
    whole = {"base": jnp.ones((3, 7), jnp.int8), "head": {"scale": jnp.float32(0.5)}}
    frozen = {"params": whole, "lora": {"base": {"scale": jnp.float32(2)}}, "teacher": (jnp.ones(5), None)}
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=1), 10, decay=[("**", True)])
    state = TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params))
    step = make_step(loss, optimizer, accumulate=accumulate)
    made = [
        equation.primitive.name
        for equation in equations(jax.make_jaxpr(step)(state, frozen, BATCH).jaxpr)
        if any(getattr(out.aval, "shape", None) == (3, 7) for out in equation.outvars)
    ]
    assert set(made) == {"convert_element_type", "mul"}
    new, _ = jax.jit(step, donate_argnums=0)(state, frozen, BATCH)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(low))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
    assert not np.array_equal(new.params["lora"]["base"]["a"], np.ones((3, 2)))


def test_a_donated_state_is_used_up():
    step = jax.jit(make_step(loss_fn, ADAM), donate_argnums=0)
    state = start(ADAM)
    new, _ = step(state, FROZEN, BATCH)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, FROZEN, BATCH)))


def test_a_second_step_compiles_nothing(count_compilations):
    step = jax.jit(functools.partial(make_step(loss_fn, ADAM)), donate_argnums=0)
    state, _ = step(start(ADAM), FROZEN, BATCH)
    with count_compilations() as compiled:
        step(state, FROZEN, BATCH)
    assert len(compiled) == 0
