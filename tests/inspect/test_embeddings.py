"""Laws of vectors: what is nearest, what a plane loses, and what is read back of what was written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.inspect.embeddings import export, neighbours, pca, visible

VECTORS = jax.random.normal(jax.random.key(0), (50, 8))


def test_the_nearest_of_a_row_is_itself_and_cosines_are_those_of_the_angles():
    rows, cosines = jax.jit(neighbours, static_argnames="count")(VECTORS, VECTORS, count=50)
    np.testing.assert_array_equal(rows[:, 0], np.arange(50))
    np.testing.assert_allclose(cosines[:, 0], 1, atol=1e-6)
    assert (np.sort(rows, axis=1) == np.arange(50)).all()
    assert (np.diff(cosines, axis=1) <= 0).all()
    a, b = VECTORS[3], VECTORS[rows[3, 7]]
    np.testing.assert_allclose(cosines[3, 7], a @ b / np.linalg.norm(a) / np.linalg.norm(b), rtol=1e-5)


def test_length_and_kind_of_number_change_no_neighbour_and_zeros_are_near_nothing():
    longer = (VECTORS * jnp.arange(1, 51)[:, None]).at[4].set(0)
    rows, cosines = neighbours(longer, VECTORS[:3], 40)
    np.testing.assert_array_equal(rows[:, :5], neighbours(VECTORS.at[4].set(0), 9 * VECTORS[:3], 5)[0])
    assert np.isfinite(cosines).all()
    assert not neighbours(longer, jnp.zeros(8))[1].any()
    whole = jnp.array([[3, 0], [0, 2]])
    assert neighbours(whole, jnp.array([1, 0]), 10)[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"got \(50, 8\) and \(7,\)"):
        neighbours(VECTORS, jnp.ones(7))


def test_a_plane_loses_nothing_and_its_axes_are_the_same_whichever_way_it_is_turned():
    plane = jax.random.normal(jax.random.key(1), (40, 2)) @ VECTORS[:2] + VECTORS[2][None]
    found = jax.jit(pca, static_argnames="dimensions")(plane, dimensions=2)
    np.testing.assert_allclose(found.points @ found.axes + found.mean[None], plane, atol=1e-5)
    np.testing.assert_allclose(found.share.sum(), 1, atol=1e-6)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(2), atol=1e-5)
    apart = lambda x: np.linalg.norm(np.asarray(x)[:, None] - np.asarray(x), axis=-1)
    np.testing.assert_allclose(apart(found.points), apart(plane), atol=1e-4)
    np.testing.assert_allclose(pca(plane[::-1], 2).axes, found.axes, atol=1e-5)
    np.testing.assert_allclose(pca(-plane, 2).axes, found.axes, atol=1e-5)
    assert (np.take_along_axis(found.axes, np.abs(found.axes).argmax(1)[:, None], axis=1) > 0).all()


def test_components_come_by_their_variance():
    found = pca(VECTORS * jnp.array([1, 9, 1, 1, 4, 1, 1, 1])[None], 3)
    assert np.abs(found.axes).argmax(1)[:2].tolist() == [1, 4]
    shares = np.asarray(found.share)
    assert shares[0] > shares[1] > shares[2] > 0
    np.testing.assert_allclose(found.points.var(0), np.sort(found.points.var(0))[::-1])
    assert not pca(jnp.ones((3, 2)), 2).share.any()
    with pytest.raises(ValueError, match=r"9 dimensions of vectors \(50, 8\)"):
        pca(VECTORS, 9)


def test_what_is_exported_is_read_back_to_the_last_bit(tmp_path):
    drawn = np.concatenate([np.asarray(VECTORS), [[1e-30, -0.0, 1e30, 1 / 3, 16777217, 0.1, -5e-324, 1]]])
    labels = [f"piece {i}" for i in range(51)]
    export(tmp_path / "new", drawn, labels)
    read = np.loadtxt(tmp_path / "new/vectors.tsv", np.float32, delimiter="\t")
    np.testing.assert_array_equal(read, drawn.astype(np.float32))
    assert (tmp_path / "new/metadata.tsv").read_text().split("\n") == [*labels, ""]
    assert (tmp_path / "new/projector_config.pbtxt").read_text() == (
        'embeddings {\n  tensor_name: "embedding"\n  tensor_path: "vectors.tsv"\n  metadata_path: "metadata.tsv"\n}\n'
    )
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_every_label_is_one_line_and_none_is_blank_whatever_is_in_it(tmp_path):
    labels = ["\t", "a\tb", "\n", "c\r\nd", " ", "", "\u2028", "日本", "\\", "\x00", "a b"]
    export(tmp_path, VECTORS[:11], labels)
    lines = (tmp_path / "metadata.tsv").read_bytes().decode().split("\n")
    told = [r"\t", r"a\tb", r"\n", r"c\r\nd", "' '", "''", r"\u2028", "日本", "\\", r"\x00", "a b"]
    assert lines == [*told, ""]
    assert [visible(label) for label in labels] == told


def test_columns_have_names_only_where_there_are_several(tmp_path):
    export(tmp_path, VECTORS[:2], ["a", "b"], {"id": [5, 6], "kind": ["", "x\ty"]}, name="tokens")
    expected = [["label", "id", "kind"], ["a", "5", "''"], ["b", "6", r"x\ty"]]
    assert [line.split("\t") for line in (tmp_path / "metadata.tsv").read_text().splitlines()] == expected
    assert 'tensor_name: "tokens"' in (tmp_path / "projector_config.pbtxt").read_text()


def test_counts_that_differ_are_said_together_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"\(50, 8\): .*; 1 values of 'label'; 2 values of 'id'"):
        export(tmp_path / "new", VECTORS, ["a"], {"id": [1, 2]})
    with pytest.raises(ValueError, match="D at least 2"):
        export(tmp_path / "new", VECTORS[:, :1], ["a"] * 50)
    assert not (tmp_path / "new").exists()
