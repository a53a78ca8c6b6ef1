"""How a published tensor holds parameters of ours, kind by kind, against the formula of each."""

import ml_dtypes
import numpy as np
import pytest

from jaxformer.names import Row, linear
from jaxformer.weights import layout

D, H, K, C = 3, 4, 2, 6


def drawn(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def read(row, shape, tensor):
    assert layout.published_shape(row, shape) == tensor.shape
    out = np.empty(shape, tensor.dtype)
    layout.fill(out, row, shape, tensor, [range(size) for size in shape])
    return out


def agree(rows, parts, tensor):
    """The tensor is read as these parts, and these parts are joined to the tensor."""
    for row, part in zip(rows, parts, strict=True):
        np.testing.assert_array_equal(read(row, part.shape, tensor), part)
    joined = layout.join(rows, parts)
    assert joined.dtype == tensor.dtype
    np.testing.assert_array_equal(joined, tensor)


def test_a_kernel_is_flattened_to_inputs_and_outputs_or_turned():
    query, out = drawn(D, H, C), drawn(H, C, D)
    agree(linear("q", "q", layout="in_out"), [query], query.reshape(D, H * C))
    agree(linear("q", "q"), [query], query.reshape(D, H * C).T)
    agree(linear("o", "o", inputs=2, layout="in_out"), [out], out.reshape(H * C, D))
    agree(linear("o", "o", inputs=2), [out], out.reshape(H * C, D).T)


def test_same_is_shape_for_shape_and_row_has_one_axis_more():
    agree([Row("a", "a")], [drawn(D, C)], drawn(D, C))
    agree([Row("a", "a", "row")], [drawn(C)], drawn(C)[None])


def test_parts_are_so_many_units_of_the_output_axis_each():
    total = H + 2 * K
    parts = [(0, H, total), (H, H + K, total), (H + K, total, total)]
    rows = [linear(name, "qkv", bias=True, part=part) for name, part in zip("qkv", parts, strict=True)]
    kernels = [drawn(D, heads, C) for heads in (H, K, K)]
    stacked = np.concatenate([kernel.reshape(D, -1).T for kernel in kernels])
    agree([kernel for kernel, _ in rows], kernels, stacked)
    biases = [drawn(heads, C) for heads in (H, K, K)]
    agree([bias for _, bias in rows], biases, np.concatenate([bias.reshape(-1) for bias in biases]))
    halves = [drawn(D, 5), drawn(D, 5)]
    agree(linear("g", "gu", part=(0, 1, 2)) + linear("u", "gu", part=(1, 2, 2)), halves, np.concatenate(halves, 1).T)


def test_parts_within_heads_stand_side_by_side_in_each_head():
    rows = [linear(name, "qkv", bias=True, part=(i, i + 1, 3), within_heads=True) for i, name in enumerate("qkv")]
    kernels, biases = [drawn(D, H, C) + i for i in range(3)], [drawn(H, C) + i for i in range(3)]
    agree([kernel for kernel, _ in rows], kernels, np.stack(kernels, axis=2).reshape(D, H * 3 * C).T)
    agree([bias for _, bias in rows], biases, np.stack(biases, axis=1).reshape(H * 3 * C))


def test_pairs_are_neighbours_where_they_are_published_and_half_the_axis_apart_in_ours():
    kernel, bias = linear("q", "q", bias=True, pairs=True)
    ours = drawn(D, H, C)
    turned = ours.reshape(D, H, 2, C // 2).swapaxes(2, 3)
    agree([kernel], [ours], turned.reshape(D, H * C).T)
    agree([bias], [ours[0]], turned[0].reshape(H * C))
    np.testing.assert_array_equal(turned[0, 0, 1], ours[0, 0, [1, 1 + C // 2]])


def test_any_span_of_pairs_is_that_span_of_the_whole():
    row, tensor = Row("q", "q", pairs=True), drawn(C)
    for start in range(C):
        for stop in range(start, C + 1):
            out = np.empty(stop - start, np.float32)
            layout.fill(out, row, (C,), tensor, [range(start, stop)])
            np.testing.assert_array_equal(out, read(row, (C,), tensor)[start:stop])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_published_on_top_is_taken_off_and_put_back(dtype):
    ours = np.array([-0.5, 0.0, 0.25, 3.0], dtype)
    agree([Row("a", "a", plus=1.0)], [ours], ours + np.ones(4, dtype))


def test_a_sum_is_rounded_once():
    fine = np.array([1 + 2**-9, 1.3], np.float32)
    out = np.empty(2, ml_dtypes.bfloat16)
    layout.fill(out, Row("a", "a", plus=1.0), (2,), fine, [range(2)])
    np.testing.assert_array_equal(out, (fine - 1).astype(ml_dtypes.bfloat16))
    half = np.array([1024.0], np.float16)
    wide = np.empty(1, np.float32)
    layout.fill(wide, Row("a", "a", plus=0.5), (1,), half, [range(1)])
    assert wide[0] == 1023.5


def test_a_part_that_is_alone_is_published_without_a_copy():
    query = drawn(D, H, C)
    assert np.shares_memory(layout.join(linear("q", "q"), [query]), query)


@pytest.mark.parametrize(
    ("row", "shape", "told"),
    [
        (Row("a", "a", "in_out", 2), (5,), "2 inputs in (5,)"),
        (Row("a", "a", "in_out", 1, (0, 2, 3)), (4, 5), "axis 1 of (4, 5) is no units 0:2"),
        (Row("a", "a", "in_out", 1, (0, 1, 3), within_heads=True), (4, 5), "axis 2 of (4, 5) is no units 0:1"),
        (Row("a", "a", "in_out", 1, (2, 2, 3)), (4, 6), "axis 1 of (4, 6) is no units 2:2"),
        (Row("a", "a", pairs=True), (4, 5), "no pairs in the last axis of (4, 5)"),
    ],
)
def test_what_cannot_be_published_so_is_told(row, shape, told):
    assert layout.problem(row, shape) == told
    assert layout.problem(Row("a", "a"), shape) is None
