"""The TensorBoard events of a run, written where they are told of.

tensorboardX's own SummaryWriter hands them to a thread by a queue between processes. Where a write fails there, as on
a full disk, the thread is dead, the next ten values fill the queue, and the one after them waits for ever.
"""

import socket
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

SECONDS = 10.0
"""From one flush to the next."""


class Events:
    """One new file of events in `folder`, for the steps from `first` on: TensorBoard hides what others say of those.

    Raises the OSError of a write that fails: from any of its methods, for what is told of is buffered.
    """

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The name holds the second; one that began within the same second at the same step is hidden anyway
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{first}"
        self._file = RecordWriter(str(folder / name))
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
        self._flushed = time.monotonic()

    def add(self, step: int, name: str, value: float) -> None:
        """A number for the curve of that name."""
        self._write(Event(step=step, summary=scalar(name, value)))
        if time.monotonic() > self._flushed + SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())
