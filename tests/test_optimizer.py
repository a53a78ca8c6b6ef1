import dataclasses
import functools
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxformer import sharding, tree
from jaxformer.nn.model import Model
from jaxformer.opt_state import (
    WARM,
    WINDOW,
    LossScale,
    adjust_loss_scale,
    ema_params,
    is_spike,
    loss_scale,
    record_norm,
)
from jaxformer.optimizer import DECAY, DEPTHS, MATRICES, OptimizerConfig, make_optimizer, schedule
from jaxformer.sharding import MeshConfig, make_mesh
from jaxformer.testing import tiny_models
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.state import TrainState

KINDS = get_args(OptimizerConfig.__annotations__["kind"])
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


def drawn(seed, size=1.0, dtype=np.float32, shapes=PARAMS):
    draw = np.random.default_rng(seed)
    return {path: (size * draw.normal(size=shape)).astype(dtype) for path, shape in shapes.items()}


def run(config, updates, dtype=jnp.float32, shapes=PARAMS, **options):
    """Parameters after each of some updates, by gradients drawn from its number, and the last state."""
    optimizer = make_optimizer(config, STEPS, **options)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree.unflatten(drawn(0, shapes=shapes)))
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params, state, gradients):
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    seen = []
    for t in range(1, updates + 1):
        gradients = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree.unflatten(drawn(t, 0.3 * t, shapes=shapes)))
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


def adamw(config, t, g, p, kept):
    kept["mean"] = config.b1 * kept.get("mean", 0) + (1 - config.b1) * g
    kept["square"] = config.b2 * kept.get("square", 0) + (1 - config.b2) * g**2
    return kept["mean"] / (1 - config.b1**t) / (np.sqrt(kept["square"] / (1 - config.b2**t)) + config.eps)


def adafactor(config, t, g, p, kept):
    """Algorithms 4 and 5 of the paper, of one layer's vector or matrix."""
    decay, square = 1 - t**-0.8, g**2 + 1e-30
    if g.ndim == 2 and min(g.shape) >= 128:
        rows, columns = kept.get("rows", 0), kept.get("columns", 0)
        rows = kept["rows"] = decay * rows + (1 - decay) * square.mean(1)
        columns = kept["columns"] = decay * columns + (1 - decay) * square.mean(0)
        square = np.outer(rows, columns) / rows.mean()
    else:
        square = kept["square"] = decay * kept.get("square", 0) + (1 - decay) * square
    step = g / np.sqrt(square)
    rms = lambda x: np.sqrt(np.mean(x**2))
    return step / max(1, rms(step)) * max(1e-3, rms(p))


def lion(config, t, g, p, kept):
    mean = kept.get("mean", 0)
    kept["mean"] = config.b2 * mean + (1 - config.b2) * g
    return np.sign(config.b1 * mean + (1 - config.b1) * g)


def sgd(config, t, g, p, kept):
    kept["sum"] = config.b1 * kept.get("sum", 0) + g
    return kept["sum"]


def by_layer(rule, config, t, g, p, kept):
    """A rule on each layer of a leaf, a kernel as the matrix of its product."""
    as_matrix = lambda x: x.reshape(x.shape[0], -1) if x.ndim == 3 else x
    steps = [rule(config, t, as_matrix(g[i]), p[i], kept.setdefault(i, {})) for i in range(len(g))]
    return np.stack(steps).reshape(g.shape)


RULES = {"adamw": adamw, "adafactor": adafactor, "lion": lion, "sgd": sgd}


def by_hand(config, updates, shapes=PARAMS):
    """Each rule in float64 numpy, by its paper's lines."""
    params = drawn(0, dtype=np.float64, shapes=shapes)
    kept = {path: {} for path in params}
    seen = []
    for t, lr in zip(range(1, updates + 1), rates(config), strict=False):
        gradients = {path: g.astype(np.float64) for path, g in drawn(t, 0.3 * t, shapes=shapes).items()}
        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        shrink = 1.0 if config.clip_norm is None else min(1.0, config.clip_norm / norm)
        for path, p in params.items():
            rule = RULES[config.kind]
            rule = functools.partial(by_layer, rule) if "/blocks/" in path else rule
            pull = config.weight_decay * p if path in DECAYED else 0.0
            params[path] = p - lr * (rule(config, t, gradients[path] * shrink, p, kept[path]) + pull)
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
    "norms": dataclasses.replace(BASE, spike=2.0),
    **{kind: dataclasses.replace(BASE, kind=kind) for kind in RULES},
    "no momentum": dataclasses.replace(BASE, kind="sgd", b1=0.0),
}


