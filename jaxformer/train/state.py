"""What a training run is made of, as values: its state, and the keys of its random streams."""

from typing import Any

import jax
from flax import struct
from jax import Array

INIT, DROPOUT, ROLLOUT, EVALUATION = 0, 1, 3, 4
"""The random streams. Data draws with numpy, by example (text/)."""


@struct.dataclass
class TrainState:
    """All that a step changes. It holds no key: `stream_key` makes them from the step's number."""

    step: Array
    """int32 []: the number of steps taken."""
    params: Any
    """The trainable parameters, a nest of dicts."""
    opt_state: Any
    """The optimizer's state, with the average of the parameters and the loss scale where there are any."""


def stream_key(seed: int, stream: int, step: Array | int) -> Array:
    """The key of one random stream at one step: the same, however often the run was interrupted."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
