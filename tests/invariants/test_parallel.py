"""One device equals eight: twenty steps of training of each shape of model on each kind of mesh.

Sums over devices are taken in another order. Measured on eight virtual CPU devices: losses within 4e-7 of one
device's, relative; gradients of the first step within 4e-6 of the largest of their leaf. The tests allow TRAINED and
FIRST. `losses.json` holds the losses of one device, so that numerics do not change in silence; a change that is
meant writes them anew by `python tests/invariants/test_parallel.py`.
"""

import dataclasses
import functools
import json
import math
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer import losses, sharding, tree
from jaxformer.config import Card
from jaxformer.generation import Greedy, Sample, generate
from jaxformer.nn.model import Model
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.sharding import MeshConfig, make_mesh
from jaxformer.tasks import CausalLM, MaskedLM, Seq2Seq
from jaxformer.testing import randomized, tiny_models, with_dropout
from jaxformer.train.state import TrainState
from jaxformer.train.step import make_step

STEPS, ROWS, LENGTH, DECODED, PLACES = 20, 8, 16, 8, 4
TRAINED, FIRST, KEPT = 2e-5, 2e-5, 1e-4
LOSSES = Path(__file__).with_name("losses.json")
CHUNK = 300  # logits at a time: on each mesh a loss takes its tokens in several turns
ONE = {"data": 1}
pytestmark = pytest.mark.slow


def nine_heads():
    config = tiny_models()["rotary"]
    block = config.decoder.pattern[0]
    attention = dataclasses.replace(block.attention, heads=9, kv_heads=3)
    stack = dataclasses.replace(config.decoder, pattern=(dataclasses.replace(block, attention=attention),))
    return dataclasses.replace(config, decoder=stack)


def even(name):
    """A vocabulary that may be split, where that of tiny models is odd."""
    return dataclasses.replace(tiny_models()[name], vocab=40)


FAMILIES = {
    "decoder": (with_dropout(even("rotary"), 0.1), CausalLM()),
    "nine heads": (nine_heads(), CausalLM()),
    "gathering decoder": (with_dropout(even("rotary"), 0.1), CausalLM()),
    "odd vocabulary": (tiny_models()["rotary"], CausalLM()),
    "encoder": (even("encoder"), MaskedLM()),
    "encoder-decoder": (even("relative"), Seq2Seq("source", "target")),
    "experts": (even("experts"), CausalLM()),
}
KERNELS = {"gathering decoder": "einsum"}  # all others as jaxformer chooses: over sequence a ring, without a bias
CASES = [
    ("decoder", {"data": 8}),
    ("decoder", {"fsdp": 8}),
    ("decoder", {"tensor": 2}),
    ("decoder", {"fsdp": 4, "tensor": 2}),
    ("decoder", {"data": 2, "sequence": 4}),
    ("gathering decoder", {"data": 2, "sequence": 4}),
    ("nine heads", {"fsdp": 4, "tensor": 2}),
    ("odd vocabulary", {"tensor": 2}),
    ("encoder", {"sequence": 8}),
    ("encoder", {"fsdp": 4, "tensor": 2}),
    ("encoder-decoder", {"data": 2, "sequence": 4}),
    ("encoder-decoder", {"tensor": 2, "sequence": 4}),
    ("experts", {"expert": 4}),
    ("experts", {"fsdp": 4, "expert": 2}),
    ("experts", {"tensor": 2, "sequence": 2, "expert": 2}),
]
every_case = pytest.mark.parametrize(
    ("name", "mesh"), CASES, ids=lambda part: part if isinstance(part, str) else titled(part)
)


def titled(mesh):
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


@pytest.fixture(scope="module", autouse=True)
def small_chunks(fresh_caches):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CHUNK_ELEMENTS", CHUNK)
        yield
    trained.cache_clear()


