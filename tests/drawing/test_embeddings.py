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


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_in_a_browser_a_point_tells_its_label_and_a_search_marks_what_has_it(open_page, dimensions, scheme):
    opened = open_page(scatter_page(POINTS[:, :dimensions], LABELS, GROUPS), scheme)
    box = opened.locator("#canvas").bounding_box()

    def pointed(i):
        x, y = opened.evaluate(f"places[{i}]")
        opened.mouse.move(box["x"] + x, box["y"] + y)
        return opened.locator("#tip").inner_text()

    assert [pointed(i).split("\n") for i in range(6)] == [
        [label, group]
        for label, group in zip(["a", "</script>", r"new\nline", "' '", "日本", "$x$"], GROUPS, strict=True)
    ]
    opened.mouse.move(box["x"] + 1, box["y"] + 1)
    assert opened.locator("#tip").is_hidden()
    opened.fill("#search", "N")
    assert opened.locator("#found").inner_text() == "1 of 6"
    assert opened.evaluate("[...hits]") == [2]
    opened.fill("#search", "")
    assert opened.locator("#found").inner_text() == "6 points"


@pytest.mark.browser
def test_in_a_browser_the_wheel_keeps_what_is_under_it_and_dragging_moves_or_turns(open_page):
    for dimensions in (2, 3):
        opened = open_page(scatter_page(POINTS[:, :dimensions], LABELS))
        box, before = opened.locator("#canvas").bounding_box(), np.array(opened.evaluate("places"))
        at = box["x"] + before[0][0], box["y"] + before[0][1]
        opened.mouse.move(*at)
        opened.mouse.wheel(0, -300)
        opened.wait_for_function("zoom > 1.5")
        zoomed = np.array(opened.evaluate("places"))
        np.testing.assert_allclose(zoomed[0], before[0], atol=1)
        np.testing.assert_allclose((zoomed - zoomed[0]) / np.exp(0.6), before - before[0], atol=2)
        opened.mouse.down()
        opened.mouse.move(at[0] + 40, at[1] + 20)
        opened.mouse.up()
        moved = np.array(opened.evaluate("places")) - zoomed
        assert np.allclose(moved, [40, 20], atol=1) == (dimensions == 2)
        opened.click("#reset")
        np.testing.assert_allclose(opened.evaluate("places"), before, atol=1e-6)


@pytest.mark.browser
def test_in_a_browser_five_thousand_points_are_all_drawn_and_found(open_page):
    many = np.random.default_rng(1).normal(size=(5000, 2))
    opened = open_page(scatter_page(many, [f"number {i}" for i in range(5000)]))
    opened.fill("#search", "number 49")
    assert opened.locator("#found").inner_text() == "111 of 5000"
    assert opened.evaluate("places.every(p => p.every(Number.isFinite)) && places.length") == 5000
