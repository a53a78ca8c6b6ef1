"""Programs in the sandbox: one that runs to its end has passed, and none outlives its time or takes too much."""

import contextlib
import dataclasses
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jaxformer import sandbox
from jaxformer.sandbox import PASSED, Sandbox

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no resource limits on Windows")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc")


@pytest.fixture(scope="module")
def best():
    return sandbox.find(seconds=20.0, megabytes=256)


@pytest.fixture(params=["best", "bare"])
def box(request, best):
    """The best that there is here, and what is there without unshare."""
    return best if request.param == "best" else dataclasses.replace(best, before=(), user=None)


def test_a_program_that_runs_to_its_end_has_passed(box):
    assert box.run(["import math, dataclasses\nx = 6", "assert math.sqrt(x * x) == 6"]) == PASSED


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("assert 1 == 2", "failed: AssertionError"),
        ("def f(:", "failed: SyntaxError"),
        ("import sys; print('passed'); sys.exit()", "failed: SystemExit"),
        ("import os; os.write(1, b'passed'); os._exit(0)", "failed: ended without a word"),
        ("import os; os.kill(os.getpid(), 11); os.abort()", "failed: ended without a word"),
        ("class passed(Exception): pass\nraise passed", "failed: passed"),
    ],
)
def test_no_other_end_counts(box, source, told):
    assert box.run([source]) == told


def test_writing_everywhere_does_not_count(box):
    source = "import os\nfor i in range(3, 60):\n    try: os.write(i, b'passed')\n    except OSError: pass"
    assert box.run([source]).startswith("failed: passed")


def test_a_loop_without_an_end_is_stopped_in_time(box):
    started = time.monotonic()
    for source in ("while True: pass", "import time; time.sleep(99)", "import signal\nsignal.pause()"):
        assert dataclasses.replace(box, seconds=1.0).run([source]) == "out of time"
    assert time.monotonic() - started < 30


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit the address space")
def test_no_program_gets_more_memory_than_its_share(box):
    assert box.run(["x = bytearray(8 << 20)"]) == PASSED
    assert box.run(["x = bytearray(512 << 20)"]) == "failed: MemoryError"


def test_files_and_open_files_are_bounded(box):
    assert box.run(["open('a', 'wb').write(bytes(1000))"]) == PASSED
    assert box.run(["open('a', 'wb').write(bytes(2 << 20))"]) == "failed: OSError"
    assert box.run(["files = [open('/dev/null') for _ in range(100)]"]) == "failed: OSError"
    assert box.run(["import resource as r\nassert r.getrlimit(r.RLIMIT_CORE) == (0, 0)"]) == PASSED


def test_a_program_sees_an_empty_folder_and_nothing_of_our_environment(box, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    source = """
import os
assert sorted(os.environ) == ["HOME", "LC_ALL", "PYTHONHASHSEED", "TMPDIR"], os.environ
assert os.getcwd() == os.path.realpath(os.environ["HOME"]) == os.path.realpath(os.environ["TMPDIR"])
assert os.listdir() == []
open("left", "w").close()
"""
    assert [box.run([source]) for _ in range(2)] == [PASSED] * 2


def test_sets_have_one_order(box):
    assert len({box.run(["raise type(f\"Hash{hash('a') % 10**9}\", (Exception,), {})"]) for _ in range(3)}) == 1


def test_packages_are_out_of_reach(box):
    assert box.run(["import numpy"]) == "failed: ModuleNotFoundError"


FORK = """
import os, time
if os.fork() == 0:
    os.setsid() if ALONE else None
    time.sleep(60)
"""


def left(folder):
    """Processes that work in the folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            found += [link] if str(link.readlink()).startswith(str(folder)) else []
    return found


@pytest.fixture
def folder(monkeypatch):
    """Where the sandbox makes its folders, open to any user."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        monkeypatch.setattr("tempfile.tempdir", name)
        yield Path(name)


@linux
@pytest.mark.parametrize("alone", [False, True])
def test_no_process_stays_behind(box, folder, monkeypatch, alone):
    """Where a fork is permitted at all; one that leaves its group needs unshare to be found."""
    if alone and not box.before:
        pytest.skip("without unshare it stays until it ends")
    monkeypatch.setitem(sandbox.LIMITS, "RLIMIT_NPROC", 10_000)
    source = FORK.replace("ALONE", str(alone))
    assert box.run([source]) == PASSED
    assert dataclasses.replace(box, seconds=2.0).run([source + "os._exit(0)"]).startswith(("failed", "out of time"))
    for _ in range(100):
        if not (found := left(folder)):
            break
        time.sleep(0.02)
    assert found == []


def test_a_program_cannot_become_several(best):
    if any("root" in line for line in best.missing):
        pytest.skip("no number of processes binds root, and no other user can read this Python")
    assert best.run([FORK.replace("ALONE", "False")]) == "failed: BlockingIOError"
    assert best.run(["while True:\n    import os\n    os.fork()"]) == "failed: BlockingIOError"


def test_root_becomes_nobody(best):
    if best.user is None:
        pytest.skip("not root, or no other user can read this Python")
    source = f"import os\nassert os.getresuid() == os.getresgid() == ({sandbox.NOBODY},) * 3 and not os.getgroups()"
    assert best.run([source]) == PASSED
    assert best.run(["import os\nos.setuid(0)"]) == "failed: PermissionError"


def test_the_network_is_out_of_reach_where_unshare_is_permitted(best):
    if not best.before:
        assert any("network" in line for line in best.missing)
        pytest.skip("unshare is not permitted here")
    source = "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = source.replace("PORT", str(server.getsockname()[1]))
        assert best.run([source]) in ("failed: OSError", "failed: ConnectionRefusedError")
        if best.user is None:
            assert dataclasses.replace(best, before=()).run([source]) == PASSED


def test_it_says_where_it_cannot_be(monkeypatch):
    with pytest.raises(RuntimeError, match=r"a trial out of time, with 0\.0 s"):
        sandbox.find(seconds=0.0)
    monkeypatch.setattr("os.name", "nt")
    with pytest.raises(RuntimeError, match="Windows"):
        sandbox.find()


def test_what_is_missing_is_said():
    assert any("unshare" in line for line in Sandbox().missing)
    assert not any("root" in line for line in Sandbox(user=sandbox.NOBODY).missing)
