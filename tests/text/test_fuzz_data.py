"""Damaged configs, tokenizers, experiments, adapters, data and templates, with benchmarks/fuzz.py: a clear error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
MUTATIONS = 400


@pytest.mark.slow
def test_damaged_files_of_every_kind_are_read_or_refused_by_name(tmp_path):
    """In a process of its own: a crash of a library would end this one too."""
    pytest.importorskip("pyarrow")
    command = [sys.executable, FILE, "--files", "--folder", tmp_path / "fuzz", "--serve", "0", str(MUTATIONS)]
    run = subprocess.run(command, capture_output=True, text=True)
    outcomes = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f"mutation {len(outcomes)} ended the process: {run.stderr[-2000:]}"
    assert [each for each in outcomes if each[2] == "escaped"] == []
    assert len(outcomes) == MUTATIONS
    found = [outcome for _, _, outcome, _ in outcomes]
    assert min(found.count("loaded"), found.count("refused")) > MUTATIONS / 10