@pytest.mark.parametrize("name", [*BATTERY, "loss scale"])
def test_the_whole_optimizer_is_its_rule_written_out(name):
    config = BATTERY.get(name, BASE)
    seen, _ = run(config, STEPS, dynamic_scale=name == "loss scale")
    for got, want in zip(seen, by_hand(config, STEPS), strict=True):
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
        "layer_decay": 1.5,
        "spike": 1.0,
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


# Kinds ------------------------------------------------------------------------------------------------------

WIDE = {
    "decoder/blocks/attention/query/kernel": (2, 130, 2, 66),
    "decoder/blocks/attention/out/kernel": (2, 2, 66, 130),
    "decoder/blocks/mlp/up/bias": (2, 140),
    "heads/lm/kernel": (130, 135),
}


def test_adafactor_keeps_rows_and_columns_of_each_matrix_and_of_each_layer():
    config = dataclasses.replace(BASE, kind="adafactor", weight_decay=0.0)
    shapes = {path: WIDE[path] for path in WIDE if "out" not in path}  # its inputs are two axes: below
    seen, state = run(config, 3, shapes=shapes)
    for got, want in zip(seen, by_hand(config, 3, shapes), strict=True):
        for path in shapes:
            np.testing.assert_allclose(got[path], want[path], rtol=0, atol=1e-5, err_msg=path)
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert held == 2 * (130 + 132) + (130 + 135) + 2 * 140 + 6  # two counters, and what stands in empty places


