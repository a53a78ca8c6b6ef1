import json
import math
import os
import struct
import threading

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxformer.train import metrics
from jaxformer.train.metrics import MetricsLog, read_metrics, shares


def fill(log, steps, first=1):
    for step in range(first, first + steps):
        values = {"loss": 9.0 / step, "learning_rate": 1e-3, "gradient_norm": 1.0 + step % 3}
        log.write(step, values, {"tokens_per_second": 1000.0 + step})
        if step % 4 == 0:
            log.write(step, {"held_out/loss": 9.1 / step}, {})


def logged(folder, steps):
    with MetricsLog(folder) as log:
        fill(log, steps)


def scalars(folder):
    """{tag: {step: value}} of the TensorBoard events, as TensorBoard shows them: what is purged is gone."""
    seen = {}
    for path in sorted(folder.glob("tensorboard/*"), key=lambda path: int(path.suffix[1:])):
        rest = path.read_bytes()
        while rest:
            (size,) = struct.unpack("<Q", rest[:8])
            event = Event.FromString(rest[12 : 12 + size])
            rest = rest[16 + size :]
            if event.session_log.status == SessionLog.START:
                seen = {tag: {s: v for s, v in found.items() if s < event.step} for tag, found in seen.items()}
            for value in event.summary.value:
                seen.setdefault(value.tag, {})[event.step] = value.simple_value
    return seen


def test_floats_come_back_to_the_last_bit(tmp_path):
    draw = np.random.default_rng(0)
    numbers = [*draw.normal(size=50) * 10.0 ** draw.integers(-300, 300, size=50), 0.1, 5e-324, math.inf]
    with MetricsLog(tmp_path) as log:
        for step, number in enumerate(numbers):
            log.write(step, {"loss": number, "half": np.float32(number * 1e-300)}, {})
    for line, number in zip(read_metrics(tmp_path), numbers, strict=True):
        assert line["values"]["loss"] == number
        assert np.float32(line["values"]["half"]) == np.float32(number * 1e-300)


