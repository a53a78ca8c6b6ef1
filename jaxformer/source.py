"""Models from where they are kept, and back: published folders, hub ids, and the folders of our own runs."""

import dataclasses
import logging
import os
import reprlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxformer import codec, families, lora, sharding, tree
from jaxformer.config import Card, ModelConfig, Sentences
from jaxformer.families import gguf_rows, gguf_tokenizers, heads
from jaxformer.nn.linear import Quantized
from jaxformer.nn.model import Model
from jaxformer.text.gguf_tokenizer import gguf_tokenizer
from jaxformer.text.tokenizer import Tokenizer, load_tokenizer
from jaxformer.train.checkpoint import Checkpoints
from jaxformer.weights import adapters, convert, gguf, hub, model_card, sentence_transformers

logger = logging.getLogger(__name__)
Loaded = tuple[Model, dict[str, Any], Tokenizer | None]


@dataclasses.dataclass(frozen=True)
class Sketch:
    """A published model of which no tensor was read."""

    model: Model
    dtype: str
    """What its parameters are stored as."""
    tokenizer: Tokenizer | None


def from_pretrained(
    source: str | os.PathLike[str],
    head: str | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
    revision: str | None = None,
) -> Loaded:
    """(model, params, tokenizer) of a folder in the published layout, a hub id, a .gguf file, or a run's folder.

    Of a run it takes `model/`, else the newest good checkpoint; of an adapter's folder in peft's layout the model
    that it names, the adapter merged into it. `head` asks for another head than the published one, as far as the
    family has it: "lm", "embed" (none), "classify:58" and "tag:9" with a number of labels, "answer";
    which parameters of heads were drawn anew and which tensors dropped is logged. `dtype` is what parameters are
    stored as (a name or a jax dtype; None: as in the file, and export is then bit-exact; float32 of a .gguf).
    With a mesh each shard is read for itself and put where `sharding.RULES` says. The tokenizer is None where
    there is none of a known kind.

    Raises FileNotFoundError where there is no such thing, and a ValueError that lists every attribute of
    config.json and every tensor that does not fit.
    """
    if dtype is not None:
        dtype = convert.check_dtype(dtype)
    if Path(source).suffix == gguf.SUFFIX and not Path(source).expanduser().is_dir():
        return _gguf(Path(source).expanduser(), head, dtype, mesh)
    folder = hub.resolve(source, revision)
    if (folder / hub.CONFIG).is_file():
        return _published(folder, head, dtype, mesh)
    if (folder / "model" / hub.CONFIG).is_file():
        return _published(folder / "model", head, dtype, mesh)
    if (folder / adapters.CONFIG).is_file():
        return _adapted(folder, head, dtype, mesh)
    if len(only := sorted(folder.glob(f"*{gguf.SUFFIX}"))) == 1:
        return _gguf(only[0], head, dtype, mesh)
    if (folder / "checkpoints").is_dir():
        if head is not None:
            raise ValueError(f"head={head!r}: {folder} is a run that has not ended; its model has the head it trains")
        return _checkpoint(folder, dtype, mesh)
    raise FileNotFoundError(
        f"{folder}: no model: looked for {hub.CONFIG} (the published layout), a single {gguf.SUFFIX} file, "
        f"model/ and checkpoints/ (a run), {adapters.CONFIG} (an adapter)"
    )


