"""Kill one process of a run, freeze it, or ask it to stop, and see how long the others go on.

    python benchmarks/processes.py --times 3 --heartbeats 10

Each run has two processes on this machine, each with two CPU devices, over loopback and gloo; one of them is sent a
signal up to a second after its first step. Writes results/processes.md. tests/invariants/test_processes.py starts
its processes with this file's tools; what they train is the experiment of kill.py.
"""

import argparse
import contextlib
import itertools
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
    of `jaxformer train`, `config` in place of kill.py; `more` is its environment beside ours.
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
        config: Path = CONFIG,
        **more: str,
    ) -> None:
        self.run = folder / "killed"
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / f"output-{i}.txt" for i in range(processes)]
        self.events = self._events()
        port = free_port()
        flags = f"--xla_force_host_platform_device_count={devices}"
        shared = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parents[1])} | more
        command = [*program, str(config), "--folder", str(folder), "--mesh.data", "1", "--mesh.fsdp", "-1"]
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


def after(folder: Path, number: int, victim: int, heartbeat: int, wait: float) -> tuple[float, int]:
    """(how many seconds the other process goes on after a signal to the victim, its exit code)."""
    job = Job(folder, 2, "--steps", "400", heartbeat=heartbeat)
    job.wait_until(job.is_stepping)
    time.sleep(wait)
    job.signal(victim, number)
    start = time.monotonic()
    code = job.processes[1 - victim].wait(PATIENCE)
    seconds = time.monotonic() - start
    job.stop()  # the victim, where it is frozen
    return seconds, code


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--heartbeats", type=int, nargs="+", default=[10])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, rows = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(place) / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        names = ("SIGKILL", "SIGSTOP", "SIGTERM")  # dead, frozen, asked to stop
        for heartbeat, name, victim in itertools.product(options.heartbeats, names, (1, 0)):
            found = []
            for turn in range(options.times):
                folder = Path(place) / f"{heartbeat}-{name}-{victim}-{turn}"
                found.append(after(folder, getattr(signal, name), victim, heartbeat, rng.uniform(0, 1)))
                print(f"heartbeat {heartbeat}, {name} to process {victim}: {found[-1]}", flush=True)
            seconds, codes = zip(*found, strict=True)
            shown = ", ".join(f"{code} ({codes.count(code)})" for code in sorted(set(codes)))
            spread = f"{min(seconds):.1f} / {statistics.median(seconds):.1f} / {max(seconds):.1f}"
            rows.append(f"| {heartbeat} | {name} to process {victim} | {len(found)} | {spread} | {shown} |")
    command = f"`{' '.join(['python', 'benchmarks/processes.py', *sys.argv[1:]])}`"
    head = "| heartbeat, s | signal | times | the other goes on, s: least / median / most | its exit codes |"
    text = (
        f"# Signals to one of two processes\n\n{command}, jax {jax.__version__}, {os.cpu_count()} cores\n\n{head}\n"
    )
    text += "\n".join(["|---|---|---|---|---|", *rows, ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "processes.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
