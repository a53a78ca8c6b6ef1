"""The README.md of a published model: what it is and how it is opened."""

from collections.abc import Iterator
from typing import Any

import jax
from huggingface_hub import ModelCardData

from jaxformer.config import Card, ExpertsConfig, ModelConfig, StackConfig

TASKS = {"classify": "text-classification", "tag": "token-classification", "answer": "question-answering"}
"""What the hub calls the task of an extra head."""
OPENED_BY_REFERENCE = """
With transformers:

```python
import transformers

model = transformers.{architecture}.from_pretrained("{hub_id}")
```
"""


def write(
    hub_id: str, config: ModelConfig, card: Card, params: Any, about: str = "", license: str | None = None
) -> str:
    """The whole card: front matter that the hub reads, the author's own text, sizes, and how to load it.

    `card`: of the model as it is published, with its config.json.
    """
    data = ModelCardData(
        library_name="transformers" if card.sentences is None else "sentence-transformers",
        pipeline_tag=_task(config, card),
        tags=["jaxformer", "jax", card.model_type],
        license=license,
    )
    sizes = "\n".join(f"| {name} | {value} |" for name, value in _sizes(config, params))
    architecture = (card.config.get("architectures") or ["AutoModel"])[0]
    parts = (
        f"---\n{data.to_yaml()}\n---\n",
        f"# {hub_id.rpartition('/')[2]}\n",
        f"{about.strip()}\n" if about.strip() else "",
        f"| | |\n|---|---|\n{sizes}\n",
        f"With jaxformer:\n\n```python\nimport jaxformer\n\n"
        f'model, params, tokenizer = jaxformer.from_pretrained("{hub_id}")\n```',
        OPENED_BY_REFERENCE.format(architecture=architecture, hub_id=hub_id),
    )
    return "\n".join(part for part in parts if part)


def _task(config: ModelConfig, card: Card) -> str | None:
    if card.sentences is not None:
        return "sentence-similarity"
    for extra in config.extra:
        if extra.name in TASKS:
            return TASKS[extra.name]
    if config.head is None:
        return "feature-extraction"
    both = config.encoder is not None and config.decoder is not None
    return None if both else "fill-mask" if config.decoder is None else "text-generation"


def _sizes(config: ModelConfig, params: Any) -> Iterator[tuple[str, str]]:
    leaves = jax.tree.leaves(params)
    yield "parameters", f"{sum(leaf.size for leaf in leaves):,}"
    yield "stored as", ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    yield "vocabulary", f"{config.vocab:,}"
    yield "width", f"{config.width:,}"
    for name in ("encoder", "decoder"):
        stack: StackConfig | None = getattr(config, name)
        if stack is not None:
            block = stack.pattern[0]
            yield f"layers of the {name}", str(stack.layers)
            yield f"heads of the {name}", f"{block.attention.heads} ({block.attention.kv_heads} of keys and values)"
            if isinstance(block.mlp, ExpertsConfig):
                yield f"experts of the {name}", f"{block.mlp.experts}, {block.mlp.top_k} for each token"
