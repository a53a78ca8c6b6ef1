"""The optimizer: one optax transformation from one config, with all that it remembers in its state."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import Array

from jaxformer import tree

Schedule = Callable[[Array | int], Array]


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move: the rule, its learning rate over the run, and what is kept beside it."""

    kind: Literal["adamw", "muon"] = "adamw"
    """The update rule. adamw: Loshchilov and Hutter, 2019, its decay multiplied by the learning rate. muon: Jordan
    et al., 2024, for the kernels of blocks, its steps as long as Adam's (Liu et al., 2025, section 2.2); all else is
    moved by Adam with Nesterov's momentum."""
    peak_lr: float = 1e-3
    """Learning rate at the end of the warm-up."""
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    """What follows the warm-up. wsd holds the peak, then falls in a line (Hu et al., 2024)."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises in a line to its peak; 0 starts at the peak."""
    end_lr_ratio: float = 0.1
    """Learning rate of the last step over the peak, for cosine, linear and wsd."""
    decay_fraction: float = 0.2
    """Share of all steps in which wsd falls."""
    b1: float = 0.9
    """Decay of the mean of the gradients, for each step."""
    b2: float = 0.95
    """Decay of the mean of the squared gradients, for each step."""
    eps: float = 1e-8
    """Added to the root of the squared mean."""
    weight_decay: float = 0.1
    """Strength of the pull of kernels and token embeddings to zero."""
    clip_norm: float | None = 1.0
    """Largest norm of all gradients together; a longer one is shortened to it. None leaves it."""
    ema: float | None = None
    """Decay of a moving average of the parameters, such as 0.999. None keeps no average."""


def problems(config: OptimizerConfig, steps: int) -> list[str]:
    """Every reason why this config cannot drive a run of `steps` steps, each with its field and a remedy."""
    bounds = [
        ("peak_lr", config.peak_lr > 0, "above 0"),
        ("warmup_steps", 0 <= config.warmup_steps < steps, f"at least 0 and below the run's {steps} steps"),
        ("end_lr_ratio", 0 <= config.end_lr_ratio <= 1, "from 0 to 1"),
        ("decay_fraction", 0 < config.decay_fraction <= 1, "above 0 and at most 1"),
        ("b1", 0 <= config.b1 < 1, "at least 0 and below 1"),
        ("b2", 0 <= config.b2 < 1, "at least 0 and below 1"),
        ("eps", config.eps > 0, "above 0"),
        ("weight_decay", config.weight_decay >= 0, "at least 0"),
        ("clip_norm", config.clip_norm is None or config.clip_norm > 0, "above 0, or None"),
        ("ema", config.ema is None or 0 < config.ema < 1, "between 0 and 1, or None"),
    ]
    return [f"{name} is {getattr(config, name)}: make it {want}" for name, good, want in bounds if not good]


def schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """The learning rate, float32, as a function of the step, which counts from 0 to steps - 1.

    The update of step s has number t = s + 1; with W warm-up steps it is peak * min(t / W, 1) * shape(t), and
    shape(t) is 1 until W. inverse_sqrt is that of Vaswani et al., 2017, section 5.3: the root of W / t.
    """
    warmup = max(config.warmup_steps, 1)
    drop = 1 - config.end_lr_ratio

    def way(start: float, t: Array) -> Array:
        return jnp.clip((t - start) / max(steps - start, 1), 0, 1)

    shape = {
        "cosine": lambda t: 1 - drop * (1 - jnp.cos(math.pi * way(warmup, t))) / 2,
        "linear": lambda t: 1 - drop * way(warmup, t),
        "constant": jnp.ones_like,
        "inverse_sqrt": lambda t: jnp.sqrt(warmup / jnp.maximum(t, warmup)),
        "wsd": lambda t: 1 - drop * way((1 - config.decay_fraction) * steps, t),
    }[config.schedule]

    def lr(step: Array | int) -> Array:
        t = jnp.asarray(step, jnp.float32) + 1
        return config.peak_lr * jnp.minimum(t / warmup, 1) * shape(t)

    return lr


DECAY: tree.Rules[bool] = (
    ("**/kernel", True),
    ("embed/embedding", True),
    ("**/{a,b}", True),  # of an adapter
    ("**/bias", False),
    ("**/scale", False),
    ("{encoder,decoder}/{position,segment,relative}/embedding", False),
)
"""Which parameters weight decay pulls to zero, by path."""


def make_optimizer(
    config: OptimizerConfig, steps: int, *, decay: tree.Rules[bool] = DECAY, dynamic_scale: bool = False
) -> optax.GradientTransformation:
    """Clipping, then the update rule with its schedule and decay, then the average of the parameters.

    Gradients come unscaled. All is computed and kept in float32, whatever the parameters' dtype, so that
    `optax.apply_updates` rounds once. `dynamic_scale` keeps a loss scale in the state, for float16.
    Raises ValueError for settings out of range, and, at `init`, for a parameter that not exactly one rule of
    `decay` describes.
    """
    if found := problems(config, steps):
        raise ValueError("this optimizer cannot be made:\n" + "\n".join(f"  - {line}" for line in found))
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    parts = [in_float32(optax.chain(*clip, RULES[config.kind](config, schedule(config, steps), decay)))]
    if config.ema is not None:
        parts.append(average(config.ema))
    if dynamic_scale:
        parts.append(hold_loss_scale())
    return optax.chain(*parts)


def _adamw(config: OptimizerConfig, lr: Schedule, decay: tree.Rules[bool]) -> optax.GradientTransformation:
    mask = functools.partial(_mask, decay)
    return optax.adamw(lr, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=mask)


