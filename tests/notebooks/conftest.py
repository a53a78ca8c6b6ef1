"""Notebooks run from top to bottom, each once, at a small size, in a folder of its own."""

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"


def tags(cell):
    return cell.metadata.get("tags", [])


@dataclass(frozen=True)
class Executed:
    notebook: Any
    place: Path
    """The folder that it ran in."""

    def text(self, tag):
        """What the cells of this tag printed, and what they end with."""
        return "".join(
            output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in self._outputs(tag)
        )

    def pictures(self, tag):
        """The PNG files that the cells of this tag show."""
        shown = [output.get("data", {}).get("image/png") for output in self._outputs(tag)]
        return [base64.b64decode(picture) for picture in shown if picture]

    def _outputs(self, tag):
        cells = [cell for cell in self.notebook.cells if tag in tags(cell)]
        assert cells, f"no cell is tagged {tag}"
        return [output for cell in cells for output in cell.get("outputs", [])]


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """`executed(name, small, prepare)`: the notebook with its outputs, run when it is first asked for.

    `small` is put behind the cell tagged "parameters"; `prepare(place)` may lay files into its folder before.
    """
    done = {}

    def execute(name, small, prepare=None):
        if name not in done:
            place = tmp_path_factory.mktemp(name)
            if prepare is not None:
                prepare(place)
            done[name] = Executed(_run(name, small, place), place)
        return done[name]

    return execute


def _run(name, small, place):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    # Installing needs the network, and would not be the package under test.
    notebook.cells = [cell for cell in notebook.cells if "install" not in tags(cell)]
    at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(small))
    # Raises at the first cell that does.
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    )
    # Pictures are shown in the notebook, as where a reader runs it; the tests themselves show none.
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    client.execute(env=env)
    assert all(cell.execution_count is not None for cell in notebook.cells if cell.cell_type == "code")
    return notebook
