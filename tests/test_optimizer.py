import dataclasses
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import tree
from jaxformer.optimizer import (
    DECAY,
    LossScale,
    OptimizerConfig,
    adjust_loss_scale,
    ema_params,
    loss_scale,
    make_optimizer,
    schedule,
)

STEPS = 12
SCHEDULES = get_args(OptimizerConfig.__annotations__["schedule"])
PARAMS = {
    "embed/embedding": (5, 4),
    "decoder/position/embedding": (6, 4),
    "decoder/blocks/attention/query/kernel": (2, 4, 2, 2),
    "decoder/blocks/attention/query/bias": (2, 2, 2),
    "decoder/blocks/mlp_norm/scale": (2, 4),
    "heads/lm/kernel": (4, 5),
}
DECAYED = {"embed/embedding", "decoder/blocks/attention/query/kernel", "heads/lm/kernel"}


def drawn(seed, size=1.0, dtype=np.float32):
    draw = np.random.default_rng(seed)
    return {path: (size * draw.normal(size=shape)).astype(dtype) for path, shape in PARAMS.items()}


def run(config, updates, dtype=jnp.float32, **options):
    """Parameters after each of some updates, by gradients drawn from its number, and the last state."""
    optimizer = make_optimizer(config, STEPS, **options)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree.unflatten(drawn(0)))
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params, state, gradients):
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    seen = []
    for t in range(1, updates + 1):
        gradients = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree.unflatten(drawn(t, size=0.3 * t)))
        params, state = step(params, state, gradients)
        seen.append(tree.flatten(jax.tree.map(np.asarray, params)))
    return seen, state


def rates(config):
    """The learning rates of a run, from the definitions, in plain Python."""
    ratios = []
    for t in range(1, STEPS + 1):
        warmup = max(config.warmup_steps, 1)
        after = max(t - warmup, 0) / (STEPS - warmup)
        start = (1 - config.decay_fraction) * STEPS
        low = config.end_lr_ratio
        shape = {
            "cosine": low + (1 - low) * 0.5 * (1 + math.cos(math.pi * after)),
            "linear": 1 - (1 - low) * after,
            "constant": 1.0,
            "inverse_sqrt": math.sqrt(warmup / max(t, warmup)),
            "wsd": 1 - (1 - low) * max(t - start, 0) / (STEPS - start),
        }[config.schedule]
        ratios.append(config.peak_lr * min(t / warmup, 1) * shape)
    return ratios


def adamw(config, updates):
    """AdamW in float64 numpy, by the paper's lines."""
    params = drawn(0, dtype=np.float64)
    mean = {path: np.zeros_like(p) for path, p in params.items()}
    square = {path: np.zeros_like(p) for path, p in params.items()}
    seen = []
    for t, lr in zip(range(1, updates + 1), rates(config), strict=False):
        gradients = {path: g.astype(np.float64) for path, g in drawn(t, size=0.3 * t).items()}
        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        shrink = 1.0 if config.clip_norm is None else min(1.0, config.clip_norm / norm)
        for path, p in params.items():
            g = gradients[path] * shrink
            mean[path] = config.b1 * mean[path] + (1 - config.b1) * g
            square[path] = config.b2 * square[path] + (1 - config.b2) * g**2
            m, s = mean[path] / (1 - config.b1**t), square[path] / (1 - config.b2**t)
            pull = config.weight_decay * p if path in DECAYED else 0.0
            params[path] = p - lr * (m / (np.sqrt(s) + config.eps) + pull)
        seen.append(dict(params))
    return seen


