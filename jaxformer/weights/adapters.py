"""Adapters in the layout of the package peft: adapter_config.json and adapter_model.safetensors. R rank.

The trees are those of jaxformer.lora: under the path of each module a [*stacked, in, R], b [*stacked, R, out] and
scale [*stacked]. Published is lora_A [R, in], lora_B [out, R], and alpha = scale * R.
"""

import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxformer import lora, tree
from jaxformer.names import Row
from jaxformer.weights import convert, hub, layout
from jaxformer.weights.mapped import open_safetensors

CONFIG, TENSORS = hub.ADAPTER
BASE, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
RANKS = "ranks"
"""Key in the metadata of the tensors: {published product: the rank of each of its parts}, as JSON, where the parts
have adapters of their own."""
READS = ("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights", "bias")
# What is adapted, of what rank and what was trained with it show in the tensors. The others say where things come
# from, or act before training alone.
MAY_BE = (
    *("r", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "fan_in_fan_out", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "megatron_core", "eva_config", "qalora_group_size", "runtime_config"),
)
FROM_NOTHING = (None, True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin an adapter that leave its base as it was."""
REPEATED, NESTED = re.compile(r"[*+?{]"), re.compile(r"\)[*+?{]")
"""What a pattern of names may have twice, and not at all."""
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Product:
    """A published product, by the rows of our kernels that are its parts."""

    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """As published, with "{layer}" where there is one for each."""
        return _module(self.rows[0].published)

    def spelled(self, shapes: Shapes) -> dict[tuple[int, ...], list[str]]:
        """{place in the stacked axes: names that it may have}."""
        row = self.rows[0]
        stacked = shapes[row.path][: len(row.stacked)]
        return {at: [_module(name) for name in row.spelled(at)] for at in np.ndindex(stacked)}

    def sizes(self, shapes: Shapes) -> tuple[tuple[int, ...], int, list[tuple[int, ...]]]:
        """(stacked axes, inputs, axes of outputs of each part)."""
        row, shape = self.rows[0], shapes[self.rows[0].path]
        stacked = len(row.stacked)
        outputs = [shapes[row.path][stacked + row.inputs :] for row in self.rows]
        return shape[:stacked], math.prod(shape[stacked : stacked + row.inputs]), outputs

    def factors(self) -> list[Row]:
        """For each part how b [R, *out] stands in the published one."""
        return [Row("b", "B", "out_in", 1, row.part, (), row.within_heads, row.pairs) for row in self.rows]


def read(
    folder: Path, rows: Sequence[Row], shapes: Shapes, prefix: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the adapter, in float32; the parameters of heads that were saved with it, as stored).

    `rows` and `shapes` are those of all parameters, by path. Where no name begins with `prefix`, names are read
    without it. The adapter of a product that is several kernels of ours becomes one of each, their `a` equal. A
    layer that has none, or one of lower rank, gets zeros in place of what it lacks: training leaves them zeros.

    Raises FileNotFoundError for a missing file, and a ValueError that lists every setting, or every tensor, that
    cannot be expressed.
    """
    config = hub.read_json(folder / CONFIG)
    _check(folder / CONFIG, config)
    if not (folder / TENSORS).is_file():
        raise FileNotFoundError(f"{folder}: {TENSORS} is not there")
    opened, metadata = open_safetensors(folder / TENSORS)
    tensors = {name.removeprefix(BASE): tensor[...] for name, tensor in opened.items()}
    rows = rows if any(name.startswith(prefix) for name in tensors) else _without(prefix, rows)
    ranks = _ranks(metadata.get(RANKS, "{}"))
    adapter: dict[str, Any] = {}
    wrong: list[str] = []
    for product in _products(rows):
        found = _found(product, shapes, tensors)
        misfits = [line for at in found.values() for line in _misfits(product, shapes, *at)]
        wrong += misfits
        if found and not misfits:
            adapter |= _ours(product, shapes, found, config, ranks.get(product.name))
    own = [row for row in rows if row.path.startswith(convert.HEADS) and row.published in tensors]
    wrong += [f"{name}: unknown" for name in tensors.keys() - {row.published for row in own}]
    if wrong:
        lines = "\n".join(f"  - {line}" for line in sorted(wrong))
        raise ValueError(f"{folder / TENSORS}: these are of no adapter or head of this architecture:\n{lines}")
    asked = {row.path: jax.ShapeDtypeStruct(shapes[row.path], np.float32) for row in own}
    heads = convert.load(own, tree.unflatten(asked), tensors)
    return tree.unflatten({path: jnp.asarray(leaf) for path, leaf in adapter.items()}), heads


def write(
    folder: Path,
    rows: Sequence[Row],
    shapes: Shapes,
    adapter: Mapping[str, Any],
    heads: Mapping[str, Any],
    prefix: str = "",
    **about: Any,
) -> None:
    """Writes an adapter, and parameters of heads that were trained with it; `read` gives back the same bits.

    `rows` and `shapes` as for `read`; published names lose `prefix`. Adapters of kernels that are one published
    product become one, whose rank is the sum of theirs. `about` are further settings, as peft calls them.

    Raises a ValueError that lists the modules and heads which are not published so.
    """
    rows = _without(prefix, rows)
    modules: dict[str, dict[str, np.ndarray]] = {}
    for path, leaf in tree.flatten(adapter).items():
        module, _, name = path.rpartition("/")
        modules.setdefault(f"{module}/kernel", {})[name] = np.asarray(leaf)
    flat = tree.flatten(heads)
    own = [row for row in rows if row.path in flat and row.path.startswith(convert.HEADS)]
    products = [product for product in _products(rows) if any(row.path in modules for row in product.rows)]
    known = {row.path for product in products for row in product.rows} | {row.path for row in own}
    if wrong := sorted((modules.keys() | flat.keys()) - known):
        raise ValueError(f"an adapter's folder cannot hold these, only kernels and heads: {', '.join(wrong)}")
    if not modules:
        raise ValueError("this adapter holds nothing")
    tensors: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, float]] = {}
    ranks: dict[str, list[int]] = {}
    for product in products:
        ones = [modules.get(row.path) for row in product.rows]
        a, b, scale, own_ranks = _theirs(product, shapes, ones)
        ranks |= {product.name: own_ranks} if own_ranks else {}
        for at, (name, *_) in product.spelled(shapes).items():
            tensors |= {name + A: a[at].T, name + B: layout.join(product.factors(), [part[at] for part in b])}
            sizes[name] = a.shape[-1], _short(scale[at], a.shape[-1])
    rates = [_short(one["dropout"].max(), 1) for one in modules.values() if "dropout" in one]
    config = _config(products, rows, shapes, sizes) | {
        "lora_dropout": max(rates, default=0.0),
        "modules_to_save": sorted({_module(row.published) for row in own}) or None,
    }
    tensors |= convert.export(own, heads)
    _save(folder, config | about, {BASE + name: tensor for name, tensor in tensors.items()}, ranks)