def _mask(decay: tree.Rules[bool], params: dict[str, Any]) -> dict[str, Any]:
    return tree.unflatten(tree.match(decay, tree.flatten(params), "weight decay"))


def _muon(config: OptimizerConfig, lr: Schedule, decay: tree.Rules[bool]) -> optax.GradientTransformation:
    def matrices(params: dict[str, Any]) -> dict[str, Any]:
        """Which axes of a leaf, behind that of the layers, are a matrix's rows and columns; None for no matrix."""
        flat = tree.flatten(params)
        inputs = tree.match(MATRICES, flat, "muon")
        return tree.unflatten({path: _matrix(flat[path], inputs[path]) for path in flat})

    directions = optax.contrib.muon(
        1.0,
        eps=config.eps,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )
    # Its own decay spares no bias: so it gives directions alone, downhill, and decay and rate come after.
    decayed = optax.add_decayed_weights(-config.weight_decay, functools.partial(_mask, decay))
    return optax.chain(directions, decayed, optax.scale_by_schedule(lr))


MATRICES: tree.Rules[Literal["first", "all but last", "second last"] | None] = (
    ("{encoder,decoder}/blocks/**/{query,key,value}/kernel", "first"),
    ("{encoder,decoder}/blocks/mlp/{up,gate}/kernel", "first"),
    ("{encoder,decoder}/blocks/**/out/kernel", "all but last"),
    ("{encoder,decoder}/blocks/mlp/down/kernel", "all but last"),
    ("{encoder,decoder}/blocks/mlp/experts/*/kernel", "second last"),
    ("{encoder,decoder}/blocks/mlp/router/kernel", None),
    ("{encoder,decoder}/blocks/**/{bias,scale,a,b}", None),
    ("{encoder,decoder}/{norm,input_norm,input_projection}/*", None),
    ("embed/embedding", None),
    ("{encoder,decoder}/{position,segment,relative}/embedding", None),
    ("heads/**", None),
)
"""Which axes are a product's inputs, for the leaves that muon makes orthogonal."""


def _matrix(leaf: Any, inputs: str | None) -> optax.contrib.MuonDimensionNumbers | None:
    if inputs is None:
        return None
    first = leaf.ndim - 2 if inputs == "second last" else 1
    border = 2 if inputs == "first" else leaf.ndim - 1
    return optax.contrib.MuonDimensionNumbers(tuple(range(first, border)), tuple(range(border, leaf.ndim)))


RULES = {"adamw": _adamw, "muon": _muon}


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on float32 copies: optax would keep second moments in the parameters' dtype, bfloat16 too."""
    up = functools.partial(optax.tree.cast, dtype=jnp.float32)

    def init(params: Any) -> Any:
        return inner.init(up(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return inner.update(up(updates), state, up(params))

    return optax.GradientTransformation(init, update)


class Average(NamedTuple):
    """A moving average of the parameters, float32, and the number of updates in it."""

    updates: Array
    params: Any


def average(decay: float) -> optax.GradientTransformation:
    """Keeps average = d * average + (1 - d) * new parameters, and passes the updates on unchanged.

    d = min(decay, (1 + n) / (10 + n)) after n updates: a short run's average forgets where it began.
    """

    def init(params: Any) -> Average:
        # A real copy: a float32 leaf handed on as it is would be donated twice, here and as a parameter.
        copy = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        return Average(jnp.int32(0), copy)

    def update(updates: Any, state: Average, params: Any = None) -> tuple[Any, Average]:
        d = jnp.minimum(decay, (1 + state.updates) / (10 + state.updates))
        new = optax.tree.cast(optax.apply_updates(params, updates), jnp.float32)
        moved = jax.tree.map(lambda mean, p: d * mean + (1 - d) * p, state.params, new)
        return updates, Average(optax.safe_increment(state.updates), moved)

    return optax.GradientTransformation(init, update)


class LossScale(NamedTuple):
    """What the loss is multiplied by lest float16 gradients vanish, and the finite steps since it moved."""

    value: Array
    good_steps: Array


def hold_loss_scale() -> optax.GradientTransformation:
    """Keeps a LossScale in the optimizer state and changes nothing; `adjust_loss_scale` moves it."""

    def init(params: Any) -> LossScale:
        return LossScale(jnp.float32(2**15), jnp.int32(0))

    def update(updates: Any, state: LossScale, params: Any = None) -> tuple[Any, LossScale]:
        return updates, state

    return optax.GradientTransformation(init, update)


def loss_scale(opt_state: Any) -> Array | float:
    """The factor for the loss, to be divided out of the gradients; 1.0 where the state holds none."""
    found = _find(opt_state, LossScale)
    return found[0].value if found else 1.0


def adjust_loss_scale(opt_state: Any, finite: Array, patience: int = 2000) -> Any:
    """The state after a step: its loss scale halved where the gradients were not finite, doubled after
    `patience` finite steps in a row (Micikevicius et al., 2018, section 3.2).

    The train step calls it last, after it chose the new state or the old: a step not taken moves it too.
    """

    def move(node: Any) -> Any:
        if not isinstance(node, LossScale):
            return node
        grow = node.good_steps + 1 >= patience
        up = jnp.where(grow, jnp.minimum(node.value * 2, 2.0**24), node.value)
        down = jnp.maximum(node.value / 2, 1)
        good = jnp.where(finite & ~grow, node.good_steps + 1, 0)
        return LossScale(jnp.where(finite, up, down), good)

    return jax.tree.map(move, opt_state, is_leaf=lambda node: isinstance(node, LossScale))


def ema_params(opt_state: Any) -> Any | None:
    """The moving average of the parameters, float32; None where the state holds none."""
    found = _find(opt_state, Average)
    return found[0].params if found else None


def _find(opt_state: Any, kind: type) -> list[Any]:
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]
