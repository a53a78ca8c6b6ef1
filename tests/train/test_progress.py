import io
from pathlib import Path

import pytest
from rich.console import Console

from jaxformer.train import progress
from jaxformer.train.progress import TrainingProgress


def told(steps=10, terminal=False):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, highlight=False, soft_wrap=True, width=120)
    return TrainingProgress(steps, console=console), file


def test_without_a_terminal_a_line_is_written_now_and_then_and_at_the_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    say, file = told()
    with say.training(0):
        for step in range(1, 11):
            now[0] += 4.0
            say.step(step, 5.0 - 0.1 * step, 4000, 4.0)
    lines = [line for line in file.getvalue().splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["3/10", "6/10", "9/10", "10/10"]
    assert lines[0] == "step 3/10 · loss 4.700 · 1,000 tokens/s · 0:28 left"
    assert lines[-1].endswith("0:00 left")


def test_time_left_of_a_continued_run_counts_its_own_steps(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    say, file = told(100)
    with say.training(90):
        now[0] += 60
        say.step(92, 1.0, 10, 30.0)
    assert "step 92/100" in file.getvalue()
    assert "4:00 left" in file.getvalue()


def test_on_a_terminal_one_live_line_shows_it():
    say, file = told(terminal=True)
    with say.training(2):
        say.step(3, 2.5, 1000, 1.0)
        say.bar.refresh()
    text = file.getvalue()
    for part in ("training", "3/10", "loss 2.500", "1,000 tokens/s", "left"):
        assert part in text
    assert "step 3/10" not in text


def test_the_rate_forgets_the_step_that_compiled():
    say, _ = told()
    with say.training(4):
        say.step(5, 1.0, 1000, 100.0)
        assert say.rate == 10
        say.step(6, 1.0, 1000, 1.0)
        assert say.rate == 1000
        say.step(7, 1.0, 1000, 0.5)
        assert say.rate == pytest.approx(0.95 * 1000 + 0.05 * 2000)


def test_notices_are_written_as_they_are():
    say, file = told()
    say.notice("a [bold]path[/bold] with [brackets]")
    say.changes(Path("runs/x"), ["steps: 1 -> 2"])
    say.completion("def f(x[0]):", "\n    return [x]\n")
    text = file.getvalue()
    assert "a [bold]path[/bold] with [brackets]" in text
    assert "x: going on with steps: 1 -> 2" in text
    assert "def f(x[0]):\n    return [x]" in text


def test_a_result_stands_beside_the_compressors_worst_first():
    say, file = told()
    say.result({"loss": 1.25, "bits_per_byte": 1.7}, {"zlib": 2.12, "lzma": 1.8})
    text = file.getvalue()
    assert "held-out loss: 1.2500" in text
    places = [text.index(name) for name in ("zlib", "lzma", "this model")]
    assert places == sorted(places)
    assert "1.700" in text


def test_a_result_without_bytes_has_no_table():
    say, file = told()
    say.result({"loss": 1.25}, {})
    assert "bits per byte" not in file.getvalue()


def test_where_time_went_is_a_line_with_the_parts_of_steps_in_brackets():
    say, file = told()
    say.spent({"steps": 0.934, "compile": 0.05, "other": 0.016})
    say.spent({"steps": 0.9, "saves": 0.1, "rollout": 0.6, "reward": 0.05, "learning": 0.25})
    assert file.getvalue().splitlines() == [
        "time: steps 93%, compile 5%, other 2%",
        "time: steps 90% (rollout 60%, reward 5%, learning 25%), saves 10%",
    ]


def test_what_lasts_says_what_it_is_and_how_long_it_took():
    say, file = told()
    with say.busy("training a tokenizer"):
        pass
    with say.preparing(3) as told_of:
        told_of(2, 3)
    assert "training a tokenizer: 0 s" in file.getvalue()


def test_quiet_says_nothing(capsys):
    say = TrainingProgress(3, quiet=True)
    with say.training(0), say.busy("x"):
        say.step(3, 1.0, 1, 1.0)
    say.result({"loss": 1.0, "bits_per_byte": 2.0}, {})
    say.completion("a", "b")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