def batch(name, number):
    """Rows of packed documents, as the family's task has them."""
    draw = np.random.default_rng(number)
    task, ids = FAMILIES[name][1], lambda *shape: draw.integers(2, 37, shape).astype(np.int32)

    def packed(length):
        segments = np.sort(draw.integers(1, 4, (ROWS, length)), axis=1).astype(np.int32)
        first = np.argmax(segments[:, :, None] == segments[:, None, :], axis=2)
        return segments, (np.arange(length)[None] - first).astype(np.int32)

    length = LENGTH + isinstance(task, CausalLM)
    segments, positions = packed(length)
    rows = {"tokens": ids(ROWS, length), "segments": segments, "positions": positions}
    if isinstance(task, CausalLM):
        return rows | {"weights": (segments[:, 1:] == segments[:, :-1]).astype(np.float32)}
    if isinstance(task, MaskedLM):
        places = np.stack([draw.choice(LENGTH, PLACES, replace=False) for _ in range(ROWS)]).astype(np.int32)
        return rows | {"places": places, "targets": ids(ROWS, PLACES), "weights": np.ones((ROWS, PLACES), np.float32)}
    segments, positions = packed(DECODED)
    targets = {"targets": ids(ROWS, DECODED), "weights": np.ones((ROWS, DECODED), np.float32)}
    return rows | targets | {"decoder_segments": segments, "decoder_positions": positions}


def model_of(name):
    card = Card(config={"decoder_start_token_id": 1})
    return Model(FAMILIES[name][0], compute="float32", kernel=KERNELS.get(name, "auto"), card=card)


def mesh_of(mesh):
    return make_mesh(MeshConfig(**({"data": 1} | mesh)), jax.devices()[: math.prod(mesh.values())])


@dataclasses.dataclass
class Trained:
    losses: np.ndarray
    first: dict  # the first moments after one step: the gradients, times one number
    state: TrainState
    homes: TrainState
    before: TrainState  # the last step, given away
    lowered: str
    compiled: str


def training(name, mesh):
    """One training; see Trained."""
    model, task, mesh = model_of(name), FAMILIES[name][1], mesh_of(mesh)
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=2, ema=0.9), STEPS)
    shapes = sharding.abstract_params(model)
    abstract = TrainState(step=np.int32(0), params=shapes, opt_state=jax.eval_shape(optimizer.init, shapes))
    homes = sharding.like_parameters(mesh, abstract, shapes)
    place = lambda number: sharding.place_batch(batch(name, number % 3), mesh)
    with jax.set_mesh(mesh):
        params = jax.device_put(randomized(shapes, jax.random.key(0)), homes.params)
        state = TrainState(step=jax.device_put(np.int32(0), homes.step), params=params, opt_state=())
        state = state.replace(opt_state=jax.jit(optimizer.init, out_shardings=homes.opt_state)(params))
        step = jax.jit(
            make_step(task.loss(model, train=True), optimizer),
            donate_argnums=0,
            out_shardings=(homes, NamedSharding(mesh, PartitionSpec())),
            compiler_options={"xla_backend_optimization_level": 0},  # half the time to compile; sums are as they were
        )
        lowered, found, first = step.lower(state, None, place(0)), [], None
        step = lowered.compile()
        for number in range(STEPS):
            before = state
            state, metrics = step(before, None, place(number))
            total, weight = metrics["loss"]
            found.append(float(total) / float(weight))
            if first is None:
                (moments,) = (leaf for path, leaf in optax.tree.get_all_with_path(state.opt_state, "mu"))
                first = jax.tree.map(np.asarray, tree.flatten(moments))
    return Trained(np.asarray(found), first, state, homes, before, lowered.as_text(), step.as_text())


@functools.cache
def trained(name, mesh=tuple(ONE.items())):
    return training(name, dict(mesh))


def of(name, mesh):
    return trained(name, tuple(mesh.items()))


# Numbers.


@every_case
def test_eight_devices_train_as_one(name, mesh):
    one, eight = trained(name).losses, of(name, mesh).losses
    assert one[-1] < one[0] - 0.1
    np.testing.assert_allclose(eight, one, rtol=TRAINED)


