"""One run in many processes: how they find each other, go in turn, and read what is spread over all of them.

They must see one folder of runs, on a disk that they share: process 0 alone writes into it, but for the shards of
checkpoints, which each process writes for itself.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state  # the one way to tell something without a device, for any time
from jax.experimental import multihost_utils

T = TypeVar("T")
LOST = 75
"""Exit code of a process whose others are gone: EX_TEMPFAIL of sysexits.h, "try again"."""
POLL = 1000
"""Milliseconds after which a process that waits looks whether it was interrupted."""
WEEK = 7 * 24 * 3600 * 1000
PIECE = 2**28
"""Bytes of a leaf above which it is gathered layer by layer."""
GONE = re.compile(r"connection (reset|closed|refused)|broken pipe|gloo|nccl|coordination ?service", re.IGNORECASE)
"""What jax's errors speak of where another process does not answer."""
_TURNS = itertools.count()


@dataclass(frozen=True)
class Launch:
    """How a process finds the others of its run; TPU pods, Slurm, Open MPI and Kubernetes tell jax themselves."""

    coordinator: str | None = None
    """HOST:PORT where process 0 listens, on that address alone."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which one this is, from 0 on."""
    heartbeat: int = 100
    """Seconds without a sign of life after which a process counts as dead, and the others stop."""


def join(launch: Launch) -> None:
    """Meet the other processes, where there are any; to be called before jax looks for its devices.

    Raises one ValueError that lists every option that is missing or wrong.
    """
    found = launcher()
    if wrong := problems(launch, found):
        raise ValueError("the processes of a run cannot meet:\n" + "\n".join(f"  - {line}" for line in wrong))
    if launch.processes == 1 or (found is None and launch.coordinator is None):
        return
    is_told = None not in (launch.coordinator, launch.processes, launch.process)
    jax.distributed.initialize(
        launch.coordinator,
        launch.processes,
        launch.process,
        # Beside Slurm and Open MPI jax also finds the process's own GPU; in Kubernetes it would want a package.
        cluster_detection_method="deactivate" if is_told and found in (None, "Kubernetes") else None,
        heartbeat_timeout_seconds=launch.heartbeat,
        # At its end a process waits for the others, which may hang in a collective that it will never join.
        shutdown_timeout_seconds=launch.heartbeat,
        coordinator_bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", launch.coordinator),
    )


def launcher() -> str | None:
    """What started this process as one of several, in a way that jax understands; None where nothing did.

    Known by its environment alone, and only where it names several: a laptop, a notebook in a cluster, or the shell
    of a Slurm job with one task must never wait for processes that nobody starts.
    """
    env = os.environ
    many = lambda name: env.get(name, "1") not in ("0", "1")
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    of_slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"}
    if of_slurm <= env.keys() and many("SLURM_NTASKS"):
        return "Slurm"
    if "OMPI_MCA_orte_hnp_uri" in env and many("OMPI_COMM_WORLD_SIZE"):  # Open MPI before 5
        return "Open MPI"
    if hosts is not None:
        return "TPU" if "," in hosts or many("MEGASCALE_NUM_SLICES") else None
    if env.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in env:  # jax sets the first beside a TPU
        return "TPU"
    return "Kubernetes" if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= env.keys() else None


def problems(launch: Launch, found: str | None) -> list[str]:
    """Every option that is missing or wrong where `found` is the launcher."""
    given = {"coordinator": launch.coordinator, "processes": launch.processes, "process": launch.process}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    wrong = []
    if found is None and 0 < len(missing) < len(given) and launch.processes != 1:
        wrong.append(f"{' and '.join(missing)} missing: nothing here tells of other processes but the options")
    if found == "Kubernetes" and missing and importlib.util.find_spec("kubernetes") is None:
        wrong.append(f"{' and '.join(missing)} missing: jax asks Kubernetes for them with `pip install jax[k8s]`")
    if launch.coordinator is not None and not re.fullmatch(r".+:\d+", launch.coordinator):
        wrong.append(f"--coordinator {launch.coordinator}: expected HOST:PORT")
    if launch.processes is not None and launch.processes < 1:
        wrong.append(f"--processes {launch.processes}: expected at least 1")
    if launch.process is not None and not 0 <= launch.process < (launch.processes or sys.maxsize):
        wrong.append(f"--process {launch.process}: expected a number from 0 on and below --processes")
    if launch.heartbeat < 1:
        wrong.append(f"--heartbeat {launch.heartbeat}: expected at least 1 second")
    return wrong


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return jax.process_index() == 0


