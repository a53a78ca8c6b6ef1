import contextlib
import json
import os
import socket

import pytest

from jaxformer.train import heartbeat
from jaxformer.train.heartbeat import ACTIVITIES, Heartbeat, Stopwatch, goodput


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is turned."""
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])

    def turn(seconds):
        now[0] += seconds

    return turn


def said(folder):
    return json.loads((folder / "heartbeat.json").read_text())


def test_each_moment_counts_for_what_is_done_innermost(clock):
    watch = Stopwatch(since=90.0)
    clock(1)
    with watch.during("steps"):
        clock(10)
        with watch.during("data"):
            clock(2)
        with contextlib.suppress(OSError), watch.during("saves"):
            clock(3)
            raise OSError
        clock(20)
    clock(5)
    spent = {name: seconds for name, seconds in watch.read().items() if seconds}
    assert spent == {"steps": 30.0, "data": 2.0, "saves": 3.0, "other": 16.0}
    watch.lose(10.0)
    assert (watch.seconds["steps"], watch.seconds["lost"]) == (20.0, 10.0)
    watch.lose(1000.0)
    assert (watch.seconds["steps"], watch.seconds["lost"]) == (0.0, 30.0)


def test_shares_are_of_all_the_time_and_parts_are_of_the_steps():
    seconds = dict.fromkeys(ACTIVITIES, 0.0) | {"steps": 60.0, "compile": 30.0, "lost": 10.0}
    assert goodput(seconds, {}) == {"steps": 0.6, "compile": 0.3, "lost": 0.1}
    parts = {"rollout": 0.5, "reward": 0.0, "learning": 0.5}
    assert goodput(seconds, parts) == goodput(seconds, {}) | {"rollout": 0.3, "reward": 0.0, "learning": 0.3}


def test_a_beat_is_written_now_and_then_and_when_something_longer_begins(clock, tmp_path):
    pulse = Heartbeat(tmp_path)
    assert not (tmp_path / "heartbeat.json").exists()  # a finished run that is looked at stays as it is
    with pulse.during("steps"):
        pulse.beat(1)
        assert said(tmp_path)["step"] == 1
        clock(0.5 * heartbeat.SECONDS)
        pulse.beat(2)
        assert said(tmp_path)["step"] == 1
        clock(0.5 * heartbeat.SECONDS)
        pulse.beat(3)
        assert said(tmp_path) | {"time": 0} == {
            "step": 3,
            "doing": "steps",
            "time": 0,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "seconds": pulse.seconds,
        }
        pulse.beat(4)
        with pulse.during("data"):
            assert said(tmp_path)["step"] == 3
        with pulse.during("saves"):
            assert (said(tmp_path)["step"], said(tmp_path)["doing"]) == (4, "saves")
    pulse.write("finished")
    assert said(tmp_path)["doing"] == "finished"
    assert [entry.name for entry in tmp_path.iterdir()] == ["heartbeat.json"]


def test_the_next_process_goes_on_counting_and_half_a_file_counts_for_nothing(clock, tmp_path):
    first = Heartbeat(tmp_path)
    with first.during("steps"):
        clock(7)
        first.write()
    clock(50)
    second = Heartbeat(tmp_path)
    with second.during("steps"):
        clock(1)
    assert second.read()["steps"] == 8.0
    assert second.read()["other"] == 0.0
    for damage in ("", "{", "[]", '{"seconds": 3}', '{"step": 1}'):
        (tmp_path / "heartbeat.json").write_text(damage)
        assert sum(Heartbeat(tmp_path).read().values()) == 0.0


def test_a_silent_one_and_a_full_disk_write_nothing(tmp_path, monkeypatch):
    Heartbeat(tmp_path, silent=True).write()
    assert not list(tmp_path.iterdir())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(heartbeat, "write_file", full)
    Heartbeat(tmp_path).write()
