"""Vectors, and what lies near what: of a vocabulary, of texts, of anything. N vectors, D width, K dimensions."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

VECTORS, METADATA, CONFIG = "vectors.tsv", "metadata.tsv", "projector_config.pbtxt"


@struct.dataclass
class Pca:
    """Vectors as their principal components see them (Pearson, 1901): `points @ axes + mean` is nearest to them."""

    points: Array
    """[N, K]."""
    axes: Array
    """[K, D], of length 1 and at right angles; the largest entry of each is positive."""
    mean: Array
    """[D]."""
    share: Array
    """[K], how much of the whole variance lies along each axis."""


def neighbours(vectors: Array, queries: Array, count: int = 10) -> tuple[Array, Array]:
    """(rows of `vectors` int [..., K], their cosines float32 [..., K]) nearest to `queries` [..., D], nearest first.

    `vectors` [N, D] may be `params["embed"]["embedding"]`, and a query one of its rows: it finds itself first.
    A vector of zeros has the cosine 0 with all. Raises ValueError for widths that differ.
    """
    if vectors.ndim != 2 or vectors.shape[1] != queries.shape[-1]:
        raise ValueError(f"expected vectors [N, D] and queries [..., D], got {vectors.shape} and {queries.shape}")
    cosines = _product(_directions(queries), _directions(vectors).T)
    cosines, rows = jax.lax.top_k(cosines, min(count, len(vectors)))
    return rows, cosines


def pca(vectors: Array, dimensions: int = 2) -> Pca:
    """The principal components of `vectors` [N, D], those of most variance first. Pure, the same at every call.

    Raises ValueError for more dimensions than there are vectors, or than they have.
    """
    if vectors.ndim != 2 or not 1 <= dimensions <= min(vectors.shape):
        raise ValueError(
            f"{dimensions} dimensions of vectors {vectors.shape}: expected vectors [N, D], and dimensions from 1 to "
            "the smaller of N and D"
        )
    x_ND = jnp.asarray(vectors, jnp.float32)
    mean_D = x_ND.mean(0)
    _, values, axes = jnp.linalg.svd(x_ND - mean_D[None], full_matrices=False)
    axes_KD = axes[:dimensions]
    largest_K1 = jnp.take_along_axis(axes_KD, jnp.abs(axes_KD).argmax(1, keepdims=True), axis=1)
    axes_KD *= jnp.where(largest_K1 < 0, -1, 1)  # a decomposition may turn any axis round
    variances = jnp.square(values)
    share = variances[:dimensions] / jnp.maximum(variances.sum(), jnp.finfo(jnp.float32).tiny)
    return Pca(_product(x_ND - mean_D[None], axes_KD.T), axes_KD, mean_D, share)


def export(
    folder: str | Path,
    vectors: Any,
    labels: Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
    name: str = "embedding",
) -> None:
    """Write `vectors` [N, D] for the projector of TensorBoard: `tensorboard --logdir FOLDER`, PROJECTOR.

    `labels` are N texts, `columns` more about each vector: {name: N values}. Numbers are written with the nine digits
    that say a float32 exactly, texts as `visible` gives them: tabs and line breaks would end a field, and blank lines
    are skipped. Raises ValueError where counts differ.
    """
    x_ND, table = np.asarray(vectors, np.float32), {"label": labels} | dict(columns or {})
    counts = {f"values of {key!r}": len(values) for key, values in table.items()}
    wrong = [f"{count} {what}" for what, count in counts.items() if x_ND.ndim == 2 and count != len(x_ND)]
    if x_ND.ndim != 2 or x_ND.shape[1] < 2 or wrong:
        raise ValueError(
            f"vectors {x_ND.shape}: expected [N, D], D at least 2" + "".join(f"; {each}" for each in wrong)
        )
    rows = [[visible(str(value)) for value in row] for row in zip(*table.values(), strict=True)]
    # The projector takes the first line for names where it has a tab, and else for the first label.
    header = [[*map(visible, table)]] if len(table) > 1 else []
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / VECTORS, _table([[f"{value:.9g}" for value in row] for row in x_ND.tolist()]))
    _write(folder / METADATA, _table(header + rows))
    paths = {"tensor_name": name, "tensor_path": VECTORS, "metadata_path": METADATA}
    fields = "".join(f"  {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in paths.items())
    _write(folder / CONFIG, f"embeddings {{\n{fields}}}\n")


def visible(text: str) -> str:
    """The text, what cannot be seen in it as a Python string says it, such as \\n; a blank one stands in quotes."""
    told = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return told if told.strip() else repr(told)


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def _write(path: Path, text: str) -> None:
    """All of it or nothing: a TensorBoard that is open reads along."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(text, encoding="utf-8", newline="\n")
    os.replace(beside, path)


def _product(a: Array, b: Array) -> Array:
    """In float32 where an accelerator would multiply in less, and find a vector beside itself."""
    return jnp.matmul(a, b, precision="highest")


def _directions(vectors: Array) -> Array:
    """Each vector over its length."""
    x = jnp.asarray(vectors, jnp.float32)
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(length > 0, length, 1)
