"""What the notebooks on translation and on many devices claim, run from top to bottom at a small size."""

import ast
import re
from importlib.util import find_spec

import numpy as np
import pytest

import jaxformer
from jaxformer.train.metrics import read_metrics

SMALL = {
    "05_translate": """
PACKAGES, LANGUAGE = ("humanize",), "fr_FR"  # a few dozen pairs, which come with orbax
CHANGES = {"vocab": 448, "width": 32, "heads": 2, "layers": 2, "steps": 24, "rows": 8, "length": 32}
""",
    "09_scale": """
CHANGES = {"steps": 8}
LARGE = {"width": 128, "layers": 2, "heads": 8, "vocab": 1024, "rows": 32, "length": 128}
""",
}
"""What is put behind the cell tagged "parameters"."""


def shows(picture):
    """Whether it is more of a picture than an empty frame."""
    return picture.startswith(b"\x89PNG") and len(picture) > 10_000


def losses(run):
    return [line["values"]["loss"] for line in read_metrics(run) if "loss" in line["values"]]


@pytest.mark.slow
def test_translating_shows_real_pairs_bleu_beside_what_needs_no_model_and_where_it_looks(executed):
    ran = executed("05_translate", SMALL["05_translate"])
    assert "  %s from now\n      dans %s\n" in ran.text("pairs")
    run = ran.place / "runs/translate_fr_FR"
    assert ran.pictures("train") == [(run / "curves.png").read_bytes()]
    first, *_, last = losses(run)
    assert last < first - 1
    assert ran.text("translations").count("    person: ") == 10
    signature, table = ran.text("bleu").split("\n", 1)
    assert "tok:13a" in signature
    bleu = ast.literal_eval(table)
    assert [*bleu] == ["all", "no twin", "no twin, no markup"]
    for group in bleu.values():
        assert [*group] == ["the English", "nearest message", "model, greedy", "model, 4 beams"]
        assert all(0 <= score <= 100 for score in group.values())
    for tag in ("bleu", "map", "heads"):
        (picture,) = ran.pictures(tag)
        assert shows(picture)
    *_, source, written = ran.text("yours").splitlines()
    (found,) = jaxformer.pipeline("translation", str(run / "model"), max_new_tokens=40)(source)
    assert written == f"    {found['translation_text']}"


@pytest.mark.slow
def test_scaling_shows_equal_losses_places_collectives_and_a_plan(executed):
    ran = executed("09_scale", SMALL["09_scale"])
    assert ran.text("devices").startswith("8 x ")
    assert "the runtime went away at step 6" in ran.text("train")
    assert "went on with step 6 on {'data': 1, 'fsdp': 8" in ran.text("resume")
    one, many = losses(ran.place / "runs/scale/one"), losses(ran.place / "runs/scale/many")
    assert len(one) == 8
    np.testing.assert_allclose(many, one, rtol=2e-5)
    assert float(ran.text("losses").split(": ")[-1]) == pytest.approx(
        np.abs(np.divide(many, one) - 1).max(), abs=1e-7
    )
    held = [float(size) for size in re.findall(r"([\d.]+) MB", ran.text("places"))]
    assert held[0] / 8 < held[1] < held[0] / 7
    told = dict(re.findall(r"(\w[\w ]*): (.+)", ran.text("collectives")))
    assert "all-gather" not in told["data"]
    assert all("all-gather" in told[mesh] for mesh in ("fsdp", "data x fsdp x tensor"))
    for tag in ("losses", "places", "collectives"):
        (picture,) = ran.pictures(tag)
        assert shows(picture)
    plan = ran.text("plan")
    assert "cpu:8: 8 x cpu, mesh fsdp 4 x tensor 2" in plan
    assert "collectives of a step" in plan
    assert ("v5e:4x4: 16 x " if find_spec("libtpu") else "libtpu is not installed") in plan
