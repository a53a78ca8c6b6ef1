import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.nn.visibility import Visibility


def drawn(*rows):
    """A matrix written out: a row a query, `x` where it sees the key."""
    return np.array([[letter == "x" for letter in row.replace(" ", "")] for row in rows])


def one(*values):
    return jnp.array([values])


def flags(text):
    return jnp.array([[letter == "x" for letter in text.replace(" ", "")]])


LITERAL = {
    "everything": (Visibility(), drawn("x x x", "x x x", "x x x")),
    "causal": (Visibility(causal=True), drawn("x . .", "x x .", "x x x")),
    "padding on the right": (Visibility(valid_k=flags("xx.")), drawn("x x .", "x x .", "x x .")),
    "padding on the left, causal": (
        Visibility(causal=True, valid_k=flags(".xx")),
        drawn(". . .", ". x .", ". x x"),
    ),
    "segments": (
        Visibility(segments_q=one(1, 1, 2, 0), segments_k=one(1, 1, 2, 0)),
        drawn("x x . .", "x x . .", ". . x .", ". . . ."),
    ),
    "causal segments": (
        Visibility(causal=True, segments_q=one(1, 1, 2, 2), segments_k=one(1, 1, 2, 2)),
        drawn("x . . .", "x x . .", ". . x .", ". . x x"),
    ),
    "segments of other keys": (
        Visibility(segments_q=one(1, 2, 2), segments_k=one(2, 1, 1, 0)),
        drawn(". x x .", "x . . .", "x . . ."),
    ),
    "causal window": (
        Visibility(causal=True, window=2),
        drawn("x . . .", "x x . .", ". x x .", ". . x x"),
    ),
    "window to both sides": (
        Visibility(window=2),
        drawn("x x . .", "x x x .", ". x x x", ". . x x"),
    ),
    "prefix": (
        Visibility(causal=True, prefix_q=flags("xx.."), prefix_k=flags("xx..")),
        drawn("x x . .", "x x . .", "x x x .", "x x x x"),
    ),
    "prefix in a window": (
        Visibility(causal=True, window=2, prefix_q=flags("xxx."), prefix_k=flags("xxx.")),
        drawn("x x . .", "x x x .", ". x x .", ". . x x"),
    ),
    "prefixes of two segments": (
        Visibility(
            causal=True,
            segments_q=one(1, 1, 2, 2, 2),
            segments_k=one(1, 1, 2, 2, 2),
            prefix_q=flags("xxxx."),
            prefix_k=flags("xxxx."),
        ),
        drawn("x x . . .", "x x . . .", ". . x x .", ". . x x .", ". . x x x"),
    ),
    "two new tokens after two cached ones": (
        Visibility(causal=True, start=jnp.int32(2)),
        drawn("x x x . .", "x x x x ."),
    ),
    "one new token, cached, left padding, window": (
        Visibility(causal=True, window=3, valid_k=flags(".xxxx."), start=jnp.int32(4)),
        drawn(". . x x x ."),
    ),
    "one new token at a row's first slots": (
        Visibility(causal=True, window=3, valid_k=flags(".xxxx."), start=jnp.int32(2)),
        drawn(". x x . . ."),
    ),
}


@pytest.mark.parametrize("name", LITERAL)
def test_the_dense_array_is_the_matrix_drawn_by_hand(name):
    visibility, expected = LITERAL[name]
    seen = visibility.dense(*expected.shape)
    assert seen.dtype == bool
    np.testing.assert_array_equal(seen, expected[None])


def sees(v, b, t, s):
    """The law, one query and one key at a time."""
    difference = (0 if v.start is None else int(v.start)) + t - s
    together = v.prefix_q is not None and bool(v.prefix_q[b, t] and v.prefix_k[b, s])
    return (
        (v.valid_k is None or bool(v.valid_k[b, s]))
        and (v.segments_q is None or (v.segments_q[b, t] == v.segments_k[b, s] != 0))
        and (not v.causal or difference >= 0 or together)
        and (v.window is None or abs(difference) < v.window)
    )


@st.composite
def visibilities(draw):
    queries, keys = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def perhaps(make):
        return make() if draw(st.booleans()) else None

    fields = {"causal": draw(st.booleans()), "window": perhaps(lambda: draw(st.integers(1, 6)))}
    fields["valid_k"] = perhaps(lambda: random.random((2, keys)) < 0.7)
    fields["start"] = perhaps(lambda: np.int32(random.integers(0, keys)))
    if draw(st.booleans()):
        fields |= {
            "segments_q": random.integers(0, 3, (2, queries)),
            "segments_k": random.integers(0, 3, (2, keys)),
        }
    if draw(st.booleans()):
        fields |= {"prefix_q": random.random((2, queries)) < 0.5, "prefix_k": random.random((2, keys)) < 0.5}
    return Visibility(**fields), queries, keys


@settings(max_examples=100, deadline=None, derandomize=True)
@given(visibilities())
def test_the_dense_array_equals_a_loop_over_rows_queries_and_keys(case):
    visibility, queries, keys = case
    slow = np.array([[[sees(visibility, b, t, s) for s in range(keys)] for t in range(queries)] for b in range(2)])
    seen = np.asarray(visibility.dense(queries, keys))
    np.testing.assert_array_equal(np.broadcast_to(seen, slow.shape), slow)
    assert not visibility.sees_all or slow.all()


@pytest.mark.parametrize("name", LITERAL)
def test_a_query_is_sighted_where_its_row_has_a_key(name):
    visibility, expected = LITERAL[name]
    sighted = visibility.sighted(*expected.shape)
    if sighted is None:
        assert expected.any(axis=-1).all()
    else:
        np.testing.assert_array_equal(sighted, expected.any(axis=-1)[None])


@pytest.mark.parametrize("visibility", [Visibility(), Visibility(causal=True), Visibility(causal=True, window=2)])
def test_without_padding_all_queries_are_known_to_be_sighted(visibility):
    assert visibility.sighted(4, 4) is None


def test_it_passes_through_jit_with_its_structure_static():
    @jax.jit
    def dense(visibility):
        assert (visibility.causal, visibility.window, visibility.start) == (True, 2, None)
        return visibility.dense(3, 3)

    visibility = Visibility(causal=True, window=2, valid_k=flags("x.x"))
    np.testing.assert_array_equal(dense(visibility), visibility.dense(3, 3))


@pytest.mark.parametrize("half", ["segments_q", "segments_k", "prefix_q", "prefix_k"])
def test_half_a_pair_is_an_error_that_names_it(half):
    with pytest.raises(ValueError, match=f"got {half} alone"):
        Visibility(causal=True, **{half: jnp.ones((1, 3), jnp.int32)}).dense(3, 3)


@pytest.mark.parity
def test_the_causal_window_is_the_reference_s_and_the_bidirectional_one_is_wider_by_one():
    import torch
    from transformers import masking_utils

    q, k = torch.arange(7)[:, None], torch.arange(7)[None, :]
    causal = masking_utils.sliding_window_causal_mask_function(3)(0, 0, q, k)
    np.testing.assert_array_equal(Visibility(causal=True, window=3).dense(7, 7)[0], causal)
    both = masking_utils.sliding_window_bidirectional_mask_function(3)(0, 0, q, k)
    np.testing.assert_array_equal(Visibility(window=4).dense(7, 7)[0], both)
