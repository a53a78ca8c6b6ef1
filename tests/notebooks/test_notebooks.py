"""Every notebook, run from top to bottom at a small size in a folder of its own."""

import base64
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {
    "01_train_on_colab": """
import inspect, json.decoder, json.encoder, textwrap
TEXTS = [inspect.getsource(module) for module in (json, json.decoder, json.encoder, textwrap)]
CHANGES = {"vocab": 512, "width": 64, "layers": 1, "rows": 8, "length": 32, "steps": 12}
""",
}
"""What is put behind the cell tagged "parameters"."""


def tags(cell):
    return cell.metadata.get("tags", [])


def outputs(notebook, tag):
    """What the cell of this tag printed, and the pictures that it shows."""
    text, pictures = "", []
    for cell in notebook.cells:
        for output in cell.get("outputs", []) if tag in tags(cell) else []:
            data = output.get("data", {})
            text += output.get("text", "") or data.get("text/plain", "")
            if "image/png" in data:
                pictures.append(base64.b64decode(data["image/png"]))
    return text, pictures


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """{name: notebook with its outputs}, each run when it is first asked for."""
    done = {}

    def execute(path):
        if path.stem not in done:
            notebook = nbformat.read(path, as_version=4)
            # Installing needs the network, and would not be the package under test.
            notebook.cells = [cell for cell in notebook.cells if "install" not in tags(cell)]
            at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
            notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(SMALL[path.stem]))
            place = tmp_path_factory.mktemp(path.stem)
            done[path.stem] = (
                NotebookClient(
                    notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(place)}}
                ).execute(),
                place,
            )
        return done[path.stem]

    return execute


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) < 20
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    assert [tags(cell) for cell in notebook.cells].count(["parameters"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, executed):
    notebook, _ = executed(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None
            assert not [output for output in cell.outputs if output.output_type == "error"]


@pytest.mark.slow
def test_training_on_colab_is_cut_off_goes_on_draws_and_writes(executed):
    notebook, place = executed(FOLDER / "01_train_on_colab.ipynb")
    told, live = outputs(notebook, "train")
    assert "the runtime went away at step 8" in told
    assert len(live) == 1
    told, live = outputs(notebook, "resume")
    assert "going on from step 6" in told
    assert "bits_per_byte" in told
    assert len(live) == 1
    _, curve = outputs(notebook, "curve")
    assert curve[0].startswith(b"\x89PNG")
    assert len(curve[0]) > 10_000
    assert curve[0] == (place / "runs/colab/curves.png").read_bytes()
    for tag in ("samples", "reload"):
        assert len(outputs(notebook, tag)[0]) > 12