def test_adafactor_takes_an_output_kernel_for_the_transpose_of_one_of_inputs():
    config = dataclasses.replace(BASE, kind="adafactor", clip_norm=None)
    optimizer = make_optimizer(config, STEPS)

    def moved(path, transpose):
        shape = WIDE["decoder/blocks/attention/out/kernel"]
        params, gradients = (np.random.default_rng(n).normal(size=shape).astype(np.float32) for n in (0, 1))
        turn = lambda x: tree.unflatten({path: jnp.asarray(x.transpose(0, 3, 1, 2) if transpose else x)})
        params, gradients = turn(params), turn(gradients)
        changes, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
        change = np.asarray(tree.flatten(changes)[path])
        return change.transpose(0, 2, 3, 1) if transpose else change

    out, query = (f"decoder/blocks/attention/{name}/kernel" for name in ("out", "query"))
    np.testing.assert_allclose(moved(out, False), moved(query, True), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rules", [DECAY, MATRICES, DEPTHS], ids=["decay", "matrices", "depths"])
def test_every_parameter_of_every_model_and_its_adapter_has_its_place_in_the_rules(rules):
    for name in tiny_models():
        paths = tree.flatten(sharding.abstract_params(Model(tiny_models()[name])))
        kernels = [path.removesuffix("/kernel") for path in paths if path.endswith("/kernel")]
        adapters = [f"lora/{path}/{leaf}" for path in kernels for leaf in "ab"]
        tree.match(rules, [*paths, *adapters], "tested")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_alone_is_trained_by_every_kind(kind):
    config = OptimizerConfig(kind, peak_lr=0.1, warmup_steps=0, clip_norm=None)
    lora = {path: shape for path, shape in LADDER.items() if path.startswith("lora/")}
    (moved,), _ = run(config, 1, shapes=lora)
    assert all((moved[path] != drawn(0, shapes=lora)[path]).all() for path in lora)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_kept_is_float32_and_comes_back_from_a_checkpoint(kind, tmp_path):
    config = dataclasses.replace(BASE, kind=kind, ema=0.9, spike=3.0, layer_decay=0.9)
    seen, opt_state = run(config, 2, dtype=jnp.bfloat16, shapes=WIDE, dynamic_scale=True)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(opt_state)} == {"float32", "int32"}
    state = TrainState(step=jnp.int32(2), params=tree.unflatten(seen[-1]), opt_state=opt_state)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, {}, {})
        again, _, _ = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_in_a_parameters_shape_lies_where_the_parameter_does(kind):
    """Adafactor's rows and columns have shapes of their own, and are on every device."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    params = sharding.abstract_params(Model(tiny_models()["learned"]))
    state = jax.eval_shape(make_optimizer(OptimizerConfig(kind, warmup_steps=1), 10).init, params)
    homes = sharding.like_parameters(mesh, state, params)
    want = {path: (leaf.shape, sharding.specs(mesh, params)[path]) for path, leaf in tree.flatten(params).items()}
    held = set()
    for (keys, leaf), home in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(homes), strict=True):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        whose = next((p for p in want if path.endswith(p) and leaf.shape == want[p][0]), None)
        assert home.spec == (PartitionSpec() if whose is None else want[whose][1])
        held |= {whose} - {None}
    if kind == "adafactor":
        assert "embed/embedding" in held  # too small for rows and columns
        return
    assert held == set(want)


# Layers -----------------------------------------------------------------------------------------------------

LADDER = {
    "embed/embedding": (5, 4),
    "encoder/position/embedding": (6, 4),
    "encoder/input_norm/scale": (4,),
    "encoder/input_projection/kernel": (4, 4),
    "encoder/blocks/mlp/up/kernel": (3, 4, 2),
    "encoder/norm/scale": (4,),
    "decoder/relative/embedding": (8, 2),
    "decoder/blocks/attention/query/bias": (2, 2, 2),
    "decoder/norm/scale": (4,),
    "heads/pooler/kernel": (4, 4),
    "heads/classify/output/bias": (3,),
    "lora/decoder/blocks/mlp/up/a": (2, 4, 2),
    "lora/heads/lm/b": (2, 5),
}


def lengths(shapes):
    """How far parameters of 1 go down gradients of 1; by layer where there are layers."""
    rate = {"peak_lr": 1.0, "warmup_steps": 0, "schedule": "constant"}
    config = OptimizerConfig("sgd", **rate, b1=0.0, weight_decay=0.0, clip_norm=None, layer_decay=0.5)
    optimizer = make_optimizer(config, STEPS)
    ones = tree.unflatten({path: jnp.ones(shape) for path, shape in shapes.items()})
    changes = jax.jit(optimizer.update)(ones, optimizer.init(ones), ones)[0]
    ways = {path: -np.asarray(change) for path, change in tree.flatten(changes).items()}
    axes = lambda path: tuple(range(1 if "/blocks/" in path else 0, ways[path].ndim))
    return {path: way.mean(axes(path)) for path, way in ways.items()}


def test_the_rate_falls_from_the_heads_down_each_stack_to_its_input():
    expected = {
        "embed/embedding": 0.5**4,  # below the deeper stack
        "encoder/position/embedding": 0.5**4,
        "encoder/input_norm/scale": 0.5**4,
        "encoder/input_projection/kernel": 0.5**4,
        "encoder/blocks/mlp/up/kernel": [0.125, 0.25, 0.5],
        "encoder/norm/scale": 1.0,
        "decoder/relative/embedding": 0.5**3,
        "decoder/blocks/attention/query/bias": [0.25, 0.5],
        "decoder/norm/scale": 1.0,
        "heads/pooler/kernel": 1.0,
        "heads/classify/output/bias": 1.0,
        "lora/decoder/blocks/mlp/up/a": [0.25, 0.5],
        "lora/heads/lm/b": 1.0,
    }
    found = lengths(LADDER)
    for path in LADDER:
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


def test_layers_that_share_their_parameters_count_as_one():
    shapes = {"embed/embedding": (5, 4), "encoder/blocks/mlp/up/kernel": (1, 4, 2), "heads/lm/bias": (5,)}
    assert list(lengths(shapes).values()) == [0.25, [0.5], 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layers_rate_multiplies_its_whole_step_by_any_rule_and_its_decay(kind):
    base = OptimizerConfig(kind, peak_lr=0.1, warmup_steps=0, schedule="constant", weight_decay=0.5)
    path = "decoder/blocks/attention/query/kernel"
    (whole,), _ = run(base, 1, shapes={path: PARAMS[path]})
    (scaled,), _ = run(dataclasses.replace(base, layer_decay=0.5), 1, shapes={path: PARAMS[path]})
    before = drawn(0, shapes={path: PARAMS[path]})[path]
    want = before + np.array([0.25, 0.5]).reshape(2, 1, 1, 1) * (whole[path] - before)
    np.testing.assert_allclose(scaled[path], want, rtol=1e-5, atol=1e-6)


# Spikes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1.5, 10.0])
def test_a_spike_is_beyond_so_many_times_the_median_of_the_latest_finite_norms(limit):
    optimizer = make_optimizer(dataclasses.replace(BASE, spike=limit), STEPS)
    state = optimizer.init(tree.unflatten(drawn(0)))
    norms = np.exp(np.random.default_rng(0).normal(size=3 * WINDOW)).astype(np.float32)
    norms[[5, 40, 100]] = np.nan, np.inf, 50.0
    look, add, latest = jax.jit(is_spike), jax.jit(record_norm), []
    for norm in norms:
        want = len(latest) >= WARM and np.isfinite(norm) and norm > limit * np.median(latest[-WINDOW:])
        assert bool(look(state, norm)) == want
        state = add(state, norm)
        latest += [norm] if np.isfinite(norm) else []


def test_without_a_limit_no_norms_are_kept():
    _, state = run(BASE, 1)
    assert is_spike(state, jnp.float32(1e9)) is None
    assert record_norm(state, jnp.float32(1)) == state
