import dataclasses

import pytest

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    Card,
    HeadConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    SinusoidConfig,
    StackConfig,
    problems,
)
from jaxformer.testing import tiny_models

GOOD = tiny_models()["rotary"]


def changed(config, path, value):
    """The config with the field at "a.b[0].c" replaced."""
    head, _, rest = path.partition(".")
    name, _, index = head.partition("[")
    old = getattr(config, name)
    if index:
        inner = changed(old[0], rest, value) if rest else value
        return dataclasses.replace(config, **{name: (inner, *old[1:])})
    return dataclasses.replace(config, **{name: changed(old, rest, value) if rest else value})


@pytest.mark.parametrize("name", tiny_models())
def test_a_model_that_can_be_built_is_returned_by_validate(name):
    config = tiny_models()[name]
    assert problems(config) == []
    assert config.validate() is config


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("vocab", 0, "vocab is 0: it must be above zero"),
        ("decoder", None, "encoder and decoder are both None"),
        ("decoder.pattern", (), "decoder.pattern is empty"),
        ("decoder.layers", -1, "decoder.layers is -1: it must be above zero"),
        (
            "decoder.pattern[0].attention.kv_heads",
            3,
            "decoder.pattern[0].attention.heads is 4, no multiple of kv_heads 3",
        ),
        ("decoder.pattern[0].attention.kv_heads", 0, "decoder.pattern[0].attention.kv_heads is 0"),
        ("decoder.pattern[0].attention.head_dim", 5, "head_dim is 5: rotary positions need an even one"),
        ("decoder.pattern[0].attention.window", 0, "decoder.pattern[0].attention.window is 0"),
        ("decoder.pattern[0].mlp.width", 0, "decoder.pattern[0].mlp.width is 0"),
        ("decoder.pattern[0].norm.eps", 0.0, "decoder.pattern[0].norm.eps is 0.0"),
        ("decoder.pattern[0].dropout", 1.0, "decoder.pattern[0].dropout is 1.0: give a probability"),
        ("decoder.input.dropout", -0.1, "decoder.input.dropout is -0.1: give a probability"),
        ("decoder.input.positions", LearnedConfig(0), "decoder.input.positions.length is 0"),
        ("decoder.input.positions", LearnedConfig(4, -1), "decoder.input.positions.offset is -1"),
        ("decoder.pattern[0].cross", AttentionConfig(1, 1, 1), "there is no encoder to look at"),
        ("decoder.causal", False, "decoder.causal is False"),
        ("head.softcap", 0.0, "head.softcap is 0.0"),
    ],
)
def test_what_cannot_be_built_is_named_with_its_path(path, value, said):
    with pytest.raises(ValueError, match="this model cannot be built") as error:
        changed(GOOD, path, value).validate()
    assert said in str(error.value)


def test_every_problem_is_reported_at_once():
    bad = BlockConfig(AttentionConfig(4, 3, 5, rope=RopeConfig(-1.0)), MlpConfig(0), dropout=2.0)
    stack = StackConfig((bad,), 2, True, InputConfig(SinusoidConfig()))
    found = problems(ModelConfig(0, 15, encoder=dataclasses.replace(stack, causal=False), decoder=stack))
    for said in (
        "vocab",
        "mlp.width",
        "rope.base",
        "kv_heads 3",
        "even one",
        "dropout is 2.0",
        "cross is None",
        "width is 15",
    ):
        assert any(said in line for line in found), said
    assert len(found) == len(set(found))


def test_blocks_of_a_pattern_may_differ_in_settings_but_not_in_shapes():
    block = GOOD.decoder.pattern[0]
    settings = dataclasses.replace(
        block, attention=dataclasses.replace(block.attention, window=2, scale=1.0, rope=RopeConfig(5.0))
    )
    shapes = dataclasses.replace(block, mlp=dataclasses.replace(block.mlp, width=99))
    assert problems(changed(GOOD, "decoder.pattern", (block, settings))) == []
    assert (
        "decoder.pattern[1] differs from pattern[0]" in problems(changed(GOOD, "decoder.pattern", (block, shapes)))[0]
    )
    assert problems(changed(changed(GOOD, "decoder.pattern", (block, settings)), "decoder.layers", 3)) == []


@pytest.mark.parametrize(("path", "value"), [("rope", RopeConfig()), ("window", 3)])
def test_cross_attention_has_neither_rotary_positions_nor_a_window(path, value):
    model = tiny_models()["encoder_decoder"]
    assert f"cross.{path}" in "".join(problems(changed(model, f"decoder.pattern[0].cross.{path}", value)))


def test_configs_are_values():
    assert tiny_models() == tiny_models()
    assert len({*tiny_models().values(), *tiny_models().values()}) == len(tiny_models())
    assert changed(GOOD, "vocab", 38) != GOOD
    assert HeadConfig() == HeadConfig()
    assert NormConfig() == NormConfig()


def test_the_main_stack_is_the_one_before_the_head():
    assert [config.main for config in tiny_models().values()] == ["decoder"] * 7 + ["encoder"] * 2 + ["decoder"] * 2


def test_special_ids_are_read_from_the_generation_defaults_first():
    config = {"eos_token_id": 1, "bos_token_id": 7, "pad_token_id": None}
    card = Card("x", config, {"eos_token_id": [2, 3]})
    assert [card.special(name) for name in ("eos", "bos", "pad", "sep")] == [(2, 3), (7,), (), ()]
