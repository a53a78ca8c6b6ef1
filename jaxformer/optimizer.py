"""The optimizer: one optax transformation from one config, with all that it remembers in its state."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import Array

from jaxformer import tree
from jaxformer.opt_state import average, ema_params, hold_loss_scale, hold_norms

__all__ = [
    "DECAY",
    "DEPTHS",
    "MATRICES",
    "OptimizerConfig",
    "Schedule",
    "ema_params",
    "make_optimizer",
    "problems",
    "schedule",
]

Schedule = Callable[[Array | int], Array]


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move: the rule, its learning rate over the run, and what is kept beside it."""

    kind: Literal["adamw", "adafactor", "lion", "muon", "sgd"] = "adamw"
    """The update rule. adamw: Loshchilov and Hutter, 2019. adafactor: Shazeer and Stern, 2018, without momentum: its
    steps are shares of each matrix's own size. lion: Chen et al., 2023. muon: Jordan et al., 2024, for the kernels of
    blocks, its steps as long as Adam's (Liu et al., 2025, section 2.2); all else is moved by Adam with Nesterov's
    momentum. sgd: down the gradients' decayed sum. The decay of each is multiplied by the learning rate."""
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
    """Decay of the mean of the gradients, for each step; sgd's momentum, 0 for none. adafactor has none."""
    b2: float = 0.95
    """Decay of the mean of the squared gradients, for each step; lion's of the mean that it keeps. adafactor's rises
    from 0 to 1."""
    eps: float = 1e-8
    """Added to the root of the squared mean, in adamw and muon."""
    weight_decay: float = 0.1
    """Strength of the pull of kernels and token embeddings to zero."""
    clip_norm: float | None = 1.0
    """Largest norm of all gradients together; a longer one is shortened to it. None leaves it."""
    ema: float | None = None
    """Decay of a moving average of the parameters, such as 0.999. None keeps no average."""
    layer_decay: float | None = None
    """Learning rate of a layer over that of the layer on top of it, such as 0.8 to fine-tune (Clark et al., 2020).
    Heads have the whole rate. None gives it to all."""
    spike: float | None = None
    """A step whose gradient norm is more than this many times the median of the latest 64 is not taken; such as 10.
    None takes all."""


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
        ("layer_decay", config.layer_decay is None or 0 < config.layer_decay <= 1, "above 0 and at most 1, or None"),
        ("spike", config.spike is None or config.spike > 1, "above 1, or None"),
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
    """Clipping, then the update rule with its decay and schedule, then the average of the parameters.

    Gradients come unscaled. All is computed and kept in float32, whatever the parameters' dtype, so that
    `optax.apply_updates` rounds once. `dynamic_scale` keeps a loss scale in the state, for float16; with
    `config.spike` the state keeps the latest norms: the train step reads and moves both (opt_state).
    Raises ValueError for settings out of range, and, at `init`, for a parameter that not exactly one rule of
    `decay` describes.
    """
    if found := problems(config, steps):
        raise ValueError("this optimizer cannot be made:\n" + "\n".join(f"  - {line}" for line in found))
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    mask = functools.partial(_mask, decay)
    rule = [DIRECTIONS[config.kind](config), optax.add_decayed_weights(config.weight_decay, mask)]
    if config.layer_decay is not None:
        rule.append(_by_depth(config.layer_decay))
    rule.append(optax.scale_by_learning_rate(schedule(config, steps)))
    parts = [in_float32(optax.chain(*clip, optax.chain(*rule)))]
    if config.ema is not None:
        parts.append(average(config.ema))
    if dynamic_scale:
        parts.append(hold_loss_scale())
    if config.spike is not None:
        parts.append(hold_norms(config.spike))
    return optax.chain(*parts)


