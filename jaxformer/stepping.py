"""The compiled step of an experiment, and where its state lies: what a run takes, and what a plan foresees."""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer import distributed, sharding
from jaxformer.experiment import Experiment
from jaxformer.nn.model import Model
from jaxformer.starting import Start
from jaxformer.train.state import TrainState
from jaxformer.train.step import make_step


def train_step(
    e: Experiment, model: Model, optimizer: optax.GradientTransformation, homes: TrainState, mesh: Mesh
) -> Any:
    """The jitted step(state, frozen, batch) of a task that is given its rows; `homes`: where the state lies."""
    step = make_step(e.task.loss(model, train=True), optimizer, seed=e.seed, accumulate=e.accumulate)
    return distributed.begun_together(jax.jit(step, donate_argnums=0, **compiled_as(e, homes, mesh)))


def compiled_as(e: Experiment, homes: TrainState, mesh: Mesh) -> dict[str, Any]:
    """What `jax.jit` is told of a step."""
    return {
        "out_shardings": (homes, NamedSharding(mesh, PartitionSpec())),
        "compiler_options": compiler_options(e),
    }


def compiler_options(experiment: Experiment) -> dict[str, bool] | None:
    """What XLA is asked for beside its defaults."""
    is_asked = experiment.deterministic and jax.default_backend() == "gpu"
    return {"xla_gpu_deterministic_ops": True} if is_asked else None


def abstract_state(start: Start, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes, dtypes and places of the leaves of a run's state; nothing is allocated."""
    opt_state = jax.eval_shape(optimizer.init, start.trained)
    shapes = TrainState(step=jax.ShapeDtypeStruct((), np.int32), params=start.trained, opt_state=opt_state)  # type: ignore[arg-type]
    homes = sharding.like_parameters(start.mesh, shapes, start.trained)
    placed = lambda leaf, home: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home)
    return jax.tree.map(placed, shapes, homes)
