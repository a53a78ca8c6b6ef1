"""Checkpoints of a run: a folder for each step, either complete or not there.

`<folder>/<step>/` holds `params` and `opt` (arrays by path), `data` and `meta` (JSON), written by orbax, and
checksums of all files. Every process of a run makes the same calls; the first alone compares, moves and deletes.
"""

import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from jaxformer import distributed, tree
from jaxformer.train import checksums
from jaxformer.train.checksums import DamagedError
from jaxformer.train.retention import DAMAGED, DISCARDED, Best, Retention, move
from jaxformer.train.state import TrainState

logger = logging.getLogger(__name__)
Json = Mapping[str, Any]
OPT = "opt"
SILENCED = ("absl", "asyncio")


class SaveError(OSError):
    """A checkpoint could not be written; says which, where and why."""


class Checkpoints:
    """The checkpoints of one folder: saved in the background, restored into any sharding. A context manager.

    Keeps the newest `keep`, each whose step `keep_every` divides, and the best by a metric, such as
    ("loss", "min"). Opening clears what a killed run left half-written. `read_only` changes nothing on disk,
    for a folder that another process may be writing, and raises FileNotFoundError where there is none.

    What is read is compared with its checksums first. Where no step is asked for, the newest good one is taken:
    newer ones that are damaged are moved to `damaged/`, with a warning, or passed over with `read_only`. Nothing
    is moved where no step is good.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 3,
        keep_every: int | None = None,
        best: Best | None = None,
        *,
        read_only: bool = False,
    ) -> None:
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"keep is {keep}, keep_every {keep_every}: make them at least 1, or keep_every None")
        self.folder = Path(folder).resolve()
        if read_only and not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: there is no such folder of checkpoints")
        self._retention = Retention(self.folder, keep, keep_every, best)
        self._read_only = read_only
        self._saving = 0
        self._compared: set[tuple[int, Sequence[str]]] = set()
        self._failure: SaveError | None = None
        self._sweeper = ThreadPoolExecutor(max_workers=1)
        self._silence = _Silence(self.folder)
        try:
            self._manager = self._opened()
        except OSError as error:
            self._silence.end()
            raise SaveError(f"checkpoints cannot be kept in {self.folder}: {error}") from error
        self._sweep()

    def save(self, state: TrainState, data: Json, meta: Json, metrics: Mapping[str, float] | None = None) -> None:
        """Begin to write the checkpoint of `state.step`; the state may be donated as soon as this returns.

        Waits for the save before it. `data` and `meta` are JSON; `metrics` are what `best` chooses by. Raises
        SaveError for a step that is there already, and where this save or the one before it fails.
        """
        self.wait()
        step = int(state.step)
        if self._read_only:  # which orbax forgets when told to save in any case
            raise SaveError(f"step {step} cannot be saved in {self.folder}: it was opened as read_only")
        if step in self._manager.all_steps():
            raise SaveError(f"step {step} is there already in {self.folder}: resume from the newest step")
        self._sweep()
        self._saving = step
        items: dict[str, Any] = {"data": ocp.args.JsonSave(dict(data)), "meta": ocp.args.JsonSave(dict(meta))}
        for name, arrays in _items(state).items():
            flat = _by_path(arrays)
            if flat:  # orbax refuses an item without arrays, as plain gradient descent has
                items[name] = ocp.args.StandardSave(tree.unflatten(flat))
        args = ocp.args.Composite(**items)
        try:
            begun = self._manager.save(step, args=args, metrics=dict(metrics or {}), force=True)
        except Exception as error:
            raise self._failed(error) from error
        if not begun:
            raise self._failed("orbax declined it")

    def check(self) -> None:
        """Raise the SaveError of a save that failed in the background; does not wait for one that goes on."""
        if self._failure is not None or not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written. Raises SaveError where the last save failed, each time."""
        if self._failure is not None:
            raise self._failure
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, rising."""
        self.wait()
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step; None where there is no checkpoint."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the best metric; None where none was measured."""
        return self._retention.best_of(self.steps(), {})

    def restore(
        self, target: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """(state, data, meta) of a step, the newest unless given, bit for bit as saved.

        `target` is such a state, of arrays or jax.ShapeDtypeStruct; each leaf takes the target's sharding.
        Raises FileNotFoundError where there is no such checkpoint and, before any array is read, DamagedError
        where it or, with none asked for, every one is damaged, and a ValueError that lists each path whose shape
        or dtype differs from the target's.
        """
        step = self._good(step)
        targets = _items(target)
        self._compare(step, targets, ("shape", "dtype"))
        restored = {name: self._read(step, name, arrays) for name, arrays in targets.items()}
        number = jax.device_put(np.int32(step), _abstract(target.step).sharding)
        state = TrainState(step=number, params=restored["params"], opt_state=restored[OPT])
        return state, self._read_json(step, "data"), self._read_json(step, "meta")

    def restore_params(self, target: Any | None = None, step: int | None = None) -> Any:
        """The parameters alone, in the target's dtypes and shardings; without one as saved, on one device."""
        step = self._good(step, without=(OPT,))
        if target is None:
            target = tree.unflatten(self._found(step, "params"))
        self._compare(step, {"params": target}, ("shape",))
        return self._read(step, "params", target)

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """What was saved as `meta`; needs to know nothing of the run."""
        return self._read_json(self._good(step, without=(OPT,)), "meta")

    def close(self) -> None:
        """Wait, and end the threads. Raises SaveError where the last save failed."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._sweep()
            self._sweeper.shutdown()
            if self._failure is None:  # else some of its writes are still on their way, and what they will say
                self._silence.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except SaveError as failed:
            # Else it is on its way already, or what went wrong before it matters more; but a full disk may be met
            # by another file first, and then the error that says what is lost is this one.
            if error is None or (isinstance(error, OSError) and not isinstance(error, SaveError)):
                raise failed from error

    def _opened(self) -> ocp.CheckpointManager:
        # Lightweight: else a single damaged file of metrics keeps all from being opened.
        common: dict[str, Any] = {"lightweight_initialize": True}
        if self._read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, **common)
            return ocp.CheckpointManager(self.folder, options=options)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._retention,
            best_fn=lambda metrics: 0.0,  # never asked, but without it orbax writes no metrics
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(
                # Else, where a folder cannot be made, orbax's threads wait minutes for it, and so does the exit.
                create_directories_asynchronously=False,
                post_finalization_callback=self._seal,
            ),
            # A kill amid orbax's own deletion leaves a step that looks complete; a renaming is atomic.
            todelete_subdir=DISCARDED,
            **common,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _seal(self) -> None:
        """Called by orbax in the thread that saves, when all processes are done, before the folder gets its name.

        So no step is ever complete without its checksums, and a failure here is one of the save.
        """
        (part,) = self.folder.glob(f"{self._saving}.*tmp*")
        checksums.write(part)

    def _sweep(self) -> None:
        """Begin to delete what orbax set aside: beside the run, for it takes longer than to begin a save."""
        if not self._read_only and distributed.is_first():
            for step in (self.folder / DISCARDED).glob("*"):
                self._sweeper.submit(shutil.rmtree, step, ignore_errors=True)

    def _failed(self, reason: Exception | str) -> SaveError:
        try:
            free = f" ({shutil.disk_usage(self.folder).free / 2**20:,.0f} MiB are free on that disk)"
        except OSError:
            free = ""
        of_system = re.search(r"os_error_code='(\d+)'", str(reason))  # in the midst of tensorstore's long tale
        short = os.strerror(int(of_system[1])) if of_system else reason
        self._failure = SaveError(f"step {self._saving} cannot be saved in {self.folder}{free}: {short}")
        return self._failure

    def _good(self, step: int | None, without: Sequence[str] = ()) -> int:
        """The step, or the newest, whose items but those `without` are as they were written."""
        steps = self.steps()
        if not steps or step not in (None, *steps):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{wanted} in {self.folder}; there are {steps or 'none'}")
        candidates = steps[::-1] if step is None else [step]
        good = distributed.from_first(lambda: self._first_good(candidates, without))  # all must read the same one
        if good != candidates[0] and not self._read_only:
            self._manager.close()
            self._manager = self._opened()  # its `reload` reads metrics, which may be damaged
        return good

    def _first_good(self, candidates: Sequence[int], without: Sequence[str]) -> int:
        """The first that is good; those before it are moved away. Raises DamagedError where none is."""
        damaged: dict[Path, list[str]] = {}
        for step in candidates:
            folder = self.folder / str(step)
            if (step, without) not in self._compared and (wrong := checksums.damages(folder, without)):
                if folder.exists():  # else the run that we look into has no more use for it
                    damaged[folder] = wrong
                continue
            self._compared.add((step, without))
            for folder, wrong in damaged.items():
                self._pass_over(folder, wrong, step)
            return step
        raise DamagedError(damaged or {self.folder: ["its checkpoints were deleted while they were read"]})

    def _pass_over(self, folder: Path, wrong: Sequence[str], good: int) -> None:
        moved = "" if self._read_only else f"\nit was moved to {move(folder, DAMAGED)}"
        logger.warning("%s%s\nthe one of step %d is taken instead", checksums.describe(folder, wrong), moved, good)

    def _found(self, step: int, item: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes by path, from the item's metadata; nothing for an item that was empty."""
        folder = self._manager.directory / str(step) / item
        if not folder.exists():
            return {}
        found = tree.flatten(ocp.PyTreeCheckpointHandler().metadata(folder).tree)
        return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in found.items()}

    def _compare(self, step: int, targets: Mapping[str, Any], aspects: Sequence[str]) -> None:
        """Raise one ValueError with every difference; orbax's own error for one is pages long."""
        wrong = []
        for item, target in targets.items():
            wanted, found = _by_path(target), self._found(step, item)
            for path in sorted(wanted.keys() | found.keys()):
                want, have = wanted.get(path), found.get(path)
                if want is None or have is None or any(getattr(want, a) != getattr(have, a) for a in aspects):
                    wrong.append(f"{item}/{path}: expected {_kind(want)}, found {_kind(have)}")
        if wrong:
            raise ValueError(
                f"the checkpoint of step {step} in {self.folder} is of another model or optimizer:\n"
                + "\n".join(f"  - {line}" for line in wrong)
            )

    def _read(self, step: int, item: str, target: Any) -> Any:
        wanted = {path: _abstract(leaf) for path, leaf in _by_path(target).items()}
        if not wanted:
            return target
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(tree.unflatten(wanted))})
        flat = tree.flatten(self._manager.restore(step, args=args)[item])
        return jax.tree.unflatten(jax.tree.structure(target), [flat[path] for path in wanted])

    def _read_json(self, step: int, item: str) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]


class _Silence(logging.Filter):
    """Drops what orbax, and asyncio and tensorstore for it, print of a save: what matters is raised to the user."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = str(folder)
        self.hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        for name in SILENCED:
            logging.getLogger(name).addFilter(self)

    def end(self) -> None:
        for name in SILENCED:
            logging.getLogger(name).removeFilter(self)
        if sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self.hook

    def filter(self, record: logging.LogRecord) -> bool:
        frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else []
        of_orbax = any("orbax" in Path(name).parts for name in (record.pathname, *(f.filename for f in frames)))
        return not of_orbax and self.folder not in record.getMessage()  # asyncio tells of a write by its error alone

    def _unraisable(self, found: "sys.UnraisableHookArgs") -> None:
        # Where one write fails, orbax closes its loop, and each of the others that ends later would tell of that.
        if str(found.exc_value) != "Event loop is closed":
            self.hook(found)


def _items(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, OPT: state.opt_state}


def _by_path(arrays: Any) -> dict[str, Any]:
    """{"a/b/c": leaf} of any pytree, in the order of its leaves.

    Named tuples become plain names, and nodes without leaves (optax has many) leave no trace: so the files
    need no class of any library's version.
    """
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _kind(leaf: Any | None) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