def sketched(source: str | os.PathLike[str], head: str | None = None) -> Sketch:
    """What `from_pretrained` would give of a folder in the published layout, or of a run's: its tensors are not read.

    Raises FileNotFoundError where there is no such folder, ValueError for attributes that cannot be expressed.
    """
    folder = Path(source).expanduser()
    folder = next((place for place in (folder, folder / "model") if (place / hub.CONFIG).is_file()), folder)
    if not (folder / hub.CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: no {hub.CONFIG}, and none in model/: a plan reads this alone of a model")
    found = hub.read(folder)
    model, family = _described(folder, found, head, None)
    return Sketch(model, found.config.get(_dtype_attribute(found.config)) or "float32", _tokenizer(folder, family))


def save_pretrained(
    folder: str | os.PathLike[str],
    model: Model,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    max_shard_size: int | str = "5GB",
    adapter: Mapping[str, Any] | None = None,
) -> None:
    """Writes the published layout: config.json, generation_config.json, safetensors, the tokenizer's files.

    What was read goes back out as it was. A model from scratch gets the config.json of the first family that
    expresses it, with the tokenizer's special ids; what its card holds comes on top. The folder appears whole
    or not at all, in place of a published model that stood there. An `adapter` is merged into what is written;
    `save_adapter` writes it alone.

    Raises a ValueError where no family expresses the architecture or the card speaks of another one, and
    FileExistsError where the folder holds anything else: that is never deleted.
    """
    if adapter is not None:
        params = lora.merge(params, adapter)
    if few := [path for path, leaf in tree.flatten(params).items() if isinstance(leaf, Quantized)]:
        raise ValueError(f"quantized kernels are not published: {', '.join(few)}; give those they were made of")
    config, generation = _attributes(model, params, tokenizer)
    family = families.family(config["model_type"])
    if family.config(config) != model.config:
        raise ValueError(
            "config.json on this model's card describes another architecture than the model has: "
            "give Model(config, card=Card()) to publish the one it has"
        )
    tensors = families.as_published(config, convert.export(family.names(model.config), params))
    with hub.replacing(Path(folder).expanduser().resolve()) as part:
        hub.write(part, config, generation, tensors, max_shard_size)
        if tokenizer is not None:
            tokenizer.save(part)
        if model.card.sentences is not None:
            sentence_transformers.write(part, model.card.sentences, model.config.width)


def load_adapter(
    folder: str | os.PathLike[str], model: Model, params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, adapter) of a folder in peft's layout, or a hub id, for a model that has such parameters.

    The adapter is the collection "lora", float32. `params` come back as they are, but for heads that were trained
    and saved with the adapter.

    Raises FileNotFoundError for a missing file, and a ValueError that lists every setting, or every tensor, that
    cannot be expressed.
    """
    family = families.family(_config(model)["model_type"])
    flat = tree.flatten(params)
    shapes = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    rows = family.names(model.config)
    adapter, heads = adapters.read(hub.resolve(folder), rows, shapes, family.PREFIX)
    return tree.unflatten(flat | tree.flatten(heads)), adapter


def save_adapter(
    folder: str | os.PathLike[str],
    model: Model,
    adapter: Mapping[str, Any],
    heads: Mapping[str, Any] | None = None,
    base: str | None = None,
) -> None:
    """Writes an adapter as a small folder in peft's layout, which peft reads; `load_adapter` gives back its bits.

    `heads`: parameters of heads that were trained with it, {"heads": {...}} as in the model's. `base`: the hub id
    or folder of the model that it belongs to.

    Raises a ValueError that lists the modules and heads which are not published so.
    """
    config = _config(model)
    family = families.family(config["model_type"])
    probe = f"{family.PREFIX}x"
    bare = probe not in families.as_published(config, {probe: np.zeros(0, np.float32)})
    shapes = {path: leaf.shape for path, leaf in tree.flatten(sharding.abstract_params(model)).items()}
    adapters.write(
        Path(folder).expanduser(),
        family.names(model.config),
        shapes,
        adapter,
        heads or {},
        family.PREFIX if bare else "",
        base_model_name_or_path=base,
        task_type=_task(model.config),
    )


def push_to_hub(
    hub_id: str,
    model: Model,
    params: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    *,
    about: str = "",
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload the model",
    max_shard_size: int | str = "5GB",
) -> str:
    """Publishes on the hub what `save_pretrained` writes, with a model card; returns the address of the commit.

    The repository is made where there is none (`private` then). Older tensors of the model that stood there go
    in the same commit; a README.md that stands there stays. `about` is the author's own text in the card that is
    generated, `license` its identifier ("apache-2.0"). `revision`: a branch; None is the main one.

    Raises what `save_pretrained` raises before anything is sent, and a ConnectionError where the hub refuses.
    """
    hub.check_id(hub_id)
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held) / "model"
        save_pretrained(folder, model, params, tokenizer, max_shard_size)
        published = hub.read_json(folder / hub.CONFIG)
        card = dataclasses.replace(model.card, model_type=published["model_type"], config=published)
        readme = model_card.write(hub_id, model.config, card, params, about, license)
        return hub.upload(folder, hub_id, readme, private=private, revision=revision, message=message)


def _published(folder: Path, head: str | None, dtype: Any, mesh: Mesh | None) -> Loaded:
    found = hub.read(folder)
    sentences = sentence_transformers.read(folder) if head in (None, "embed") else None
    model, family = _described(folder, found, head, dtype, sentences)
    params = _filled(
        model,
        family.names(model.config),
        found.tensors,
        (folder, head, dtype, mesh),
        prefix=family.PREFIX,
        ignored=family.IGNORED,
        heads=families.head_tensors(model.card.config),
    )
    return model, params, _tokenizer(folder, family)


def _described(
    folder: Path, found: hub.Published, head: str | None, dtype: Any, sentences: Sentences | None = None
) -> tuple[Model, families.Family]:
    """The model that config.json describes, and its family."""
    try:
        family = families.family(found.config.get("model_type", ""))
        config = families.of_tensors(_asked(found.config, family, head, dtype), found.tensors)
        card = Card(config["model_type"], config, found.generation, sentences)
        return Model(family.config(config), card=card), family
    except ValueError as error:
        raise ValueError(f"{folder / hub.CONFIG}: {error}") from None


def _gguf(path: Path, head: str | None, dtype: Any, mesh: Mesh | None) -> Loaded:
    found = gguf.read(path)
    family = families.family(found.config["model_type"])
    config = _asked(found.config, family, head, dtype)
    try:
        model = Model(family.config(config), card=Card(config["model_type"], config, found.generation))
        tokenizer = gguf_tokenizer(found.metadata, gguf_tokenizers.description(found.metadata))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    rows = families.gguf(model.card.model_type, model.config)
    asked = path, head, dtype, mesh
    params = _filled(model, rows, found.tensors, asked, ignored=gguf_rows.IGNORED, heads=gguf_rows.HEADS)
    return model, params, tokenizer


def _asked(config: Mapping[str, Any], family: families.Family, head: str | None, dtype: Any) -> dict[str, Any]:
    """config.json, of the head and the dtype that are asked for."""
    config = dict(config)
    if dtype is not None:
        config[_dtype_attribute(config)] = str(dtype)
    return config if head is None else heads.with_head(config, family.ARCHITECTURES, head)


def _filled(
    model: Model, rows: Any, tensors: Any, asked: tuple[Path, str | None, Any, Mesh | None], heads: Any, **names: Any
) -> dict[str, Any]:
    """The parameters; heads that no tensor fills are drawn, and it is logged."""
    source, head, dtype, mesh = asked
    shapes = _shapes(model, dtype, mesh)
    heads = None if head is None else heads
    try:
        planned = convert.plan(rows, shapes, tensors, dtype=dtype, heads=heads, **names)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    for what, found in (("drawn anew", planned.fresh), ("dropped", planned.dropped)):
        if found:
            logger.warning("%s, head=%r: %s: %s", source, head, what, ", ".join(found))
    drawn = sharding.init(model, jax.random.key(0), dtype, mesh, only=planned.fresh) if planned.fresh else {}
    return convert.place(planned, shapes, tree.flatten(drawn))


def _adapted(folder: Path, head: str | None, dtype: Any, mesh: Mesh | None) -> Loaded:
    base = hub.read_json(folder / adapters.CONFIG).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{folder / adapters.CONFIG} does not say by base_model_name_or_path what it adapts: read that model, "
            "then load_adapter"
        )
    if not isinstance(base, str) or (Path(base).expanduser() / adapters.CONFIG).is_file():  # it might be itself
        raise ValueError(
            f"{folder / adapters.CONFIG}: base_model_name_or_path={reprlib.repr(base)} names another adapter, or no "
            "model at all: read the model that it adapts, then load_adapter"
        )
    model, params, tokenizer = from_pretrained(base, head, dtype, mesh)
    return model, lora.merge(*load_adapter(folder, model, params)), tokenizer


def _checkpoint(folder: Path, dtype: Any, mesh: Mesh | None) -> Loaded:
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
        card = codec.from_json(meta["card"], Card) if "card" in meta else Card()
        model = Model(codec.from_json(meta["model"], ModelConfig), card=card)
        target = None if dtype is None else _shapes(model, dtype, mesh)
        params = checkpoints.restore_params(target)
    if mesh is not None:
        # device_put takes no sharding over the devices of other processes
        place = lambda leaf, home: jax.make_array_from_callback(leaf.shape, home, np.asarray(leaf).__getitem__)
        params = jax.tree.map(place, params, sharding.shardings(mesh, params))
    family = families.family(card.model_type) if card.model_type else None
    return model, params, _tokenizer(folder / "tokenizer", family)


def _shapes(model: Model, dtype: Any, mesh: Mesh | None) -> dict[str, Any]:
    """Shapes and dtypes of the parameters, and with a mesh where each belongs."""
    shapes = sharding.abstract_params(model, dtype)
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda leaf, home: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home),
        shapes,
        sharding.shardings(mesh, shapes),
    )


def _tokenizer(folder: Path, family: families.Family | None = None) -> Tokenizer | None:
    try:
        return load_tokenizer(folder, None if family is None else family.TOKENIZER)
    except FileNotFoundError:
        return None


def _attributes(
    model: Model, params: Mapping[str, Any], tokenizer: Tokenizer | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config.json, generation_config.json): as they were read, or made for a model from scratch."""
    card = model.card
    if card.model_type:
        return card.config, card.generation
    _, config = families.publish(model.config)
    config[_dtype_attribute(config)] = str(jax.tree.leaves(params)[0].dtype)
    ids = {f"{role}_token_id": getattr(tokenizer, role, None) for role in ("bos", "eos", "pad")}
    known = {name: id for name, id in ids.items() if id is not None}
    return ids | config | known | card.config, known | card.generation


def _config(model: Model) -> dict[str, Any]:
    """The config.json that this model was read with, or one that expresses it."""
    return model.card.config if model.card.model_type else families.publish(model.config)[1]


def _task(config: ModelConfig) -> str | None:
    """What peft calls the task of a model; None where it need not know."""
    if config.head is None or config.decoder is None:
        return None
    return "CAUSAL_LM" if config.encoder is None else "SEQ_2_SEQ_LM"


def _dtype_attribute(config: Mapping[str, Any]) -> str:
    """How this config.json names the stored dtype; every version of the reference reads the older name."""
    return "dtype" if "dtype" in config else "torch_dtype"
