"""What this machine is, what jax makes of it, and what is wrong with that."""

import glob
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import jax

PACKAGES = (
    "jaxformer",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "sentencepiece",
    "tokenizers",
)


def versions() -> dict[str, str]:
    """{name: version} of Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def devices() -> list[str]:
    """A line for each kind of device in use, with its memory where jax knows it."""
    lines: dict[str, int] = {}
    for device in jax.devices():
        try:
            limit = (device.memory_stats() or {}).get("bytes_limit")
        except (RuntimeError, NotImplementedError):
            limit = None
        memory = f", {limit / 2**30:.1f} GiB each" if limit else ""
        line = f"{device.platform} ({device.device_kind}{memory})"
        lines[line] = lines.get(line, 0) + 1
    return [f"{count} x {line}" for line, count in lines.items()]


def memory() -> tuple[float, float]:
    """(free, total) bytes of the host's memory, as the system reports them; zeros where it doesn't."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free, total = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return 0.0, 0.0
    return free, total


def warnings() -> list[str]:
    """What would go wrong in silence: above all an accelerator that is there while jax computes on the CPU."""
    found = []
    if jax.default_backend() == "cpu":
        for name, there, extra in (("an NVIDIA GPU", _has_gpu(), "cuda"), ("a TPU", _has_tpu(), "tpu")):
            if there:
                reason = (
                    f"JAX_PLATFORMS={os.environ['JAX_PLATFORMS']}"
                    if os.environ.get("JAX_PLATFORMS")
                    else (f'install its support with: pip install "jaxformer[{extra}]"')
                )
                found.append(f"this machine has {name}, but jax computes on the CPU ({reason})")
    if metadata.version("jax") != metadata.version("jaxlib"):
        found.append(f"jax {metadata.version('jax')} and jaxlib {metadata.version('jaxlib')} differ in version")
    return found


def compilation_cache() -> Path:
    """Where compiled programs are kept between processes."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(given) if given else home / "jaxformer" / "compiled"


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the next process starts sooner."""
    jax.config.update("jax_compilation_cache_dir", str(compilation_cache()))


def _has_gpu() -> bool:
    return bool(glob.glob("/dev/nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def _has_tpu() -> bool:
    names = ("TPU_NAME", "TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR")
    return bool(glob.glob("/dev/accel[0-9]*")) or any(os.environ.get(name) for name in names)
