"""What the README says in Python runs, and what it names is there."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_python_of_the_readme_runs_in_order(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, name)
    there: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), there)
    run, out = there["run"], there["out"]
    assert run.finished
    assert int(run.state.step) == there["experiment"].steps
    assert jax.tree.all(jax.tree.map(np.array_equal, run.params, there["params"]))
    assert out.tokens.shape == (4, 16)
    assert there["logits"].shape == (4, 16, 512)
    assert Path("published/config.json").is_file()


def test_the_readme_is_short_and_names_the_two_commands():
    assert len(README.splitlines()) <= 120
    assert "\n    pip install -e . && jaxformer train configs/quickstart.py\n" in README
    assert '\n    pip install -e ".[test]" && pytest\n' in README


def test_files_that_the_readme_links_to_are_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:notebooks|configs|docs)/[\w./]+)`", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert not missing