def test_each_line_is_on_the_disk_when_write_returns(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in range(3):
            log.write(step, {"loss": 1.5}, {"seconds": 0.1})
            assert [line["step"] for line in read_metrics(tmp_path)] == list(range(step + 1))
            assert [*log.lines()][-1] == {"step": step, "values": {"loss": 1.5}, "time": {"seconds": 0.1}}


def test_a_resumed_log_is_that_of_a_run_never_interrupted(tmp_path):
    logged(tmp_path / "whole", 10)
    logged(tmp_path / "cut", 7)
    path = tmp_path / "cut" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 8, "values": {"lo')
    with MetricsLog(tmp_path / "cut") as log:
        log.truncate(5)
        fill(log, 5, first=6)
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert {entry.name for entry in (tmp_path / "cut").iterdir()} == {"metrics.jsonl", "tensorboard"}


@pytest.mark.parametrize("step", [0, 3, 100])
def test_truncating_keeps_what_is_up_to_the_step(tmp_path, step):
    logged(tmp_path, 5)
    with MetricsLog(tmp_path) as log:
        log.truncate(step)
        assert {line["step"] for line in log.lines()} == set(range(1, min(step, 5) + 1))
        log.write(step + 1, {"loss": 0.0}, {})
        assert [*log.lines()][-1]["step"] == step + 1


def test_truncating_a_log_that_is_not_there_is_fine(tmp_path):
    with MetricsLog(tmp_path / "new") as log:
        log.truncate(0)
        assert [*log.lines()] == []
        log.write(1, {"loss": 1.0}, {})
    assert len(read_metrics(tmp_path / "new")) == 1


def test_a_half_written_last_line_is_left_out_and_any_other_is_an_error(tmp_path):
    logged(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    path.write_bytes(whole.replace(b'"step": 2', b'"stop": 2'))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected"):
        read_metrics(tmp_path)


def test_tensorboard_shows_the_values_of_the_resumed_run_alone(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in range(1, 5):
            log.write(step, {"loss": float(step), "held_out/loss": math.nan}, {"seconds": 1.0})
    with MetricsLog(tmp_path) as log:  # within the same second, whose name for the file is the same
        log.truncate(2)
        log.write(3, {"loss": 30.0}, {})
    assert scalars(tmp_path) == {"loss": {1: 1.0, 2: 2.0, 3: 30.0}}


@pytest.mark.parametrize("steps", [0, 1, 2, 200])
def test_the_picture_is_a_png_whatever_was_logged(tmp_path, steps):
    logged(tmp_path, steps)
    with MetricsLog(tmp_path) as log:
        log.truncate(steps)
        assert log.draw() == tmp_path / "curves.png"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("held", [True, False])
def test_of_answers_the_reward_is_drawn_and_where_time_went(tmp_path, held):
    values = {"loss": 0.0, "reward": 0.5, "surprise": 1.0} | ({"divergence": 0.1} if held else {})
    with MetricsLog(tmp_path) as log:
        for step in (1, 2):
            log.write(step, values, {"seconds": 4.0, "rollout": 1.0, "reward": 0.5, "learning": 2.5})
        log.write(2, {"held_out/reward": 0.6}, {})
        assert shares(log.lines()) == {"rollout": 0.25, "reward": 0.125, "learning": 0.625}
        log.draw()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert shares([{"step": 1, "values": {}, "time": {"seconds": 1.0}}]) == {}


def test_a_picture_of_a_long_run_is_drawn_of_points_spread_over_all_of_it(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(metrics, "draw_curves", lambda lines, path, title: drawn.append(lines))
    monkeypatch.setattr(metrics, "POINTS", 100)
    with MetricsLog(tmp_path) as log:
        for step in range(1, 1001):
            log.write(step, {"loss": 1.0}, {"seconds": 1.0})
            if step % 100 == 0:
                log.write(step, {"held_out/loss": 1.0}, {})
        log.draw()
        assert log.truncate(970) == 30.0
        log.draw()
    for lines, last in zip(drawn, (1000, 970), strict=True):
        steps = [line["step"] for line in lines if line["time"]]
        assert 50 <= len(steps) <= 100
        assert len(set(np.diff(steps))) == 1
        assert steps[0] == 1
        assert last - steps[-1] < 20
        assert [line["step"] for line in lines if not line["time"]] == list(range(100, last + 1, 100))


def test_a_checkpoint_finds_its_lines_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(metrics.os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    with MetricsLog(tmp_path) as log:
        log.sync()
        log.write(1, {"loss": 1.0}, {})
        synced.clear()  # of the events' own
        log.sync()
        assert synced == [(tmp_path / "metrics.jsonl").stat().st_size]


def test_an_error_loses_no_event_of_tensorboard(tmp_path):
    def fails():
        with MetricsLog(tmp_path) as log:
            for step in range(1, 4):
                log.write(step, {"loss": float(step)}, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert scalars(tmp_path) == {"loss": {1: 1.0, 2: 2.0, 3: 3.0}}


def test_events_are_written_where_they_are_told_of_and_a_write_that_fails_is_heard_of(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError("No space left on device")

    threads = threading.active_count()
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 1.0}, {})
        assert threading.active_count() == threads
        with monkeypatch.context() as patched:
            patched.setattr("tensorboardX.record_writer.RecordWriter.write", full)
            with pytest.raises(OSError, match="No space left"):
                log.write(2, {"loss": 2.0}, {})
    assert scalars(tmp_path) == {"loss": {1: 1.0}}
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_events_reach_the_disk_while_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxformer.train.events.SECONDS", 0.0)
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 1.0}, {})
        assert scalars(tmp_path) == {"loss": {1: 1.0}}


def test_values_that_are_not_finite_do_not_spoil_the_picture(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step, loss in enumerate([3.0, math.nan, math.inf, 2.0]):
            log.write(step, {"loss": loss}, {})
        log.draw()
    assert math.isnan(json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["values"]["loss"])