@every_case
def test_every_gradient_is_that_of_one_device(name, mesh):
    one, eight = trained(name).first, of(name, mesh).first
    largest = {path: np.abs(leaf).max() for path, leaf in one.items()}
    noise = 1e-7 * max(largest.values())  # all that there is of a key's bias, which no softmax sees
    for path, leaf in one.items():
        assert largest[path] > 0, path
        np.testing.assert_allclose(eight[path], leaf, rtol=0, atol=FIRST * largest[path] + noise, err_msg=path)


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_those_that_were_kept(name):
    np.testing.assert_allclose(trained(name).losses, json.loads(LOSSES.read_text())[name], rtol=KEPT)


# Places.


@every_case
def test_parameters_and_optimizer_state_stay_where_they_were_made(name, mesh):
    made = of(name, mesh)
    for leaf, home in zip(jax.tree.leaves(made.state), jax.tree.leaves(made.homes), strict=True):
        assert leaf.sharding.is_equivalent_to(home, leaf.ndim)
        assert home.is_fully_replicated or "data" not in jax.tree.leaves([*home.spec])


def test_no_device_holds_more_than_its_part_of_the_optimizer_state():
    """Parameters, their average and two moments: all but norms, eight times as much on one device as on eight."""
    (one, eight) = (tree_bytes(trained("decoder", mesh).state) for mesh in (tuple(ONE.items()), (("fsdp", 8),)))
    assert {path: size / 8 for path, size in one.items() if "scale" not in path} == {
        path: size for path, size in eight.items() if "scale" not in path
    }
    assert len([path for path in eight if "query" in path]) == 4


def tree_bytes(state):
    """{path: bytes of a device} of the arrays of a state, but for single numbers."""
    found, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(keys): leaf.addressable_shards[0].data.nbytes for keys, leaf in found if leaf.ndim}


@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 4, "tensor": 2}], ids=titled)
def test_the_state_is_donated(mesh):
    before = of("decoder", mesh).before
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))


def test_the_constraints_of_a_block_are_in_the_program():
    """Its query, key, value and what attention gives, the keys and values that all queries see, the inside of its
    feed-forward, its two residual sums; of the embedding what it gives, of the stack what goes in and comes out: each
    forward and for its gradient.
    """
    lines = of("decoder", {"fsdp": 4, "tensor": 2}).lowered.splitlines()
    rows = [line for line in lines if "sdy.sharding_constraint" in line and '[{"data", "expert", "fsdp"}' in line]
    assert len([line for line in rows if "xf32>" in line]) == 2 * 12


# What devices tell each other.

COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def collectives(compiled):
    """Counter of (kind, "layer", "loss" or "step", sizes in order of size), the arrays of floats that are told.

    "layer": in the loops over layers, there and back; "loss": in a loop over tokens. XLA's compiler for the CPU adds
    a gradient up on all devices, which then keep their part of it; those of accelerators make one reduce-scatter of
    the two.
    """
    found, entry = Counter(), False
    for line in compiled.splitlines():
        if line and not line.startswith(" "):
            entry = line.startswith("ENTRY")
        if match := COLLECTIVE.search(line):
            place = "step" if entry else "layer" if "Block" in line else "loss"
            for sizes in re.findall(r"f32\[([\d,]+)\]", match[1]):
                found[match[2], place, tuple(sorted(map(int, sizes.split(","))))] += 1
    return found


