"""Programs that a model wrote, each run apart from all else and for a limited time: a seat belt, not a jail.

It guards against accidents: a loop without an end, memory without a bound, a process that stays, a file that is
deleted by mistake, a test that seems passed because the program ended early. It is no defence against a program that
means harm: that one could look into its own interpreter for what says "passed", read every file that its user may
read, and try what the system leaves open. Run what you do not trust in a container that holds nothing of worth.
"""

import contextlib
import itertools
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

PASSED = "passed"
NOBODY = 65534
"""The user that programs run as where ours is root, whom most limits do not bind."""
LIMITS = {"RLIMIT_FSIZE": 1 << 20, "RLIMIT_NOFILE": 64, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
"""Bytes of a file, open files, further processes or threads, bytes of a core dump."""
APART = ("--net", "--ipc", "--pid", "--fork", "--kill-child")
"""Options of unshare: no network, and processes of one's own, which end with the first of them."""

CHILD = """
import json, os, resource, sys

def main(job):
    told = os.dup(1)
    os.dup2(2, 0)
    os.dup2(2, 1)
    for name, most in job["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    if job["user"] is not None:
        os.setgroups([])
        os.setgid(job["user"])
        os.setuid(job["user"])
    try:
        names = {"__name__": "__main__"}
        for source in job["sources"]:
            exec(compile(source, "<program>", "exec"), names)
        answer = job["token"]
    except BaseException as error:
        answer = type(error).__name__
    os.write(told, answer.encode()[:200])
    os._exit(0)

main(json.load(sys.stdin))
"""
"""What the child process does: it reads a job, gives up what it may not have, runs the sources, and tells the end."""


@dataclass(frozen=True)
class Sandbox:
    """How programs are run: each a fresh interpreter with the standard library alone, in an empty temporary folder
    that is its home, with an empty environment, in a process group that is killed as a whole.
    """

    seconds: float = 10.0
    """Until a program is stopped."""
    megabytes: int = 1024
    """Memory that a program may ask for (address space; not limited on macOS)."""
    before: tuple[str, ...] = ()
    """The command that runs the interpreter: unshare with options, or nothing."""
    user: int | None = None
    """The user that a program becomes; None: it stays the one that it was started by."""

    @property
    def missing(self) -> list[str]:
        """What this sandbox does not keep programs from, in words."""
        found = [] if self.before else ["network and other processes are in reach (unshare is not permitted here)"]
        if os.getuid() == 0 and self.user is None:
            found.append("programs run as root (no other user can read this Python)")
        return found

    def run(self, sources: Sequence[str]) -> str:
        """Run the sources one after the other in one namespace; "passed", or what went wrong.

        A program has passed where the last source was run to its end, which the child tells by a random token: what
        the program prints, and the code that it exits with, count for nothing. Equal sources meet the same order of
        sets: the hash seed is fixed.
        """
        token = secrets.token_hex(16)
        limits = LIMITS | {"RLIMIT_CPU": int(self.seconds) + 1, "RLIMIT_AS": self.megabytes << 20}
        if sys.platform == "darwin":
            del limits["RLIMIT_AS"]
        job = {"sources": list(sources), "token": token, "user": self.user, "limits": limits}
        command = [*self.before, sys.executable, "-sSPB", "-c", CHILD]
        with (
            tempfile.TemporaryDirectory(prefix="jaxformer-", ignore_cleanup_errors=True) as folder,
            tempfile.TemporaryFile() as given,
        ):
            if self.user is not None:
                os.chown(folder, self.user, self.user)
            given.write(json.dumps(job).encode())
            given.seek(0)
            own = {"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
            with subprocess.Popen(
                command,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=own,
                start_new_session=True,
            ) as child:
                said = _first_words(child, self.seconds)
        if said is None:
            return "out of time"
        return PASSED if said == token else f"failed: {said or 'ended without a word'}"


def find(seconds: float = Sandbox.seconds, megabytes: int = Sandbox.megabytes) -> Sandbox:
    """The sandbox with the most walls that this machine lets us have: the first in which a trial program passes.

    Raises RuntimeError where there is none, as on Windows.
    """
    if os.name != "posix":
        raise RuntimeError("programs cannot be run here: there are no resource limits (Windows is not supported)")
    root, unshare = os.getuid() == 0, shutil.which("unshare")
    walls: list[tuple[str, ...]] = [()]
    if unshare is not None:
        own = (unshare, *([] if root else ["--user", "--map-root-user"]), *APART)
        walls = [(*own, "--mount-proc"), own, ()]
    for before, user in itertools.product(walls, [NOBODY, None] if root else [None]):
        found = Sandbox(seconds, megabytes, before, user)
        result = found.run(["import hashlib, math, re, typing"])
        if result == PASSED:
            return found
    raise RuntimeError(f"programs cannot be run here: a trial {result}, with {seconds} s and {megabytes} MB")


def _first_words(child: subprocess.Popen[bytes], seconds: float) -> str | None:
    """What a child wrote when it first wrote or ended; None after `seconds`. Its process group is killed."""
    assert child.stdout is not None
    try:
        poll = select.poll()
        poll.register(child.stdout, select.POLLIN)
        ready = poll.poll(1000 * seconds)
    finally:  # it is not waited for before: its number could be another's by then
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    return os.read(child.stdout.fileno(), 200).decode(errors="replace") if ready else None
