"""The folder of a run: held by one process at a time, and belonging to one experiment."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jaxformer import distributed, tree
from jaxformer.text.files import read_json, write_file

VERSION = 1


class RunFolder:
    """`folder` with its lock, while the context lasts. Of the processes of one run the first holds it for all.

    Raises RuntimeError where another live run holds it; the lock of a process that died counts for nothing.
    """

    def __init__(self, folder: str | Path, *, fresh: bool = False) -> None:
        self.path = Path(folder).resolve()
        self.fresh = fresh

    def __enter__(self) -> Self:
        if not distributed.is_first():
            return self
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("a+")
        try:
            self._take()
            if self.fresh:
                self._clear()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if distributed.is_first():
            self._lock.close()

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            raise RuntimeError(
                f"{self.path} is in use by process {holder}: wait for it, stop it, or give this run another --name"
            ) from None
        except OSError as error:  # a mounted drive without locks
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _clear(self) -> None:
        entries = [entry for entry in self.path.iterdir() if entry.name != "lock"]
        if entries and not (self.path / "experiment.json").exists():
            raise ValueError(
                f"{self.path} is no run's folder: it has no experiment.json, and nothing of it is deleted"
            )
        for entry in sorted(entries, key=lambda entry: entry.name == "experiment.json"):  # last: a kill may come
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def claim(self, experiment: Mapping[str, Any], changeable: Sequence[str]) -> list[str]:
        """Enter `experiment` (JSON values) as the folder's own; return what it changes of the one that was there.

        To be called in the first process before all others, whose experiment must be the same.

        Only what a pattern of `changeable` describes may change; anything else raises a ValueError that lists the
        differences and the ways out.
        """
        file = self.path / "experiment.json"
        entered = {"version": VERSION, "experiment": experiment}
        changes: list[str] = []
        if file.exists():
            before = read_json(file)
            if before.get("version") != VERSION:
                raise ValueError(f"{file} has version {before.get('version')}, this program writes {VERSION}")
            old, new = _leaves(before["experiment"]), _leaves(experiment)
            changed = [path for path in sorted(old | new) if old.get(path) != new.get(path)]
            lines = {path: f"{path.replace('/', '.')}: {old.get(path)} -> {new.get(path)}" for path in changed}
            wrong = [p for p in changed if not any(tree.matches(pattern, p) for pattern in changeable)]
            if changed and not distributed.is_first():
                listed = "\n".join(f"  - {line}" for line in lines.values())
                raise ValueError(f"this process was given another experiment than process 0:\n{listed}")
            if wrong:
                raise ValueError(
                    f"{self.path} belongs to another experiment:\n"
                    + "\n".join(f"  - {lines[path]}" for path in wrong)
                    + "\ngive this one another --name, or start over with --fresh, which deletes that run"
                )
            changes = [lines[path] for path in changed]
        if changes or not file.exists():
            write_file(file, json.dumps(entered, indent=1, sort_keys=True).encode())
        return changes


def _leaves(value: Any) -> dict[str, Any]:
    """{"a/b/0": leaf} of JSON values."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)  # type: ignore[assignment]
    else:
        return {"": value}
    return {f"{key}/{path}".rstrip("/"): leaf for key, item in items for path, leaf in _leaves(item).items()}
