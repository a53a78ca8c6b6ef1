"""What is drawn of what a model expects is what was given."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxformer.drawing.predictions import PER_ROW, draw_distribution, draw_lens, draw_losses, losses_page

DOCS = Path(__file__).parents[2] / "docs/look-at-predictions.md"
NUMBER = re.compile(r"\d+\.\d+")
TOKENS = [" the", "$a$", "\n", "</script>"]
LOSS = np.float32([0.1, 7.25, 0, 3.05])
CHOICES = [["x", " the"], ["a", "b"], ["\n", " "], ["c", "d"]]
PROBABILITY = np.float32([[0.7, 0.2], [1 / 3, 0.1], [1, 0], [0.5, 0.25]])


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_a_page_holds_losses_and_choices_to_the_last_bit():
    made = losses_page(TOKENS, LOSS, CHOICES, PROBABILITY, before="<s>")
    (data,) = re.findall(r"const DATA = (.*);\n", made)
    data = json.loads(data)
    assert (data["before"], data["tokens"], data["choices"]) == ("<s>", TOKENS, CHOICES)
    np.testing.assert_array_equal(np.float32(data["loss"]), LOSS)
    np.testing.assert_array_equal(np.float32(data["probability"]), PROBABILITY)
    assert made.count("</script>") == 1
    with pytest.raises(ValueError, match=r"4 tokens, loss \(3,\), choices \(4, 2\), probability \(4, 2\)"):
        losses_page(TOKENS, LOSS[:3], CHOICES, PROBABILITY)


def test_bars_of_losses_are_read_like_lines():
    count = 2 * PER_ROW + 5
    loss = np.random.default_rng(0).exponential(size=count)
    figure = draw_losses([f"t{i}" for i in range(count)], loss, "title")
    heights = [bar.get_height() for axes in figure.axes for bar in axes.patches]
    np.testing.assert_array_equal(heights, loss)
    assert [label for axes in figure.axes for label in ticks(axes.xaxis)] == [f"t{i}" for i in range(count)]
    assert [len(axes.patches) for axes in figure.axes] == [PER_ROW, PER_ROW, 5]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    for axes in figure.axes:
        np.testing.assert_allclose(axes.lines[0].get_ydata(), loss.mean())
    assert ticks(draw_losses(TOKENS, LOSS).axes[0].xaxis) == [" the", "$a$", r"\n", "</script>"]


def test_a_distribution_is_drawn_from_the_likeliest_down():
    axes = draw_distribution([" a", "b", "$"], [0.5, 0.25, 0.125]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.25, 0.125]
    assert ticks(axes.yaxis) == [" a", "b", "$"]
    assert [text.get_text() for text in axes.texts] == ["50.0%", "25.0%", "12.5%"]
    assert axes.yaxis_inverted()


def test_the_lens_is_a_table_whose_last_layer_is_on_top():
    pieces = [["a", "\t"], ["a long piece", "b"], ["c", r"$\x$"]]
    p = np.float32([[0.1, 0.2], [0.3, 0.9], [0.5, 1]])
    figure = draw_lens(pieces, p, ["x", "y"])
    axes = figure.axes[0]
    np.testing.assert_array_equal(np.float32(axes.images[0].get_array()), p)
    low, high = axes.get_ylim()
    assert low < high
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "a", (1, 0): r"\t", (0, 1): "a long pie…", (1, 1): "b", (0, 2): "c", (1, 2): r"$\x$"}
    assert ticks(axes.xaxis) == ["x", "y"]
    assert ticks(axes.yaxis) == ["embedded", "1", "2"]
    figure.draw_without_rendering()  # what stands between dollars is no formula


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"pieces and tokens are \(2, 3\), probability is \(2, 2\)"):
        draw_lens([["a"] * 3] * 2, np.ones((2, 2)), ["x"] * 3)
    with pytest.raises(ValueError, match=r"tokens in each row are \(2, 2\), pieces is \(2, 1\)"):
        draw_lens([["a", "b"], ["c"]], np.ones((2, 2)), ["x"] * 2)
    with pytest.raises(ValueError, match=r"tokens are \(4,\), loss is \(3,\)"):
        draw_losses(TOKENS, LOSS[:3])
    with pytest.raises(ValueError, match=r"pieces are \(1,\), probability is \(2,\)"):
        draw_distribution(["a"], [0.5, 0.5])


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_a_token_tells_its_loss_and_what_was_likelier(open_page, scheme):
    opened = open_page(losses_page(TOKENS, LOSS, CHOICES, PROBABILITY, before="<b>"), scheme)
    spans = opened.locator("#text span")
    assert opened.locator("#text").text_content() == "<b> the$a$⏎\n</script>"
    assert opened.locator("#mean").inner_text() == "mean 2.600 nats a token, perplexity 13.46"
    told = opened.locator("#told")
    assert told.is_hidden()
    spans.nth(1).hover()
    assert told.locator("div").first.inner_text() == "$a$: 7.250 nats, 0.071%"
    assert [row.split() for row in told.locator("tr").all_inner_texts()] == [["a", "33.3%"], ["b", "10.0%"]]
    spans.nth(0).focus()
    assert told.locator("tr.own").all_inner_texts()[0].split() == ["the", "20.0%"]
    assert told.locator("tr").nth(0).inner_text().split() == ["x", "70.0%"]
    alpha = "[...document.querySelectorAll('#text span')].map(s => +(s.style.background.match(/[\\d.]+(?=\\)$)/)[0]))"
    np.testing.assert_allclose(opened.evaluate(alpha), 0.85 * LOSS / LOSS.max(), atol=1 / 255)  # colours have 8 bits