BASE = OptimizerConfig(peak_lr=0.1, warmup_steps=3)
BATTERY = {
    **{name: dataclasses.replace(BASE, schedule=name) for name in SCHEDULES},
    "no warm-up": dataclasses.replace(BASE, warmup_steps=0),
    "no clipping": dataclasses.replace(BASE, clip_norm=None),
    "loose clipping": dataclasses.replace(BASE, clip_norm=20.0),
    "no decay": dataclasses.replace(BASE, weight_decay=0.0),
    "average": dataclasses.replace(BASE, ema=0.9),
    "other betas": dataclasses.replace(BASE, b1=0.8, b2=0.999, eps=1e-6),
}


@pytest.mark.parametrize("name", [*BATTERY, "loss scale"])
def test_the_whole_optimizer_is_plain_adamw(name):
    config = BATTERY.get(name, BASE)
    seen, _ = run(config, STEPS, dynamic_scale=name == "loss scale")
    for got, want in zip(seen, adamw(config, STEPS), strict=True):
        for path in PARAMS:
            np.testing.assert_allclose(got[path], want[path], rtol=0, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", BATTERY)
def test_a_schedule_is_its_definition_at_every_step(name):
    config = BATTERY[name]
    lr = jax.jit(schedule(config, STEPS))
    np.testing.assert_allclose([lr(step) for step in range(STEPS)], rates(config), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 11 steps, of which the first warms up and the last 4 are the fall of wsd; peak 1, end 0.2
        ("cosine", {0: 1.0, 5: 0.6, 10: 0.2}),
        ("linear", {0: 1.0, 5: 0.6, 10: 0.2}),
        ("constant", {0: 1.0, 5: 1.0, 10: 1.0}),
        ("inverse_sqrt", {0: 1.0, 3: 0.5, 8: 1 / 3}),
        ("wsd", {0: 1.0, 6: 1.0, 8: 0.6, 10: 0.2, 1000: 0.2}),
    ],
)
def test_schedules_pass_through_points_worked_out_by_hand(name, expected):
    config = OptimizerConfig(peak_lr=1.0, schedule=name, warmup_steps=1, end_lr_ratio=0.2, decay_fraction=4 / 11)
    lr = schedule(config, 11)
    for step, value in expected.items():
        assert float(lr(step)) == pytest.approx(value, abs=1e-6), step


def test_the_warm_up_rises_in_a_line_from_the_first_step():
    lr = schedule(OptimizerConfig(peak_lr=0.4, schedule="constant", warmup_steps=4), 10)
    np.testing.assert_allclose([lr(step) for step in range(6)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)


def test_kernels_and_token_embeddings_decay_and_nothing_else():
    decayed = {path for path, yes in tree.match(DECAY, PARAMS, "weight decay").items() if yes}
    assert decayed == DECAYED


def test_a_parameter_that_no_decay_rule_covers_is_named():
    params = {"decoder": {"surprise": jnp.ones(3)}}
    with pytest.raises(ValueError, match="decoder/surprise"):
        make_optimizer(BASE, STEPS).init(params)


def test_moments_are_float32_for_bfloat16_parameters_and_match_a_float32_run():
    low, state = run(BASE, 3, dtype=jnp.bfloat16)
    assert {str(x.dtype) for x in jax.tree.leaves(state)} == {"float32", "int32"}
    assert {str(x.dtype) for x in low[-1].values()} == {"bfloat16"}
    full, _ = run(BASE, 3)
    for path in PARAMS:
        np.testing.assert_allclose(low[-1][path].astype(np.float32), full[-1][path], atol=0.05)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_average_equals_the_hand_loop(dtype):
    seen, state = run(dataclasses.replace(BASE, ema=0.3), STEPS, dtype=dtype)
    want = {path: x.astype(dtype).astype(np.float32) for path, x in drawn(0).items()}
    for n, params in enumerate(seen):
        d = np.float32(min(0.3, (1 + n) / (10 + n)))
        want = {path: d * want[path] + (1 - d) * params[path].astype(np.float32) for path in PARAMS}
    got = tree.flatten(ema_params(state))
    for path in PARAMS:
        assert got[path].dtype == jnp.float32
        np.testing.assert_allclose(got[path], want[path], atol=1e-6, err_msg=path)


def test_there_is_no_average_and_no_scale_unless_asked_for():
    _, state = run(BASE, 1)
    assert ema_params(state) is None
    assert loss_scale(state) == 1.0
    assert adjust_loss_scale(state, jnp.array(False)) == state


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_the_average_shares_no_buffer_with_the_parameters(wrap):
    optimizer = make_optimizer(dataclasses.replace(BASE, ema=0.9), STEPS)
    params = tree.unflatten({path: jnp.asarray(x) for path, x in drawn(0).items()})
    state = wrap(optimizer.init)(params)

    def step(params, state):
        changes, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, changes), state

    jax.block_until_ready(jax.jit(step, donate_argnums=(0, 1))(params, state))