def _mask(decay: tree.Rules[bool], params: dict[str, Any]) -> dict[str, Any]:
    return tree.unflatten(tree.match(decay, tree.flatten(params), "weight decay"))


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on float32 copies: optax would keep second moments in the parameters' dtype, bfloat16 too."""
    up = functools.partial(optax.tree.cast, dtype=jnp.float32)

    def init(params: Any) -> Any:
        return inner.init(up(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return inner.update(up(updates), state, up(params))

    return optax.GradientTransformation(init, update)


# Matrices and layers ----------------------------------------------------------------------------------------

MATRICES: tree.Rules[Literal["first", "all but last", "second last"] | None] = (
    ("{encoder,decoder}/blocks/**/{query,key,value}/kernel", "first"),
    ("{encoder,decoder}/blocks/mlp/{up,gate}/kernel", "first"),
    ("{encoder,decoder}/blocks/**/out/kernel", "all but last"),
    ("{encoder,decoder}/blocks/mlp/down/kernel", "all but last"),
    ("{encoder,decoder}/blocks/mlp/experts/*/kernel", "second last"),
    ("{encoder,decoder}/blocks/mlp/router/kernel", None),
    ("{encoder,decoder}/blocks/**/{bias,scale,a,b}", None),
    ("{encoder,decoder}/{norm,input_norm,input_projection}/*", None),
    ("lora/**", None),
    ("embed/embedding", None),
    ("{encoder,decoder}/{position,segment,relative}/embedding", None),
    ("heads/**", None),
)
"""Which axes are a product's inputs, for the leaves that are matrices: kernels of blocks, and no adapter."""


def _matrices(params: dict[str, Any]) -> dict[str, optax.contrib.MuonDimensionNumbers | None]:
    """By path, which axes of a leaf, behind those of layers and experts, are a matrix's rows and columns; None for
    no matrix.
    """
    flat = tree.flatten(params)
    return {path: _matrix(flat[path], inputs) for path, inputs in tree.match(MATRICES, flat, "matrix").items()}


def _matrix(leaf: Any, inputs: str | None) -> optax.contrib.MuonDimensionNumbers | None:
    if inputs is None:
        return None
    first = leaf.ndim - 2 if inputs == "second last" else 1
    border = 2 if inputs == "first" else leaf.ndim - 1
    return optax.contrib.MuonDimensionNumbers(tuple(range(first, border)), tuple(range(border, leaf.ndim)))


def _by_matrix(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on leaves of which each kernel of a block is [layers, inputs, outputs], experts before the inputs."""

    def flat(params: dict[str, Any]) -> dict[str, Any]:
        leaves, axes = tree.flatten(params), _matrices(params)
        return tree.unflatten({path: _flattened(leaf, axes[path]) for path, leaf in leaves.items()})

    def init(params: Any) -> Any:
        return inner.init(flat(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new, state = inner.update(flat(updates), state, flat(params))
        return jax.tree.map(lambda n, u: n.reshape(u.shape), new, updates), state

    return optax.GradientTransformation(init, update)


def _flattened(leaf: Array, axes: optax.contrib.MuonDimensionNumbers | None) -> Array:
    if axes is None:
        return leaf
    first, border = axes.reduction_axis[0], axes.output_axis[0]
    return leaf.reshape(*leaf.shape[:first], math.prod(leaf.shape[first:border]), -1)


def _each_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, which keeps no state, on each layer of a stacked leaf by itself."""

    def one(update: Array, param: Array) -> Array:
        return inner.update(update, inner.init(param), param)[0]

    def each(updates: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        held = tree.flatten(params)
        new = {
            path: (jax.vmap(one) if "/blocks/" in path else one)(update, held[path])
            for path, update in tree.flatten(updates).items()
        }
        return tree.unflatten(new)

    return optax.stateless(each)


DEPTHS: tree.Rules[Literal["input", "block", "top"]] = (
    ("embed/embedding", "input"),
    ("{encoder,decoder}/{position,segment,relative}/embedding", "input"),
    ("**/{input_norm,input_projection}/*", "input"),
    ("**/blocks/**", "block"),
    ("{encoder,decoder}/norm/*", "top"),
    ("**/heads/**", "top"),
)
"""Where a parameter stands, an adapter's beside its kernel: before the blocks of a stack, in them, on top of them."""


def _by_depth(decay: float) -> optax.GradientTransformation:
    """Updates times decay ** depth. What stands on top of the blocks has depth 0, the last block 1, the first of L
    blocks L, and what comes before them L + 1 (Bao et al., 2022, whose heads and last block are a step apart).

    An encoder and a decoder count each from its own top, for every decoder layer sees the encoder's; the token
    embedding goes with the deeper. Layers that share their parameters count as one, and those of a stack that is
    frozen whole do not count.
    """

    def scaled(updates: dict[str, Any], params: Any) -> dict[str, Any]:
        flat = tree.flatten(updates)
        places = tree.match(DEPTHS, flat, "depth")
        sizes = {_stack(path): flat[path].shape[0] for path, place in places.items() if place == "block"}

        def factor(path: str) -> Any:
            layers = sizes.get(_stack(path), max(sizes.values(), default=0))
            if places[path] == "block":
                return (decay ** jnp.arange(layers, 0, -1)).reshape(-1, *(1,) * (flat[path].ndim - 1))
            return decay ** (layers + 1) if places[path] == "input" else 1.0

        return tree.unflatten({path: update * factor(path) for path, update in flat.items()})

    return optax.stateless(scaled)


def _stack(path: str) -> str | None:
    return next((name for name in path.split("/") if name in ("encoder", "decoder")), None)


# Rules: the way down, before decay and learning rate ---------------------------------------------------------


def _adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.b1, config.b2, config.eps)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    # Optax's own takes all axes of a leaf but two, and all its layers, for one.
    size = optax.chain(optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
    return _by_matrix(optax.chain(optax.scale_by_factored_rms(), _each_layer(size)))


def _lion(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_lion(config.b1, config.b2)


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.contrib.muon(
        -1.0,  # its own decay spares no bias: so it gives directions alone
        eps=config.eps,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=lambda params: tree.unflatten(_matrices(params)),
        consistent_rms=0.2,
    )


def _sgd(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.trace(config.b1) if config.b1 else optax.identity()


DIRECTIONS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon, "sgd": _sgd}
