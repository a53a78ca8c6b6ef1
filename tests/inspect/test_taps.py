"""The laws of looking inside: what is seen is what happens, what is changed is what is meant, and neither costs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.inspect import taps
from jaxformer.inspect.taps import Edit, look, mask_heads, patch, paths
from jaxformer.nn import attention, block, experts, mlp, stack
from jaxformer.nn.model import Model
from jaxformer.nn.taps import TAPS
from jaxformer.testing import tiny_models

MODELS = tiny_models()
CLOSE = {"rtol": 0, "atol": 2e-5}


def drawn(name):
    """(model, params with every leaf drawn, its inputs, further arguments) of a tiny model, with some padding."""
    model = Model(MODELS[name])
    both = MODELS[name].encoder is not None and MODELS[name].decoder is not None
    tokens = [jax.random.randint(jax.random.key(n), (2, 7), 1, MODELS[name].vocab) for n in range(1 + both)]
    params = jax.jit(model.init)(jax.random.key(0), *tokens)["params"]
    flat, shape = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(flat))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(flat, keys, strict=True)]
    return model, jax.tree.unflatten(shape, leaves), tokens, {"mask": jnp.arange(7)[None] < jnp.array([[7], [5]])}


def last(model):
    return "encoder" if model.config.decoder is None else "decoder"


@pytest.fixture(scope="module", params=MODELS)
def seen(request):
    model, params, tokens, given = drawn(request.param)
    return model, params, tokens, given, look(model, params, *tokens, taps=["**"], **given)


def test_every_tap_of_every_model_is_seen_and_the_model_gives_the_same(seen):
    model, params, tokens, given, (out, found) = seen
    assert found.keys() == paths(model.config).keys()
    assert {path.rpartition("/")[2] for path in found} <= TAPS.keys()
    plain = model.apply({"params": params}, *tokens, **given)
    np.testing.assert_allclose(out.hidden, plain.hidden, **CLOSE)
    for path, array in found.items():
        if "/blocks/" in path:
            assert array.shape[0] == getattr(model.config, path.partition("/")[0]).layers


def test_probabilities_weigh_values_into_what_heads_find(seen):
    _, _, _, _, (_, found) = seen
    for path in [path for path in found if path.endswith("probabilities")]:
        p_LBHTS, at = found[path], path.removesuffix("probabilities")
        totals = p_LBHTS.sum(-1)
        assert jnp.all(jnp.isclose(totals, 1, atol=1e-5) | (totals == 0))
        v_LBSKC = found[f"{at}value"]
        v_LBSHC = jnp.repeat(v_LBSKC, p_LBHTS.shape[2] // v_LBSKC.shape[3], axis=3)
        np.testing.assert_allclose(found[f"{at}heads"], jnp.einsum("LBHTS,LBSHC->LBTHC", p_LBHTS, v_LBSHC), **CLOSE)


def test_the_residual_stream_is_the_sum_of_what_is_added_to_it(seen):
    model, _, _, _, (_, found) = seen
    for name in ("encoder", "decoder"):
        config = getattr(model.config, name)
        if config is None or config.pattern[0].norms == "post":
            continue
        added = sum(array for path, array in found.items() if path.startswith(name) and path.endswith("_output"))
        stream = jnp.cumsum(jnp.concatenate([found[f"{name}/embedded"][None], added]), axis=0)[1:]
        np.testing.assert_allclose(found[f"{name}/blocks/residual"], stream, **CLOSE)


def test_a_model_that_is_not_asked_is_the_program_without_taps(seen, monkeypatch):
    model, params, tokens, given, _ = seen
    lowered = lambda: jax.jit(lambda p: model.apply({"params": p}, *tokens, **given)).lower(params).as_text()
    with_taps = lowered()
    for module in (attention, block, experts, mlp, stack):
        monkeypatch.setattr(module, "tap", lambda module, name, x: x)
    assert lowered() == with_taps


def test_patching_the_last_residual_of_another_text_gives_its_answer(seen):
    model, params, tokens, given, (_, found) = seen
    other = [(each + 3) % (model.config.vocab - 1) + 1 for each in tokens]
    path = f"{last(model)}/blocks/residual"
    where = jnp.arange(found[path].shape[0]) == found[path].shape[0] - 1
    edits = {path: patch(found[path], where[:, None, None, None])}
    patched, _ = look(model, params, *other, edits=edits, **given)
    plain = model.apply({"params": params}, *tokens, **given)
    np.testing.assert_allclose(patched.hidden, plain.hidden, **CLOSE)
    assert not np.allclose(model.apply({"params": params}, *other, **given).hidden, plain.hidden, atol=1e-2)


def test_a_head_that_is_masked_is_one_whose_output_rows_are_zero(seen):
    model, params, tokens, given, _ = seen
    name = last(model)
    config = getattr(model.config, name)
    keep = np.ones((config.layers, config.pattern[0].attention.heads))
    keep[:, 1] = 0
    masked, _ = look(model, params, *tokens, edits={f"{name}/blocks/attention/heads": mask_heads(keep)}, **given)
    blocks = params[name]["blocks"]
    kernel = blocks["attention"]["out"]["kernel"]
    without = {"out": blocks["attention"]["out"] | {"kernel": kernel.at[:, 1].set(0)}}
    params = params | {name: params[name] | {"blocks": blocks | {"attention": blocks["attention"] | without}}}
    np.testing.assert_allclose(masked.hidden, model.apply({"params": params}, *tokens, **given).hidden, **CLOSE)


def test_probabilities_can_be_changed_and_the_change_is_seen(seen):
    model, params, tokens, given, (_, found) = seen
    path = f"{last(model)}/blocks/attention/probabilities"
    even = jnp.full_like(found[path], 1 / found[path].shape[-1])
    edits = {path: Edit(keep=jnp.zeros((even.shape[0], 1, 1, 1, 1)), add=even)}
    _, changed = look(model, params, *tokens, taps=["**/attention/*"], edits=edits, **given)
    np.testing.assert_allclose(changed[path], even, atol=1e-6)
    values = changed[path.replace("probabilities", "value")]
    at = path.replace("probabilities", "heads")
    np.testing.assert_allclose(
        changed[at][:, :, 0], jnp.repeat(values.mean(2), even.shape[2] // values.shape[3], 2), **CLOSE
    )


@pytest.mark.parametrize("how", [{"unroll": 2}, {"remat": "full"}, {"listed": True}])
@pytest.mark.parametrize("name", ["windowed", "sandwich", "experts", "shared", "relative"])
def test_it_is_the_same_however_the_blocks_run(name, how):
    model, params, tokens, given = drawn(name)
    where = jnp.arange(getattr(model.config, last(model)).layers) % 2 == 1
    edits = {f"{last(model)}/blocks/mlp_output": patch(0.5, where[:, None, None, None])}
    ask = lambda model, params: look(
        model, params, *tokens, taps=["**/{probabilities,residual}"], edits=edits, **given
    )
    expected = ask(model, params)
    if how.pop("listed", False):
        params = params | {
            name: held | {"blocks": [jax.tree.map(lambda leaf, i=i: leaf[i], held["blocks"]) for i in range(depth)]}
            for name, held in params.items()
            if name in ("encoder", "decoder")
            for depth in [jax.tree.leaves(held["blocks"])[0].shape[0]]
        }
    found = ask(replace(model, **how), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, expected)


def test_looking_is_pure_it_is_compiled_differentiated_and_mapped():
    model, params, tokens, given = drawn("rotary")
    path = "decoder/blocks/residual"
    seen = look(model, params, *tokens, taps=[path], **given)[1][path]

    @jax.jit
    def loss(add):
        edits = {path: Edit(keep=jnp.ones((len(seen), 1, 1, 1)), add=add)}
        return look(model, params, *tokens, edits=edits, **given)[0].logits[:, -1].sum()

    step = 1e-2 * jax.random.normal(jax.random.key(3), seen.shape)
    slope = (loss(step) - loss(-step)) / 2
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(jnp.zeros_like(seen)), step), slope, rtol=1e-2)
    each = jax.vmap(loss)(jnp.stack([step, -step]))
    np.testing.assert_allclose(each, [loss(step), loss(-step)], rtol=1e-5)


def test_what_fits_no_tap_is_said_with_all_that_there_are():
    model, params, tokens, given = drawn("rotary")
    with pytest.raises(ValueError, match=r"(?s)no tap of this model is \*\*/cross/\*; there are:.*mlp/activations"):
        look(model, params, *tokens, taps=["**/cross/*"], **given)
    with pytest.raises(ValueError, match="no tap of this model is encoder/embedded;"):
        look(model, params, *tokens, edits={"encoder/embedded": Edit(jnp.ones(()), jnp.ones(()))}, **given)
    assert taps.paths(model.config)["decoder/blocks/residual"].startswith("[B, T, D]")