def test_the_loss_scale_halves_on_overflow_and_doubles_after_a_row_of_good_steps():
    _, state = run(BASE, 1, dynamic_scale=True)
    assert loss_scale(state) == 2.0**15
    move = jax.jit(lambda state, finite: adjust_loss_scale(state, finite, patience=3))
    values = []
    for finite in [True, True, True, True, False, True, True, False, False, True, True, True]:
        state = move(state, jnp.array(finite))
        values.append(float(loss_scale(state)) / 2**15)
    assert values == [1, 1, 2, 2, 1, 1, 1, 0.5, 0.25, 0.25, 0.25, 0.5]


@pytest.mark.parametrize(("value", "finite", "after"), [(1.0, False, 1.0), (2.0**24, True, 2.0**24)])
def test_the_loss_scale_stays_within_its_bounds(value, finite, after):
    state = (LossScale(jnp.float32(value), jnp.int32(0)),)
    assert loss_scale(adjust_loss_scale(state, jnp.array(finite), patience=1)) == after


def test_every_bad_setting_is_reported_at_once():
    bad = {
        "peak_lr": 0.0,
        "warmup_steps": 50,
        "b2": 1.0,
        "clip_norm": -1.0,
        "ema": 1.5,
        "decay_fraction": 0.0,
    }
    with pytest.raises(ValueError) as caught:
        make_optimizer(OptimizerConfig(**bad), STEPS)
    for name in bad:
        assert f"{name} is " in str(caught.value)


def test_muon_moves_each_layers_matrix_by_an_orthogonal_step_as_long_as_adams():
    config = OptimizerConfig(
        kind="muon", peak_lr=0.01, warmup_steps=0, schedule="constant", weight_decay=0.0, clip_norm=None
    )
    path = "decoder/blocks/attention/query/kernel"
    (moved,), _ = run(config, 1)
    steps = (moved[path] - drawn(0)[path]).reshape(2, 4, 4)
    for step in steps:
        sizes = np.linalg.svd(step, compute_uv=False)
        assert sizes.max() / sizes.min() < 2.5  # Newton-Schulz stops at singular values near one, between 0.7 and 1.2
        assert np.sqrt(np.square(step).mean()) == pytest.approx(0.2 * 0.01, rel=0.3)


def test_muon_leaves_all_but_the_kernels_of_blocks_to_adam_with_nesterov():
    config = OptimizerConfig(kind="muon", peak_lr=0.01, warmup_steps=0, schedule="constant", clip_norm=None)
    by_muon = run(config, 3)[0][-1]
    mask = {path: path in DECAYED for path in PARAMS}
    adam = optax.nadamw(0.01, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=mask)
    by_adam = drawn(0)
    state = adam.init(by_adam)
    for t in range(1, 4):
        changes, state = adam.update(drawn(t, size=0.3 * t), state, by_adam)
        by_adam = optax.apply_updates(by_adam, changes)
    for path in PARAMS:
        same = np.allclose(by_adam[path], by_muon[path], rtol=1e-4, atol=1e-6)
        assert same == (path != "decoder/blocks/attention/query/kernel"), path
