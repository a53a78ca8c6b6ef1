"""What the pages in docs/ say of families is what there is."""

import re
import runpy
from pathlib import Path

import pytest

from jaxformer import families

DOCS = Path(__file__).parents[2] / "docs"
KNOWN = {name: each for each in families.FAMILIES for name in each.MODEL_TYPES}


def rows(page):
    """The cells of each row of the page's tables."""
    lines = (DOCS / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def test_the_page_of_families_lists_each_with_its_heads():
    listed = {name: heads for names, heads, *_ in rows("families.md")[1:] for name in names.split(", ")}
    assert listed.keys() == KNOWN.keys()
    assert {name: heads.split(", ") for name, heads in listed.items()} == {
        name: list(each.ARCHITECTURES) for name, each in KNOWN.items()
    }


def test_the_page_for_flax_counts_what_is_covered():
    table = [row for row in rows("from-flax.md") if row[1] in ("yes", "no")]
    assert len(table) == 36
    for name, covered, _ in table:
        assert (covered == "yes") == (name.replace("xlm_roberta", "xlm-roberta") in KNOWN), name
    text = [row for row in table if row[2] not in ("images", "speech")]
    counts = re.search(r"Text classes: (\d+), of which (\d+) are covered", (DOCS / "from-flax.md").read_text())
    assert [int(count) for count in counts.groups()] == [len(text), sum(row[1] == "yes" for row in text)]


@pytest.mark.parametrize("page", sorted(page.name for page in DOCS.glob("*.md")))
def test_links_of_a_page_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", (DOCS / page).read_text())
    assert [target for target in targets if not (DOCS / target).exists()] == []


def test_tables_of_the_pages_are_what_configs_and_results_say():
    filled = runpy.run_path(str(DOCS / "make_tables.py"))["filled"]
    pages = {path.name: path.read_text() for path in DOCS.glob("*.md")}
    assert [name for name, page in pages.items() if filled(page) != page] == [], "python docs/make_tables.py"


def test_the_index_names_every_page():
    named = re.findall(r"^\| \[(\S+\.md)\]\(\1\)", (DOCS / "README.md").read_text(), re.MULTILINE)
    assert sorted([*named, "README.md"]) == sorted(["../README.md", *(path.name for path in DOCS.glob("*.md"))])


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md") if path.stem != "log"))
def test_files_that_a_page_names_are_there(page):
    folders = "jaxformer|tests|benchmarks|configs|notebooks|docs"
    named = re.findall(rf"\b(?:{folders})/[\w/]*\.(?:py|md|ipynb)\b", (DOCS / page).read_text())
    made_up = {"jaxformer/families/pebble.py"}
    assert [name for name in named if name not in made_up and not (DOCS.parent / name).exists()] == []
