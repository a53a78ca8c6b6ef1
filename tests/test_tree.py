import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import tree

PATHS = [
    "embed/embedding",
    "decoder/blocks/mlp/up/kernel",
    "decoder/blocks/mlp/up/bias",
    "decoder/norm/scale",
]

parts = st.text("abcdefgh_0123456789", min_size=1, max_size=4)
nests = st.recursive(
    st.integers(), lambda inner: st.dictionaries(parts, inner, min_size=1, max_size=3), max_leaves=12
)
trees = st.dictionaries(parts, nests, max_size=4)


@given(trees)
def test_unflatten_undoes_flatten(nest):
    assert tree.unflatten(tree.flatten(nest)) == nest


def test_paths_join_keys_in_the_order_of_the_nest():
    assert list(tree.flatten({"b": {"x": 1, "a": 2}, "a": 3}).items()) == [("b/x", 1), ("b/a", 2), ("a", 3)]


@pytest.mark.parametrize(
    ("pattern", "path", "holds"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b", "x/a/b", False),
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("*/b", "a/b", True),
        ("a/*_norm", "a/mlp_norm", True),
        ("**/b", "b", True),
        ("**/b", "x/y/b", True),
        ("**/b", "x/ab", False),
        ("a/**", "a/b/c", True),
        ("a/**", "ab/c", False),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/b/b/c", True),
        ("{a,b}/c", "b/c", True),
        ("{a,b}/c", "c/c", False),
        ("**/{up,gate}/kernel", "decoder/blocks/mlp/gate/kernel", True),
        ("a.b", "axb", False),
        ("blocks_(0)", "blocks_(0)", True),
    ],
)
def test_a_pattern_describes_a_whole_path(pattern, path, holds):
    assert tree.matches(pattern, path) is holds


@given(st.lists(parts, min_size=1, max_size=4).map("/".join))
def test_every_path_describes_itself_and_is_described_by_two_stars(path):
    assert tree.matches(path, path)
    assert tree.matches("**", path)
    assert tree.matches("/".join("*" * len(path.split("/"))), path)


def test_each_path_gets_the_value_of_its_one_rule():
    rules = [("**/kernel", 1), ("**/{bias,scale}", 2), ("embed/*", 3)]
    assert tree.match(rules, PATHS, "test") == dict(zip(PATHS, (3, 1, 2, 2), strict=True))


def test_every_path_without_a_rule_or_with_two_is_listed():
    with pytest.raises(ValueError, match="the test rules must describe each parameter exactly once") as error:
        tree.match([("**/kernel", 1), ("decoder/**", 2)], PATHS, "test")
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        "  - decoder/blocks/mlp/up/kernel: **/kernel and decoder/**",
        "  - embed/embedding: no rule",
    ]


@given(trees, st.data())
def test_merge_undoes_split(nest, data):
    flat = tree.flatten(nest)
    chosen = data.draw(st.lists(st.sampled_from(sorted(flat)), unique=True)) if flat else []
    inside, outside = tree.split(nest, chosen)
    assert set(tree.flatten(inside)) == set(chosen)
    assert tree.merge(inside, outside) == tree.merge(outside, inside) == nest


def test_a_pattern_that_describes_nothing_is_a_mistake():
    with pytest.raises(
        ValueError, match=r"no parameter's path matches decoder/nomr/\*; the paths are embed/embedding"
    ):
        tree.split(tree.unflatten(dict.fromkeys(PATHS, 0)), ["embed/*", "decoder/nomr/*"])


def test_a_leaf_in_two_trees_is_a_mistake():
    with pytest.raises(ValueError, match="these parameters stand in two trees: a/b"):
        tree.merge({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}})
