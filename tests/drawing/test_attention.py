"""The laws of drawn attention: a figure holds the map, a page holds the numbers, and says them where one points."""

import json
import re

import numpy as np
import pytest

from jaxformer.drawing.attention import attention_page, draw_head, draw_heads
from jaxformer.inspect.attention import AttentionMap, by_words
from jaxformer.inspect.pieces import pieces
from jaxformer.testing import tiny_tokenizer

TEXT = "The lazy $fox$ doubles</script> it"


def drawn(layers=3, heads=4, keys=None, text=TEXT):
    """A map of random numbers over a text's pieces; causal, unless keys are of another text."""
    queries = pieces(tiny_tokenizer(), text)
    across = pieces(tiny_tokenizer(), keys) if keys else queries
    shape = layers, heads, len(queries), len(across)
    seen = np.ones(shape[2:], bool) if keys else np.tri(len(queries), dtype=bool)
    weights = np.random.default_rng(0).exponential(size=shape) ** 2 * seen
    probabilities = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    uniform = np.broadcast_to(seen / seen.sum(-1, keepdims=True), (layers, *shape[2:]))
    return AttentionMap(queries, across, probabilities, uniform.astype(np.float32))


def test_the_figure_of_a_head_is_the_map_with_its_texts(tmp_path):
    of = by_words(drawn())
    figure = draw_head(of, 2, 1)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), of.probabilities[2, 1])
    assert axes.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == [word.label for word in of.keys]
    assert [label.get_text() for label in axes.get_yticklabels()] == [word.label for word in of.queries]
    assert axes.get_title() == "layer 2, head 1"
    for kind in ("png", "pdf"):
        figure.savefig(tmp_path / f"head.{kind}")


def test_the_figure_of_all_heads_is_a_grid_of_their_maps(tmp_path):
    of = drawn()
    figure = draw_heads(of, title="what is $x")
    assert len(figure.axes) == 12
    for axes, head in zip(figure.axes, of.probabilities.reshape(12, *of.probabilities.shape[2:]), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), head)
    figure.savefig(tmp_path / "heads.png")
    some = draw_heads(of, layers=[2])
    for axes, head in zip(some.axes, of.probabilities[2], strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), head)
    assert [axes.get_title() for axes in some.axes] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("draw", [draw_head, lambda of, *which: attention_page({"a": of}, "", *which)])
def test_a_layer_or_a_head_that_is_not_there_is_said(draw):
    with pytest.raises(ValueError, match="layer 3: this map has layers 0 to 2"):
        draw(drawn(), 3, 0)
    with pytest.raises(ValueError, match="head -1: this map has heads 0 to 3"):
        draw(drawn(), 0, -1)
    with pytest.raises(ValueError, match="no map to show"):
        attention_page({}, "")


def test_the_data_of_a_page_are_the_arrays():
    maps = {"decoder": drawn(), "cross": drawn(keys="the dog")}
    (told,) = re.findall(r"const DATA = (.*);\n", attention_page(maps, TEXT))
    for name, of in maps.items():
        mine = json.loads(told)["maps"][name]
        assert mine["queries"] == [piece.label for piece in of.queries]
        assert mine["keys"] == [piece.label for piece in of.keys]
        held = np.array(mine["thousandths"]).reshape(of.probabilities.shape)
        np.testing.assert_allclose(held / 1000, of.probabilities, atol=5.1e-4)
        np.testing.assert_allclose(np.reshape(mine["uniform"], of.uniform.shape) / 1000, of.uniform, atol=5.1e-4)


def test_a_page_of_144_heads_over_30_tokens_takes_less_than_400_kilobytes():
    of = drawn(12, 12, keys=(("quick brown " * 9)[:80]), text="over the lazy " * 9)
    square = AttentionMap(of.queries[:30], of.keys[:30], of.probabilities[..., :30, :30], of.uniform[..., :30, :30])
    assert square.probabilities.shape == (12, 12, 30, 30)
    assert len(attention_page({"encoder": square}, "all")) < 400_000


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reader_chooses_a_head_and_is_told_what_it_looks_at(open_page, scheme):
    maps = {"decoder": drawn(), "cross": by_words(drawn(keys="the dog"))}
    page = open_page(attention_page(maps, TEXT, layer=1, head=2), scheme)
    of = maps["decoder"]
    told, field = page.locator("#told"), lambda t, s: page.locator(f"[data-query='{t}'][data-key='{s}']")

    def says(of, layer, head, t, s):
        numbers = f"{of.probabilities[layer, head, t, s]:.3f}", f"{of.uniform[layer, t, s]:.3f}"
        words = f"{of.queries[t].label} → {of.keys[s].label}"
        expected = [words, numbers[0], f"in layer {layer}, head {head}; a uniform look gives {numbers[1]}"]
        return told.inner_text().split() == " ".join(expected).split()

    field(7, 3).hover()
    assert says(of, 1, 2, 7, 3)
    assert field(3, 7).count() == 0  # the future
    page.locator("#layer").select_option("2")
    page.locator("#head").select_option("3")
    field(7, 3).hover()
    assert says(of, 2, 3, 7, 3)
    field(7, 3).click()
    best = sorted(np.ndindex(3, 4), key=lambda at: -of.probabilities[(*at, 7, 3)])[0]
    page.locator("#closest button").first.click()
    assert says(of, *best, 7, 3)
    assert [page.locator(f"#{name}").input_value() for name in ("layer", "head")] == [str(at) for at in best]
    page.locator("#map").select_option("cross")
    page.locator("#layer").select_option("0")
    page.locator("#head").select_option("1")
    field(1, 0).hover()
    assert says(maps["cross"], 0, 1, 1, 0)
    columns, rows = len(maps["cross"].keys), len(maps["cross"].queries)
    assert page.locator("rect[data-query]").count() == columns * rows


@pytest.mark.browser
def test_lines_lead_from_a_word_to_what_it_looks_at(open_page):
    of = by_words(drawn(keys="the dog"))
    page = open_page(attention_page({"cross": of}, TEXT))
    page.locator("#view").select_option("lines")
    for name, axis in (("query", 0), ("key", 1)):
        page.locator(f"text[data-{name}='1']").hover()
        shown = [float(text) for text in page.locator("svg .number").all_text_contents()]
        row = np.take(of.probabilities[0, 0], 1, axis=axis)
        np.testing.assert_allclose(shown, row[np.rint(1000 * row) >= 5], atol=5.1e-4)
        visible = page.locator("path.link:not([stroke-opacity='0'])")
        assert visible.count() == len(shown)
    page.locator("h1").hover()
    assert page.locator("svg .number").count() == 0


@pytest.mark.browser
def test_the_small_heads_are_a_choice_too(open_page):
    page = open_page(attention_page({"decoder": drawn()}, TEXT))
    thumb = page.evaluate("thumb")
    page.locator("#heads").click(position={"x": 22 + 2.5 * thumb, "y": 22 + 1.5 * thumb})
    assert [page.locator(f"#{name}").input_value() for name in ("layer", "head")] == ["1", "2"]
    page.locator("[data-query='3'][data-key='1']").hover()
    assert "in layer 1, head 2;" in page.locator("#told").inner_text()
