"""What is drawn of trainings is what was given."""

import numpy as np
import pytest

from jaxformer.drawing.training import draw_norms, draw_runs
from jaxformer.inspect.training import Series, compare
from jaxformer.train.metrics import MetricsLog


def test_runs_lie_over_each_other_each_at_its_own_steps(tmp_path):
    for name, every in (("a", 1), ("b", 3)):
        with MetricsLog(tmp_path / name) as log:
            for step in range(0, 90, every):
                log.write(step, {"loss": step / 7, "learning_rate": step % 2}, {"seconds": 1.0})
    with MetricsLog(tmp_path / "b") as log:
        log.write(50, {"held_out/loss": 2.5}, {})
    figure = draw_runs(compare(tmp_path / "a", tmp_path / "b"), ["first", "second"])
    of_name = {axes.get_title(): axes for axes in figure.axes}
    assert [name for name in of_name if name] == ["loss", "held_out/loss", "learning_rate"]
    a, mean_a, b, mean_b = of_name["loss"].lines
    np.testing.assert_array_equal(a.get_data(), [np.arange(90), np.arange(90) / 7])
    np.testing.assert_array_equal(b.get_data(), [np.arange(0, 90, 3), np.arange(0, 90, 3) / 7])
    np.testing.assert_array_equal(mean_b.get_ydata(), b.get_ydata())  # 30 values: a window of one
    np.testing.assert_allclose(mean_a.get_ydata()[1:], (a.get_ydata()[1:] + a.get_ydata()[:-1]) / 2)
    assert [text.get_text() for text in of_name["loss"].get_legend().get_texts()] == ["first", "second"]
    assert mean_a.get_color() != mean_b.get_color()
    alone = of_name["held_out/loss"].lines[-1]
    assert (alone.get_xdata(), alone.get_ydata(), alone.get_color()) == ([50], [2.5], mean_b.get_color())
    np.testing.assert_array_equal(of_name["learning_rate"].lines[1].get_ydata(), np.arange(90) % 2)


def test_what_no_run_says_and_names_too_few_are_said_at_once():
    series = {"loss": Series(np.arange(3), np.ones((2, 3)))}
    with pytest.raises(ValueError, match="no run says 'lose'; 1 names for 2 runs; there is loss"):
        draw_runs(series, ["a"], ["lose"])
    with pytest.raises(ValueError, match="nothing is shown; there is seconds"):
        draw_runs({"seconds": series["loss"]}, ["a", "b"])


def test_norms_stand_in_a_row_each_and_what_is_no_layer_is_left_white():
    given = {"encoder/blocks/**": np.float32([1, 2]), "decoder/blocks/**": np.float32([3, 0, 5]), "embed/**": 7.0}
    axes = draw_norms(given, "title").axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), [[False, False, True], [False, True, False]])
    np.testing.assert_array_equal(shown.compressed(), [1, 2, 3, 5])
    assert [label.get_text() for label in axes.yaxis.get_ticklabels()] == [*given][:2]
    assert [label.get_text() for label in axes.xaxis.get_ticklabels()] == ["1", "2", "3"]
    with pytest.raises(ValueError, match="none of these norms is by layer"):
        draw_norms({"embed/**": np.float32(7)})
