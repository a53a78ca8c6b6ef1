"""What is drawn of vectors is what was given."""

import json
import re

import numpy as np
import pytest

from jaxformer.drawing.embeddings import draw_scatter, scatter_page

POINTS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
LABELS = ["a", "</script>", "new\nline", " ", "日本", "$x$"]
GROUPS = ["one", "two", "one", "one", "three", "two"]


def told(page):
    (data,) = re.findall(r"const DATA = (.*);\n", page)
    return json.loads(data)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_page_holds_the_points_to_the_last_bit_and_each_with_its_label(dimensions):
    made = scatter_page(POINTS[:, :dimensions], LABELS, GROUPS, title="<Tokens>")
    data = told(made)
    np.testing.assert_array_equal(np.float32(data["points"]), POINTS[:, :dimensions])
    assert data["labels"] == ["a", "</script>", r"new\nline", "' '", "日本", "$x$"]
    assert [data["names"][group] for group in data["groups"]] == GROUPS
    assert "<title>&lt;Tokens&gt;</title>" in made
    assert made.count("</script>") == 1
    assert told(scatter_page(POINTS[:, :2], LABELS))["groups"] is None


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_figure_shows_each_point_once_in_the_colour_of_its_group(dimensions):
    axes = draw_scatter(POINTS[:, :dimensions], [*"abcdef"], GROUPS, "title").axes[0]
    drawn = {}
    for group in axes.collections:
        columns = group._offsets3d if dimensions == 3 else np.ma.getdata(group.get_offsets()).T
        drawn[group.get_label()] = np.stack([np.asarray(column) for column in columns], axis=1)
    assert [*drawn] == ["one", "two", "three"]
    for name, points in drawn.items():
        expected = POINTS[[own == name for own in GROUPS], :dimensions]
        np.testing.assert_array_equal(np.sort(points, axis=0), np.sort(expected, axis=0))
    assert sorted(text.get_text() for text in axes.texts) == [*"abcdef"]
    assert axes.get_title() == "title"


def test_no_two_labels_of_a_figure_stand_on_each_other_where_there_is_room():
    near = np.linspace(0, 1, 6)[:, None] * [[1.0, 1.0]] * 0.01
    figure = draw_scatter(np.concatenate([near, [[1, 1]]]), [f"a label {i}" for i in range(7)])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 7
    assert not [(i, j) for i in range(7) for j in range(i) if boxes[i].overlaps(boxes[j])]


def test_of_many_points_those_are_named_that_are_asked_for():
    many = np.random.default_rng(1).normal(size=(5000, 2))
    labels = [*map(str, range(5000))]
    assert not draw_scatter(many, labels).axes[0].texts
    assert {text.get_text() for text in draw_scatter(many, labels, named=[3, 77]).axes[0].texts} == {"3", "77"}
    assert len(told(scatter_page(many, labels))["points"]) == 5000


def test_what_does_not_fit_is_refused_with_all_that_is_wrong():
    for draw in (draw_scatter, scatter_page):
        with pytest.raises(ValueError, match=r"points \(6, 3\): 2 labels; 1 groups"):
            draw(POINTS, ["a", "b"], ["c"])
        with pytest.raises(ValueError, match="expected finite numbers"):
            draw(np.where(POINTS > 1, np.nan, POINTS), LABELS)
        with pytest.raises(ValueError, match=r"\[N, 2\] or \[N, 3\]"):
            draw(POINTS[:, :1], LABELS)