def in_a_layer(mesh, name="decoder"):
    """What the devices tell each other about one layer of the decoder."""
    size = lambda *axes: math.prod(mesh.get(axis, 1) for axis in axes)
    config, found = FAMILIES["decoder"][0], Counter()
    attention, rows = config.decoder.pattern[0].attention, ROWS // size("data", "fsdp")
    shapes = tree.flatten(sharding.abstract_params(model_of("decoder")))
    specs = sharding.specs(mesh_of(mesh), tree.unflatten(shapes))

    def tell(kind, sizes, times):
        found[kind, "layer", tuple(sorted(sizes))] += times

    for path, leaf in shapes.items():
        if "/blocks/" in path:
            split = [size("tensor") if axis == "tensor" else 1 for axis in specs[path]]
            sizes = [n // part for n, part in zip(leaf.shape, split, strict=True)][1:]
            if "fsdp" in specs[path] and size("fsdp") > 1:
                tell("all-gather", sizes, 2)  # once forward, once for the gradient
            tell("all-reduce", sizes, (size("data", "fsdp") > 1) + (size("sequence") > 1))
    if size("tensor") > 1:
        # Forward what attention and feed-forward give; back what came into query, key, value, gate and up.
        tell("all-reduce", (rows, LENGTH // size("sequence"), config.width), 2 + 5)
    if size("sequence") > 1:
        tokens, heads = LENGTH // size("sequence"), (attention.heads, attention.kv_heads)
        of_queries, of_keys = ([n // size("tensor"), attention.head_dim] for n in heads)
        if name in KERNELS:
            for kind in ("all-gather", "all-reduce"):  # keys and values, and their gradients
                tell(kind, (rows, LENGTH, *of_keys), 2)
        else:
            # Two stretches of keys and of values go round, and again with their gradients, which then go home.
            tell("collective-permute", (2, rows, tokens // 2, *of_keys), 2 + 4 + 2)
            # Before and behind that halves are exchanged: of queries and of what they get, of keys and of values.
            tell("collective-permute", (rows, tokens // 2, *of_queries), 2 * 2 * 2)
            tell("collective-permute", (rows, tokens // 2, *of_keys), 2 * 2 * 2)
    return +found


def told(place, **kinds):
    each = {(kind.replace("_", "-"), place): found for kind, found in kinds.items()}
    return Counter({(*key, sizes): times for key, found in each.items() for sizes, times in found.items()})


HEAD, NORM = (16, 40), (16,)  # the embedding has the sizes of the head
BESIDES = {
    ("data", 8): told("step", all_reduce={HEAD: 2, NORM: 1}),
    # Of the table each device looks up its part of the width for all tokens, and gets the whole of its own tokens.
    ("fsdp", 8): told("step", all_gather={HEAD: 1}, all_reduce={HEAD: 1, NORM: 1}, all_to_all={(1, 1, 2, 16): 2 * 8}),
    ("tensor", 2): told("step", all_reduce={(8, 16, 16): 1})
    + told("loss", all_reduce={(1, 8): 3, (1, 8, 16): 1}),  # largest logit, sum, the target's; the gradient
    ("fsdp", 4, "tensor", 2): told(
        "step",
        all_gather={(16, 20): 1},
        all_reduce={(16, 20): 1, NORM: 1, (4, 8, 16): 1},
        all_to_all={(1, 2, 4, 16): 2 * 4},
    )
    + told("loss", all_reduce={(2, 4): 3, (2, 4, 16): 1}),
    ("data", 2, "sequence", 4): told("step", all_reduce={HEAD: 3, NORM: 2}),
}


@pytest.mark.parametrize("layout", BESIDES, ids=str)
def test_devices_tell_each_other_what_they_must_and_no_more(layout):
    mesh = dict(zip(layout[::2], layout[1::2], strict=True))
    for name in ("decoder", *(KERNELS if "sequence" in mesh else ())):
        assert collectives(of(name, mesh).compiled) == in_a_layer(mesh, name) + BESIDES[layout]


def test_an_output_matrix_that_is_split_along_the_width_splits_no_layer():
    """As where the vocabulary is odd: what goes from layer to layer stays whole, and nothing there is gathered."""
    found = collectives(of("odd vocabulary", {"tensor": 2}).compiled)
    assert Counter({key: times for key, times in found.items() if key[1] == "layer"}) == in_a_layer({"tensor": 2})


def test_experts_are_brought_the_tokens_of_those_that_share_them_and_no_others():
    """Each way an all-gather over four devices, and a reduce-scatter back; weights and choices go along."""
    found = collectives(of("experts", {"expert": 4}).compiled)
    others = {key: times for key, times in found.items() if key[0] != "all-reduce"}
    assert others == told(
        "layer", all_gather={(8, 16, 16): 2, (2, 8, 16): 1}, reduce_scatter={(2, 16, 16): 2, (2, 2, 16): 1}
    )


# XLA says so, to the error stream, where it knows no way from one layout to the next but to bring all together.
GIVES_UP = "Involuntary full rematerialization"
LAYOUTS = [
    ("decoder", {"data": 2, "fsdp": 4}),
    ("decoder", {"data": 2, "fsdp": 2, "tensor": 2}),
    ("decoder", {"data": 2, "fsdp": 2, "sequence": 2}),
    ("odd vocabulary", {"fsdp": 4, "tensor": 2}),
    ("encoder", {"data": 2, "fsdp": 2, "tensor": 2}),  # positions and segments have tables, too
    ("experts", {"fsdp": 2, "expert": 4}),
    ("experts", {"data": 2, "fsdp": 2, "expert": 2}),
]


@pytest.fixture
def compiled_anew():
    """Without the cache on disk: what comes from there was not compiled, and nobody said anything."""
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", kept)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize(("name", "mesh"), LAYOUTS, ids=lambda part: part if isinstance(part, str) else titled(part))
def test_the_compiler_finds_its_way_between_layouts(name, mesh, capfd):
    model, mesh = model_of(name), mesh_of(mesh)
    shapes = sharding.abstract_params(model)
    homes = sharding.shardings(mesh, shapes)
    rows = jax.ShapeDtypeStruct((ROWS, LENGTH), np.int32, sharding=NamedSharding(mesh, PartitionSpec(sharding.BATCH)))

    def loss(params, tokens):
        return (model.apply({"params": params}, tokens).hidden ** 2).sum()

    with jax.set_mesh(mesh):
        jax.jit(jax.grad(loss), in_shardings=(homes, None), out_shardings=homes).lower(shapes, rows).compile()
    assert GIVES_UP not in capfd.readouterr().err


@pytest.mark.usefixtures("compiled_anew")
def test_the_compiler_says_where_it_finds_none(capfd):
    mesh = mesh_of({"data": 2, "fsdp": 4})
    apart = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((("data", "fsdp"),), (None, None, "fsdp")))
    given, wanted = apart
    x = jax.ShapeDtypeStruct((8, 4, 16), np.float32, sharding=given)
    jax.jit(lambda x: jax.lax.with_sharding_constraint(x + 1, wanted)).lower(x).compile()
    assert GIVES_UP in capfd.readouterr().err


# Generation.


@pytest.mark.parametrize(
    ("name", "mesh", "strategy"),
    [
        ("decoder", {"fsdp": 4, "tensor": 2}, Greedy()),
        ("decoder", {"fsdp": 4, "tensor": 2}, Sample(temperature=0.8, top_p=0.9)),
        ("encoder-decoder", {"data": 2, "sequence": 4}, Greedy()),
        ("experts", {"fsdp": 4, "expert": 2}, Sample()),
    ],
    ids=["greedy decoder", "sampling decoder", "greedy encoder-decoder", "sampling experts"],
)
def test_split_parameters_write_what_whole_ones_write(name, mesh, strategy):
    model, mesh = model_of(name), mesh_of(mesh)
    shapes = sharding.abstract_params(model)
    params = randomized(shapes, jax.random.key(1))
    prompts = [[5, 9, 11, 3], [7, 8], [4, 4, 4, 30, 2, 6], [12]]
    write = lambda params: generate(model, params, prompts, 5, strategy=strategy, eos=(), key=jax.random.key(2))
    one = write(params)
    with jax.set_mesh(mesh):
        eight = write(jax.device_put(params, sharding.shardings(mesh, shapes)))
    np.testing.assert_array_equal(eight.tokens, one.tokens)
    np.testing.assert_allclose(eight.scores, one.scores, atol=1e-5)


if __name__ == "__main__":
    losses.CHUNK_ELEMENTS = CHUNK
    LOSSES.write_text(json.dumps({name: training(name, ONE).losses.tolist() for name in FAMILIES}, indent=1) + "\n")