def _save(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], ranks: Mapping[str, Any]) -> None:
    """Whoever finds the config finds the tensors that belong to it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    metadata = {"format": "pt"} | ({RANKS: json.dumps(ranks)} if ranks else {})
    part = folder / f".{TENSORS}.new"
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, part, metadata)
    part.replace(folder / TENSORS)
    hub.write_json(folder / CONFIG, dict(sorted(config.items())))


def _products(rows: Sequence[Row]) -> list[Product]:
    """Every product that can have an adapter."""
    fused: dict[str, list[Row]] = {}
    for row in rows:
        if row.path.endswith("/kernel") and "{expert}" not in row.published:
            fused.setdefault(row.published, []).append(row)
    return [Product(tuple(sorted(same, key=lambda row: row.part or (0, 1, 1)))) for same in fused.values()]


def _module(published: str) -> str:
    return published.removesuffix(".weight")


def _without(prefix: str, rows: Sequence[Row]) -> list[Row]:
    """The rows with names that do not begin with the prefix."""
    cut = lambda name: name.removeprefix(prefix)
    return [replace(row, published=cut(row.published), also=tuple(map(cut, row.also))) for row in rows]


# Reading


def _check(path: Path, config: Mapping[str, Any]) -> None:
    """Raises a ValueError that names every setting that cannot be expressed; one that is not set says nothing."""
    wrong = [name for name, value in config.items() if value and name not in (*READS, *MAY_BE)]
    wrong += [name for name, only in (("peft_type", "LORA"), ("bias", "none")) if config.get(name, only) != only]
    if config.get("init_lora_weights") not in FROM_NOTHING:  # it began by changing the base
        wrong.append("init_lora_weights")
    numbers = {"lora_alpha": [config.get("lora_alpha")], "lora_dropout": [config.get("lora_dropout") or 0]}
    if not isinstance(patterns := _patterns(config), dict):
        wrong, patterns = [*wrong, "alpha_pattern"], {}
    numbers["alpha_pattern"] = list(patterns.values())
    wrong += [name for name, held in numbers.items() if not all(_is_number(value) for value in held)]
    try:
        re.compile("|".join(patterns))
    except (re.error, RecursionError, OverflowError):
        wrong.append("alpha_pattern")
    wrong += ["alpha_pattern" for pattern in patterns if NESTED.search(pattern) or _choices(pattern) > 16]
    if wrong:
        lines = "\n".join(
            f"  - {name}={reprlib.repr(config.get(name))} is not supported" for name in sorted(set(wrong))
        )
        raise ValueError(f"{path}: this adapter cannot be expressed:\n{lines}")


def _choices(pattern: str) -> int:
    """About the logarithm of the steps that a search for it may take in a name: else one may never end."""
    return 6 * len(REPEATED.findall(pattern)) + pattern.count("|")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**31  # False of nan too


def _patterns(config: Mapping[str, Any]) -> Any:
    return config.get("alpha_pattern") or {}


def _ranks(metadata: str) -> dict[str, list[int]]:
    """What RANKS says; nothing where that is not understood: one a for all parts computes the same."""
    try:
        found = json.loads(metadata)
        return {name: [int(rank) for rank in ranks] for name, ranks in found.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def _found(product: Product, shapes: Shapes, tensors: dict[str, np.ndarray]) -> dict[tuple[int, ...], Any]:
    """{place in the stacked axes: (name, A, B or None)}, taken out of the tensors."""
    found = {}
    for at, names in product.spelled(shapes).items():
        for name in names:
            if name + A in tensors:
                found[at] = name, tensors.pop(name + A), tensors.pop(name + B, None)
    return found


def _misfits(product: Product, shapes: Shapes, name: str, a: np.ndarray, b: np.ndarray | None) -> list[str]:
    _, inputs, outputs = product.sizes(shapes)
    rank = a.shape[0] if a.ndim else 0
    wanted = (rank, inputs), layout.published_shape(product.factors()[0], (rank, *outputs[0]))
    lines = []
    for end, tensor, shape in ((A, a, wanted[0]), (B, b, wanted[1])):
        if tensor is None or tensor.shape != shape or 0 in shape or str(tensor.dtype) not in convert.DTYPES:
            there = "none" if tensor is None else f"{tensor.shape} {tensor.dtype}"
            lines.append(f"{name}{end}: expected {shape} of floats, found {there}")
    return lines


def _ours(
    product: Product,
    shapes: Shapes,
    found: Mapping[tuple[int, ...], tuple[str, np.ndarray, np.ndarray]],
    config: Mapping[str, Any],
    ranks: list[int] | None,
) -> dict[str, np.ndarray]:
    """The leaves of the product's parts by their paths."""
    layers, inputs, outputs = product.sizes(shapes)
    most = max(len(a) for _, a, _ in found.values())
    a = np.zeros((*layers, inputs, most), np.float32)
    bs = [np.zeros((*layers, most, *sizes), np.float32) for sizes in outputs]
    scale = np.full(layers, _scale(config, "", most), np.float32)
    for at, (name, their_a, their_b) in found.items():
        rank = len(their_a)
        a[at][:, :rank] = their_a.T
        scale[at] = _scale(config, name, rank)
        for row, b, sizes in zip(product.factors(), bs, outputs, strict=True):
            shape = rank, *sizes
            layout.fill(b[at][:rank], row, shape, their_b, [range(size) for size in shape])
    if ranks is None or len(ranks) != len(bs) or sum(ranks) != most or min(ranks) < 0:
        starts, ranks = [0] * len(bs), [most] * len(bs)
    else:
        starts = [sum(ranks[:i]) for i in range(len(ranks))]
    leaves: dict[str, np.ndarray] = {}
    for row, b, start, rank in zip(product.rows, bs, starts, ranks, strict=True):
        if rank == 0:
            continue
        module, part = row.path.removesuffix("/kernel"), slice(start, start + rank)
        leaves[f"{module}/a"] = a[..., part]
        leaves[f"{module}/b"] = b.reshape(*layers, most, -1)[..., part, :]
        leaves[f"{module}/scale"] = scale
        if config.get("lora_dropout") and module != lora.OUTPUT:
            leaves[f"{module}/dropout"] = np.full(layers, config["lora_dropout"], np.float32)
    return leaves


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """What the product of the factors is multiplied by."""
    found = (alpha for end, alpha in _patterns(config).items() if re.fullmatch(rf"(.*\.)?({end})", name))
    alpha = next(found, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


# Writing


def _theirs(
    product: Product, shapes: Shapes, ones: Sequence[dict[str, np.ndarray] | None]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, list[int] | None]:
    """(a [*stacked, in, R], b [*stacked, R, *out] of each part, scale, the parts' own ranks where they share no a).

    Parts with adapters of their own stand side by side in a, each against zeros in the others' b.
    """
    layers, _, outputs = product.sizes(shapes)
    given = [one for one in ones if one is not None]
    first = given[0]
    alike = all(np.array_equal(one[name], first[name]) for one in given for name in ("a", "scale"))
    shared = alike and len(given) == len(ones)
    ranks = [0 if one is None else one["a"].shape[-1] for one in ones]
    a = first["a"] if shared else np.concatenate([one["a"] for one in given], -1)
    b = []
    for i, (one, sizes) in enumerate(zip(ones, outputs, strict=True)):
        whole = np.zeros((*layers, a.shape[-1], math.prod(sizes)), first["b"].dtype)
        if one is not None:
            start = 0 if shared else sum(ranks[:i])
            factor = (one["scale"] / first["scale"])[..., None, None]  # 1 where all have one alpha
            whole[..., start : start + ranks[i], :] = one["b"] * factor
        b.append(whole.reshape(*layers, a.shape[-1], *sizes))
    return a, b, first["scale"], None if shared else ranks


def _config(
    products: Sequence[Product], rows: Sequence[Row], shapes: Shapes, sizes: Mapping[str, tuple[int, float]]
) -> dict[str, Any]:
    """What adapter_config.json says of {name: (rank, alpha)}."""
    targets = {name for product in products for name in _targets(product, products, rows, shapes)}
    rank, alpha = (Counter(values).most_common(1)[0][0] for values in zip(*sizes.values(), strict=True))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: own for name, (own, _) in sizes.items() if own != rank},
        "alpha_pattern": {name: own for name, (_, own) in sizes.items() if own != alpha},
        "target_modules": sorted(targets),
        "fan_in_fan_out": any(product.rows[0].layout == "in_out" for product in products),
    }


def _targets(product: Product, products: Sequence[Product], rows: Sequence[Row], shapes: Shapes) -> list[str]:
    """The shortest end of its name that no module without an adapter shares; else its name in every layer."""
    others = {_module(row.published) for row in rows} - {each.name for each in products}
    words = product.name.rpartition("{layer}.")[2].split(".")
    for i in reversed(range(len(words))):
        end = ".".join(words[i:])
        if not any(f".{other}".endswith(f".{end}") for other in others):
            return [end]
    return [names[0] for names in product.spelled(shapes).values()]


def _short(scale: np.ndarray, rank: int) -> float:
    """The alpha of a scale and a rank, in few digits where they give the same scale."""
    alpha = float(scale) * rank
    if np.float32(round(alpha, 4) / rank) == scale:
        alpha = round(alpha, 4)
    return int(alpha) if alpha.is_integer() else alpha
