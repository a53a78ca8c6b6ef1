"""The devices that a plan is for: a slice that is not here, so many CPU devices, or those of this machine."""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from jaxformer import machine
from jaxformer.plan.chips import CHIPS, GPUS, SLICES, Chip

KNOWN = (
    ", ".join(f"{chip}:{shapes[0]} to {chip}:{shapes[-1]}" for chip, shapes in SLICES.items())
    + ", cpu:8 (or another number of devices), local"
)
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server what machine this is
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a second process beside this one would die on a lock
}
"""What libtpu reads when it is loaded, to be a compiler alone."""


@dataclass(frozen=True)
class Target:
    """Devices to compile for."""

    name: str
    platform: str
    devices: Sequence[Any]
    chip: Chip | None
    """None where nothing is known of how fast it is."""
    memory: float | None
    """Bytes of each device that a program may use; None where jax does not say."""


def ready(name: str) -> None:
    """Make this process able to compile for `name`, before jax starts its devices. Raises ValueError for no target.

    Where they are started already, what is there is used.
    """
    kind, _, shape = name.partition(":")
    if name == "local":
        return
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
        if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            with contextlib.suppress(RuntimeError):  # started already
                jax.config.update("jax_num_cpu_devices", int(shape))
    elif kind in SLICES and re.fullmatch(r"\d+(x\d+)+", shape):
        if importlib.util.find_spec("libtpu") is None:
            raise ModuleNotFoundError(
                f"{name}: the TPU compiler is not installed (no TPU is needed to run it): "
                'pip install "jaxformer[tpu]"'
            )
        for variable, value in QUIET.items():
            os.environ.setdefault(variable, value)
    else:
        raise ValueError(f"{name!r}: no such topology; there are {KNOWN}")
    jax.config.update("jax_platforms", "cpu")  # a compiler needs no device


def find(name: str) -> Target:
    """The devices of this name. Raises ValueError for a slice that cannot be, naming some that can."""
    ready(name)
    kind, _, shape = name.partition(":")
    if kind in CHIPS:
        return Target(name, "tpu", _slice(kind, shape), CHIPS[kind], CHIPS[kind].memory)
    devices = jax.devices()
    if kind == "cpu":
        if len(devices) < int(shape):
            raise ValueError(f"{name}: jax has started with {len(devices)} devices; ask a new process")
        devices = devices[: int(shape)]
    return Target(name, devices[0].platform, devices, _known(devices[0]), _memory(devices))


def _slice(kind: str, shape: str) -> Sequence[Any]:
    given = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(map(int, shape.split("x"))) == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **given)
    except jax.errors.JaxRuntimeError as error:
        listed = ", ".join(f"{kind}:{each}" for each in SLICES[kind])
        raise ValueError(f"{kind}:{shape}: no such slice; there are {listed}. libtpu says: {error}") from None
    return found.devices


def _known(device: Any) -> Chip | None:
    return next((chip for chip in (*CHIPS.values(), *GPUS) if chip.kind == device.device_kind), None)


def _memory(devices: Sequence[Any]) -> float | None:
    """What each device may use; CPU devices share the host's memory."""
    if devices[0].platform == "cpu":
        return machine.memory()[1] / len(devices) or None
    return (devices[0].memory_stats() or {}).get("bytes_limit")
