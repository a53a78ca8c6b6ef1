"""The layout of the package sentence-transformers: beside a model, how its hidden vectors become one of a text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.config import Sentences
from jaxformer.weights import hub

MODULES, POOLING, NORMALIZE = "modules.json", "1_Pooling", "2_Normalize"
TEXTS, ABOUT = "sentence_bert_config.json", "config_sentence_transformers.json"
CLASS = "sentence_transformers.models."
"""How the class of each module is written; it is read by its last part, which the package's versions share."""
FLAGS: dict[str, str | None] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_weightedmean_tokens": None,
    "pooling_mode_lasttoken": "last",
}
"""Flag -> our name; None is not supported."""
MODES: dict[str, str] = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}
"""The same as later versions have it, in one entry called pooling_mode."""


def read(folder: Path) -> Sentences | None:
    """What the folder says of sentences; None where it has no modules.json.

    Raises a ValueError for a module or a pooling that cannot be expressed, FileNotFoundError for a missing file.
    """
    if not (folder / MODULES).is_file():
        return None
    kinds, paths = _modules(folder / MODULES)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or paths[0] != "":
        listed = ", ".join(f"{kind} in {path!r}" for kind, path in zip(kinds, paths, strict=True))
        raise ValueError(
            f"{folder / MODULES}: expected a Transformer in '', a Pooling and perhaps a Normalize, found {listed}"
        )
    for path in paths[1:]:
        if Path(path).name != path or "\\" in path or path == "..":
            raise ValueError(f"{folder / MODULES}: {path!r} is not the name of a folder in it")
    if len(paths) > 2 and (folder / paths[2] / hub.CONFIG).is_file():
        _check_normalize(folder / paths[2] / hub.CONFIG)
    texts = hub.read_json(folder / TEXTS) if (folder / TEXTS).is_file() else {}
    return Sentences(
        _pooling(folder / paths[1] / hub.CONFIG),
        normalize=len(kinds) > 2,
        length=texts.get("max_seq_length"),
        lowercase=texts.get("do_lower_case", False),
        about=hub.read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {},
    )


def write(folder: Path, sentences: Sentences, width: int) -> None:
    """Writes it beside a published model whose hidden vectors have this width."""
    modules = [("Transformer", ""), ("Pooling", POOLING)] + [("Normalize", NORMALIZE)] * sentences.normalize
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": CLASS + kind} for i, (kind, path) in enumerate(modules)
    ]
    (folder / MODULES).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    (folder / POOLING).mkdir()
    flags = {flag: name == sentences.pooling for flag, name in FLAGS.items()}
    hub.write_json(folder / POOLING / hub.CONFIG, {"word_embedding_dimension": width, **flags})
    hub.write_json(folder / TEXTS, {"max_seq_length": sentences.length, "do_lower_case": sentences.lowercase})
    if sentences.about:
        hub.write_json(folder / ABOUT, sentences.about)


def _modules(path: Path) -> tuple[list[str], list[str]]:
    """(kind, path) of each module."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [each["type"].rpartition(".")[2] for each in listed], [str(each["path"]) for each in listed]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a list of modules, each with a type and a path: {error}") from None


def _pooling(path: Path) -> Any:
    config = hub.read_json(path)
    if "pooling_mode" in config:
        told = config["pooling_mode"]
        wanted = [told] if isinstance(told, str) else list(told)
        found = [MODES.get(mode) for mode in wanted]
    else:
        wanted = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
        found = [FLAGS.get(flag) for flag in wanted] or ["mean"]
    if len(found) != 1 or found[0] is None:
        raise ValueError(f"{path}: pooling by {' and '.join(wanted)} is not supported: one of {', '.join(MODES)} is")
    if config.get("include_prompt", True) is not True:
        raise ValueError(f"{path}: include_prompt={config['include_prompt']!r} is not supported")
    return found[0]


def _check_normalize(path: Path) -> None:
    config: Mapping[str, Any] = hub.read_json(path)
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, "sentence_embedding"):
            raise ValueError(f"{path}: {name}={config[name]!r} is not supported")