def in_turn(work: Callable[[], T]) -> T:
    """work() in process 0, and then in all others, which find done what it left on the disk that they share.

    Where it fails in one process it fails in all: there with its own error, elsewhere with a RuntimeError.
    """
    return _agreed(work, waits=True)


def at_once(work: Callable[[], T]) -> T:
    """work() in all processes at once. It fails as `in_turn` does."""
    return _agreed(work, waits=False)


def from_first(work: Callable[[], T]) -> T:
    """work() in process 0 alone; what it returns, JSON values, is told to all. It fails as `in_turn` does."""
    if is_first():
        return _agreed(work, waits=True, tells=True)
    return _agreed(None, waits=True)


def _agreed(work: Callable[[], Any] | None, waits: bool, tells: bool = False) -> Any:
    """work(), or what process 0 tells, once all processes have come to their end of it.

    `waits`: until process 0 is done.
    """
    if jax.process_count() == 1:
        assert work is not None
        return work()
    service, number, here = _service(), next(_TURNS), jax.process_index()
    turn = f"jaxformer/{number}"
    first: dict[str, Any] = json.loads(_heard(f"{turn}/0")) if waits and here else {}
    result, failure, told = first.get("value"), None, "{}"
    if work is not None and "failure" not in first:
        try:
            result = work()
            told = json.dumps({"value": result} if tells else {})
        except Exception as error:
            failure, told = error, json.dumps({"failure": str(error)})
    service.key_value_set(f"{turn}/{here}", told)
    service.wait_at_barrier(f"{turn}/all", WEEK)
    if is_first():  # all have read what was told before, and steps on policy tell of thousands of rewards
        service.key_value_delete(f"jaxformer/{number - 1}")
    if failure is not None:
        raise failure
    for key, value in sorted(service.key_value_dir_get(turn)):
        if "failure" in (found := json.loads(value)):
            raise RuntimeError(f"process {key.rpartition('/')[2]} failed: {found['failure']}")
    return result


def _heard(key: str) -> str:
    """What a process has set, or will set, under `key`; waits so that a signal can interrupt it."""
    while True:
        try:
            return _service().blocking_key_value_get(key, POLL)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _service() -> Any:
    """Values by key, and barriers, that process 0 keeps for all."""
    return global_state.client


def begun_together(jitted: Any) -> Any:
    """A jitted function that no process calls for the first time before all have compiled it.

    What is called with arguments of other shapes is to be called `together` each time.
    """
    if jax.process_count() == 1:
        return jitted
    begun = False

    def call(*given: Any) -> Any:
        nonlocal begun
        if begun:
            return jitted(*given)
        begun = True
        return together(jitted, *given)

    return call


def together(jitted: Any, *given: Any) -> Any:
    """jitted(*given), which no process begins before all have compiled it, where `given` is spread over several.

    Collectives between CPUs give up where one process comes to them half a minute before another (jax 0.10).
    """
    if is_spread(given):
        at_once(lambda: jitted.lower(*given).compile())
    return jitted(*given)


def is_spread(leaves: Any) -> bool:
    """Whether arrays lie on devices of several processes: then these compute with them together, or not at all."""
    return any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in jax.tree.leaves(leaves))


def read(leaf: Any) -> np.ndarray:
    """The values of an array that may be spread over all processes; then all must read it, at the same place."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    if leaf.nbytes > PIECE and leaf.ndim > 1:
        return np.stack([read(leaf[i]) for i in range(len(leaf))])
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def collected(leaves: Any) -> Any:
    """A tree of arrays, whole in the memory of process 0; elsewhere one of Nones. Never twice on any device."""
    if jax.process_count() == 1:
        return leaves
    keep = lambda leaf: leaf if is_first() else None
    return jax.tree.map(lambda leaf: keep(read(leaf)), leaves)


@contextlib.contextmanager
def all_alive() -> Iterator[None]:
    """Where a collective inside the body fails because another process is gone, say so and end with LOST, at once.

    An ordinary end would wait for the process that is gone.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not GONE.search(str(error)):
            raise
        reason = str(error).splitlines()[0]
        print(  # noqa: T201
            f"jaxformer: process {jax.process_index()} ends, another one does not answer: {reason}\n"
            "start all of them again with the same lines: the run goes on from its last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)
