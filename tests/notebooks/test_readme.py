"""The README is short, and what it names is there; test_snippets.py runs its Python."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_readme_is_short_and_names_the_two_commands():
    assert len(README.splitlines()) <= 120
    assert "\n    pip install -e . && jaxformer train configs/quickstart.py\n" in README
    assert '\n    pip install -e ".[test]" && pytest\n' in README


def test_files_that_the_readme_links_to_are_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:notebooks|configs|docs)/[\w./]+)`", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert not missing
