"""The laws of drawn pieces: each is there, in its place, and says what it is."""

import json
import re

import pytest

from jaxformer.drawing.pieces import pieces_page, pieces_table
from jaxformer.inspect.pieces import pieces
from jaxformer.testing import SENTENCES, tiny_tokenizer
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

TEXT = "the unbelievable, naïve 😀 </script>"


@pytest.fixture(scope="module")
def both():
    wordpiece = train_tokenizer(TokenizerConfig("wordpiece", 200), SENTENCES * 3)
    return {"bytes": pieces(tiny_tokenizer(), TEXT), "words": pieces(wordpiece, TEXT)}


def test_a_table_has_a_line_of_each_piece(both):
    lines = pieces_table({"bytes": both["bytes"]}).splitlines()
    assert lines[0].split() == ["piece", "id", "kind", "text", "characters", "bytes"]
    assert len(lines) == 2 + len(both["bytes"])
    (found,) = {tuple(line.split()) for line in lines if "0xC3" in line}
    assert found == ("<0xC3>", "199", "byte", "ï", "20:21", "C3")
    assert pieces_table({"nothing": ()}).splitlines()[0] == "piece  id  kind  text  characters  bytes"


def test_two_tokenizers_stand_side_by_side_with_what_falls_back_and_what_is_lost(both):
    table = pieces_table(both)
    names, _, *lines = table.splitlines()
    assert re.fullmatch(r"bytes \(\d+\)\s+words \(\d+\)", names)
    for some in both.values():
        for piece in some:
            assert f"{piece.name} {piece.id}" in table
    (row,) = (line for line in lines if "<0xF0>" in line)
    assert row.count("(byte)") == 4
    assert row.endswith("[UNK] 1 (unknown)")


def test_the_data_of_a_page_are_the_pieces(both):
    made = pieces_page(both, TEXT)
    (told,) = re.findall(r"const DATA = (.*);\n", made)
    told = json.loads(told)
    assert told["names"] == list(both)
    for column, some in enumerate(both.values()):
        held = [piece for row in told["rows"] for piece in row[column]]
        assert [piece["id"] for piece in held] == [piece.id for piece in some]
        assert [piece["kind"] for piece in held] == [piece.kind for piece in some]
        assert [piece["bytes"].lower().replace(" ", "") for piece in held] == [(p.data or b"").hex() for p in some]
    assert made.count("</script>") == 1
    with pytest.raises(ValueError, match="no pieces to show"):
        pieces_page({}, "")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reader_points_at_a_piece_and_is_told_what_it_is(open_page, both, scheme):
    page = open_page(pieces_page(both, TEXT), scheme)
    chips = page.locator("td .piece")
    assert chips.count() == sum(map(len, both.values()))
    page.locator("td .byte", has_text="C3").hover()
    told = page.locator("#told").inner_text()
    assert re.sub(r"\s+", " ", told).startswith("id 199 · written <0xC3> · byte · stands for “ï”, characters 20:21")
    page.locator("td .unknown").first.focus()
    assert "unknown" in page.locator("#told").inner_text()
    assert [name.split() for name in page.locator("th").all_inner_texts()] == [
        [name, str(len(some)), "pieces"] for name, some in both.items()
    ]


@pytest.mark.browser
def test_one_tokenizer_reads_as_a_line(open_page, both):
    page = open_page(pieces_page({"bytes": both["bytes"]}, TEXT))
    assert page.locator("td").count() == 1
    labels = page.locator("td .piece code").all_inner_texts()
    assert labels == [piece.label for piece in both["bytes"]]
