"""The rows of every family: each parameter once, by a path of the grammar."""

import re
from collections import Counter

import jax
import pytest

from jaxformer import families, sharding, tree
from jaxformer.names import Row, linear, norm, table
from jaxformer.nn.model import Model

SIZES = {name: config for family in families.FAMILIES for name, config in family.SIZES.items()}
ROWS = {name: family.names(config) for family in families.FAMILIES for name, config in family.SIZES.items()}

GRAMMAR = re.compile(
    r"""
      embed/embedding
    | (encoder|decoder)/(position|segment|relative)/embedding
    | (encoder|decoder)/(input_norm|norm)/(scale|bias)
    | (encoder|decoder)/input_projection/(kernel|bias)
    | (encoder|decoder)/blocks(_\d+)?/(
          (attention|cross)/(query|key|value|out)/(kernel|bias)
        | (attention|cross)/(query|key)_norm/(scale|bias)
        | (attention|cross|mlp)_(norm|post_norm)/(scale|bias)
        | mlp/(up|gate|down|router)/(kernel|bias)
        | mlp/experts/(up|gate|down)/(kernel|bias)
      )
    | heads/\w+/((transform|norm|dense|output)/)?(kernel|bias|scale)
    """,
    re.VERBOSE,
)


def shapes_of(config):
    return {path: leaf.shape for path, leaf in tree.flatten(sharding.abstract_params(Model(config))).items()}


def test_a_projection_is_a_kernel_and_its_bias_where_it_has_one():
    assert linear("a/up", "x.fc") == (Row("a/up/kernel", "x.fc.weight", "out_in", 1),)
    assert linear("a/out", "x.o", inputs=2, bias=True, layout="in_out", part=(1, 2, 3)) == (
        Row("a/out/kernel", "x.o.weight", "in_out", 2, (1, 2, 3)),
        Row("a/out/bias", "x.o.bias", "in_out", 0, (1, 2, 3)),
    )
    for row in linear("a/query", "x.qkv", bias=True, part=(0, 1, 3), within_heads=True, pairs=True):
        assert (row.part, row.within_heads, row.pairs) == ((0, 1, 3), True, True)


def test_norms_and_tables_are_stored_as_they_are():
    assert norm("a/norm", "ln") == (Row("a/norm/scale", "ln.weight"),)
    assert norm("a/norm", "ln", bias=True)[1] == Row("a/norm/bias", "ln.bias")
    assert table("embed", "wte", also=("head",)) == (Row("embed/embedding", "wte.weight", also=("head",)),)


def test_only_the_scale_of_a_norm_is_published_with_something_on_top():
    assert [row.plus for row in norm("a/norm", "ln", bias=True, plus=1.0)] == [1.0, 0.0]


def test_a_row_is_stacked_by_what_its_name_counts():
    assert Row("a", "h.0.x").stacked == ()
    assert Row("a", "h.{layer}.x").stacked == ("layer",)
    assert Row("a", "x.{expert}").stacked == ("expert",)
    assert Row("a", "e.{expert}.h.{layer}.x").stacked == ("layer", "expert")


def test_names_are_spelled_with_the_numbers_of_a_place():
    row = Row("a", "h.{layer}.e.{expert}.w", also=("{expert}/{layer}",))
    assert row.spelled((3, 5)) == ("h.3.e.5.w", "5/3")
    assert Row("a", "x").spelled(()) == ("x",)


@pytest.mark.parametrize("size", SIZES)
def test_rows_name_every_parameter_exactly_once(size):
    assert Counter(row.path for row in ROWS[size]) == Counter(shapes_of(SIZES[size]).keys())


@pytest.mark.parametrize("size", SIZES)
def test_a_row_is_stacked_exactly_where_the_path_lies_in_blocks(size):
    assert [row.path for row in ROWS[size] if row.stacked] == [r.path for r in ROWS[size] if "/blocks/" in r.path]


@pytest.mark.parametrize("size", ["gpt2", "llama-2-70b"])
def test_every_path_is_of_the_grammar(size):
    for path, shape in shapes_of(SIZES[size]).items():
        print(f"{path:45} {shape}")  # the grammar of this size: pytest -s
        assert GRAMMAR.fullmatch(path), path


# As counted by the reference, each parameter once.
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("size", PARAMETERS)
def test_published_sizes_have_the_published_number_of_parameters(size):
    leaves = jax.tree.leaves(sharding.abstract_params(Model(SIZES[size])))
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[size]
