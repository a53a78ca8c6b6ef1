"""Every notebook, run from top to bottom at a small size in a folder of its own."""

import ast
import base64
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from jaxformer.train.metrics import read_metrics

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {
    "01_train_on_colab": """
import inspect, json.decoder, json.encoder, textwrap
TEXTS = [inspect.getsource(module) for module in (json, json.decoder, json.encoder, textwrap)]
CHANGES = {"vocab": 512, "width": 64, "layers": 1, "rows": 8, "length": 32, "steps": 12}
""",
    "02_pretrain_to_chat": """
CHANGES = {"people": 6, "pages": 200, "width": 64, "layers": 2, "rows": 8, "length": 64}
CHANGES |= {"pretraining": 120, "instruction": 100, "preference": 8, "talks": 20, "draws": 16}
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
            client = NotebookClient(
                notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(place)}}
            )
            # Pictures are shown in the notebook, as where a reader runs it; the tests themselves show none.
            env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
            done[path.stem] = client.execute(env=env), place
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


@pytest.mark.slow
def test_from_pretraining_to_chat_each_stage_shows_what_it_changed(executed):
    notebook, place = executed(FOLDER / "02_pretrain_to_chat.ipynb")
    runs = place / "runs/village"
    for name, tag in (("pretraining", "pretrain"), ("instruction", "instruct")):
        assert outputs(notebook, tag)[1] == [(runs / name / "curves.png").read_bytes()]
        losses = [line["values"]["loss"] for line in read_metrics(runs / name) if "loss" in line["values"]]
        assert losses[-1] < losses[0]
    first, *_, last = (line["values"] for line in read_metrics(runs / "preference") if "margin" in line["values"])
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert last["margin"] > 0
    for tag in ("prefer", "stages"):
        (picture,) = outputs(notebook, tag)[1]
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000
    told = outputs(notebook, "stages")[0]
    table = ast.literal_eval(told[told.index("{") :])
    assert [*table] == ["pretraining", "instruction", "preference"]
    assert table["instruction"]["ended"] > table["pretraining"]["ended"]
    talk = outputs(notebook, "chat")[0].splitlines()
    asked = [i for i, line in enumerate(talk) if line.startswith("> ")]
    assert len(asked) == 4
    assert any(talk[i + 1] for i in asked)
    assert talk[-1] == f"Go on in a terminal: jaxformer chat {runs / 'preference'}"
