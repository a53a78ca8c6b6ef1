"""`jaxformer doctor`: what is there, what would be used, and what is wrong."""

import jax
import pytest

from jaxformer import machine
from jaxformer.commands import doctor


@pytest.fixture
def healthy(monkeypatch):
    monkeypatch.setattr(machine, "warnings", lambda: [])


@pytest.mark.usefixtures("healthy")
def test_it_names_versions_devices_and_the_choice_of_kernels(capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere/compiled")
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert f"jax {jax.__version__}" in out
    assert "devices: 8 x cpu" in out
    assert "host memory: " in out
    assert "activations: float32; compiled programs: /elsewhere/compiled\n" in out
    assert "nothing found wrong: computing on cpu" in out
    for title in doctor.requests():
        assert f"attention, {title}" in out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line[0] == "│"]
    assert sum(reason == "chosen" for _, reason in rows) == len(doctor.requests())
    assert rows.count(["splash", "needs a TPU, not cpu"]) == len(doctor.requests())
    assert rows.count(["cudnn", "needs an NVIDIA GPU, not cpu"]) == len(doctor.requests())


def test_what_would_go_wrong_in_silence_is_a_warning_and_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(machine, "warnings", lambda: ['install "jaxformer[cuda]"'])
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert 'warning: install "jaxformer[cuda]"' in out
    assert "nothing found wrong" not in out


def test_it_takes_no_options():
    with pytest.raises(ValueError, match="doctor takes no options, got --fast"):
        doctor.main(["--fast"])
