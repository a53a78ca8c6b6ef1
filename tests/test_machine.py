"""What is said of the machine, and when it warns."""

import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxformer import machine


def test_versions_of_what_numbers_depend_on():
    versions = machine.versions()
    assert versions["python"] == sys.version.split()[0]
    assert versions["jax"] == jax.__version__
    assert {"flax", "optax", "orbax-checkpoint", "sentencepiece"} <= versions.keys()


def test_a_package_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("no-such-package",))
    assert machine.versions()["no-such-package"] == "not installed"


def test_devices_of_one_kind_share_a_line():
    (line,) = machine.devices()
    assert line.startswith("8 x cpu (cpu")


def test_memory_is_what_the_system_says_or_zero(monkeypatch):
    free, total = machine.memory()
    assert 0 <= free <= total
    monkeypatch.setattr(machine.Path, "read_text", lambda self: "nothing to see")
    assert machine.memory() == (0.0, 0.0)


def test_nothing_is_wrong_with_a_machine_without_accelerators(monkeypatch):
    for name in ("_has_gpu", "_has_tpu"):
        monkeypatch.setattr(machine, name, lambda: False)
    assert machine.warnings() == []


@pytest.mark.parametrize(
    ("platforms", "reason"), [("cpu", "JAX_PLATFORMS=cpu"), ("", 'pip install "jaxformer[cuda]"')]
)
def test_a_gpu_beside_which_the_cpu_computes_is_a_warning_with_the_reason(monkeypatch, platforms, reason):
    monkeypatch.setattr(machine, "_has_gpu", lambda: True)
    monkeypatch.setattr(machine, "_has_tpu", lambda: False)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    (line,) = machine.warnings()
    assert "has an NVIDIA GPU, but jax computes on the CPU" in line
    assert reason in line


def test_a_tpu_is_known_by_its_environment(monkeypatch):
    monkeypatch.setattr(machine, "_has_gpu", lambda: False)
    monkeypatch.setenv("TPU_NAME", "local")
    assert "has a TPU, but jax computes on the CPU" in machine.warnings()[0]


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert machine.compilation_cache() == Path("/caches/jaxformer/compiled")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    assert machine.compilation_cache() == Path("/elsewhere")


def test_compiled_programs_are_kept_once_that_is_asked_for(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    compilation_cache.reset_cache()
    try:
        machine.use_compilation_cache()
        jax.jit(lambda x: 17 * x + 3)(1.0)
        assert [*tmp_path.iterdir()]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
