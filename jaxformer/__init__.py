"""One functional Transformer for every family: train, resume and generate in JAX, in the published layout."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxformer.config import ModelConfig
    from jaxformer.experiment import Experiment
    from jaxformer.fitting import Run, fit
    from jaxformer.generation import Generated, Greedy, Sample, generate, stream_tokens
    from jaxformer.nn.model import Model, Output
    from jaxformer.pipelines import pipeline
    from jaxformer.sharding import init
    from jaxformer.source import from_pretrained, load_adapter, push_to_hub, save_adapter, save_pretrained
    from jaxformer.stream_text import stream

_HOMES = {
    "Experiment": "experiment",
    "Generated": "generation",
    "Greedy": "generation",
    "Model": "nn.model",
    "ModelConfig": "config",
    "Output": "nn.model",
    "Run": "fitting",
    "Sample": "generation",
    "fit": "fitting",
    "from_pretrained": "source",
    "generate": "generation",
    "init": "sharding",
    "load_adapter": "source",
    "pipeline": "pipelines",
    "push_to_hub": "source",
    "save_adapter": "source",
    "save_pretrained": "source",
    "stream": "stream_text",
    "stream_tokens": "generation",
}

__version__ = "0.1.0"
__all__ = [
    "Experiment",
    "Generated",
    "Greedy",
    "Model",
    "ModelConfig",
    "Output",
    "Run",
    "Sample",
    "__version__",
    "fit",
    "from_pretrained",
    "generate",
    "init",
    "load_adapter",
    "pipeline",
    "push_to_hub",
    "save_adapter",
    "save_pretrained",
    "stream",
    "stream_tokens",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: one package of ours is not all of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxformer' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    value = getattr(importlib.import_module(f"jaxformer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
