"""Kill one process of a run, and see how long the others go on: it must not be much longer than the heartbeat.

    python benchmarks/processes.py --kills 5 --heartbeats 10 20

Each run has two processes on this machine, each with two CPU devices, over loopback and gloo. Process 1 is killed, in
every second run process 0, at a random step. Writes results/processes.md. tests/invariants/test_processes.py
starts its processes with this file's tools; what they train is the experiment of kill.py.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

RESULTS = Path(__file__).parent / "results"
CONFIG = Path(__file__).with_name("kill.py")
PATIENCE = 300.0  # seconds after which something hangs
TRAIN = (sys.executable, "-W", "error", "-m", "jaxformer", "train")


class Job:
    """`jaxformer train` on kill.py in several processes of this machine; `folder` is where its run's folder is made.

    `devices`: CPU devices of each process. `told(process, processes, port)`: environment variables in place of the
    options that tell where the others are. `each(process)`: options of one process. `program` is what runs in place
    of `jaxformer train`, `more` its environment beside ours.
    """

    def __init__(
        self,
        folder: Path,
        processes: int,
        *options: str,
        devices: int = 2,
        heartbeat: int = 10,
        told: Callable[[int, int, int], Mapping[str, str]] | None = None,
        program: Sequence[str] = TRAIN,
        each: Callable[[int], Sequence[str]] = lambda i: (),
        **more: str,
    ) -> None:
        self.run = folder / "killed"
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / f"output-{i}.txt" for i in range(processes)]
        self.events = self._events()
        port = free_port()
        flags = f"--xla_force_host_platform_device_count={devices}"
        shared = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parents[1])} | more
        command = [*program, str(CONFIG), "--folder", str(folder), "--mesh.data", "1", "--mesh.fsdp", "-1"]
        command += ["--heartbeat", str(heartbeat), *options]
        self.processes = []
        for i, output in enumerate(self.outputs):
            where = [] if told else ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes)]
            where += [] if told else ["--process", str(i)]
            environment = shared | (dict(told(i, processes, port)) if told else {})
            with output.open("a") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *where, *each(i)], stdout=file, stderr=subprocess.STDOUT, env=environment
                    )
                )

    def wait_until(self, moment: Callable[[], bool]) -> None:
        """Raises RuntimeError where a process ends before the moment, TimeoutError where it does not come."""
        end = time.monotonic() + PATIENCE
        while not moment():
            if any(process.poll() is not None for process in self.processes):
                self.stop()
                raise RuntimeError(f"the run ended before its moment:\n{self.text()}")
            if time.monotonic() > end:
                self.stop()
                raise TimeoutError(f"the run hangs:\n{self.text()}")
            time.sleep(0.005)

    def signal(self, process: int, number: int) -> None:
        self.processes[process].send_signal(number)

    def codes(self) -> list[int]:
        """The exit codes; waits for all."""
        end = time.monotonic() + PATIENCE
        try:
            return [process.wait(end - time.monotonic()) for process in self.processes]
        except subprocess.TimeoutExpired:
            self.stop()
            raise TimeoutError(f"the run hangs:\n{self.text()}") from None

    def finish(self) -> None:
        """Wait for the end, which must be a good one."""
        if any(codes := self.codes()):
            raise RuntimeError(f"the run failed with {codes}:\n{self.text()}")

    def stop(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def text(self) -> str:
        """What the processes, and earlier ones in this folder, have printed."""
        return "".join(f"--- {output.name}\n{output.read_text()}" for output in self.outputs)

    # Moments.

    def saved(self) -> int:
        """The newest complete checkpoint, 0 where there is none."""
        return max((int(p.name) for p in self.run.glob("checkpoints/*") if p.name.isdigit()), default=0)

    def is_stepping(self) -> bool:
        """A step of these very processes is done: process 0 opens TensorBoard events of its own each time."""
        return self._events() > self.events

    def _events(self) -> int:
        return len(list(self.run.glob("tensorboard/*")))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def seconds_after_kill(folder: Path, victim: int, heartbeat: int, steps: float) -> tuple[float, int]:
    """(how long the other process goes on, its exit code)."""
    job = Job(folder, 2, heartbeat=heartbeat)
    job.wait_until(job.is_stepping)
    time.sleep(steps)
    job.signal(victim, signal.SIGKILL)
    start = time.monotonic()
    codes = job.codes()
    return time.monotonic() - start, codes[1 - victim]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--heartbeats", type=int, nargs="+", default=[10])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, rows = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(place) / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        for heartbeat in options.heartbeats:
            for victim in (1, 0):
                found = []
                for kill in range(options.kills):
                    folder = Path(place) / f"{heartbeat}-{victim}-{kill}"
                    found.append(seconds_after_kill(folder, victim, heartbeat, rng.uniform(0, 1)))
                    print(f"heartbeat {heartbeat}, process {victim} killed: {found[-1]}", flush=True)
                seconds, codes = zip(*found, strict=True)
                shown = ", ".join(f"{code} ({codes.count(code)})" for code in sorted(set(codes)))
                spread = f"{min(seconds):.1f} / {statistics.median(seconds):.1f} / {max(seconds):.1f}"
                rows.append(f"| {heartbeat} | {victim} | {len(found)} | {spread} | {shown} |")
    command = f"`{' '.join(['python', 'benchmarks/processes.py', *sys.argv[1:]])}`"
    head = "| heartbeat, s | killed | times | the other goes on, s: least / median / most | its exit codes |"
    text = f"# Killed processes\n\n{command}, jax {jax.__version__}, {os.cpu_count()} cores\n\n{head}\n"
    text += "\n".join(["|---|---|---|---|---|", *rows, ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "processes.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
