import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import fitting, sharding, tree
from jaxformer.config import HeadConfig
from jaxformer.experiment import Experiment
from jaxformer.nn.model import Model
from jaxformer.objective import FrozenModel
from jaxformer.optimizer import OptimizerConfig
from jaxformer.sharding import MeshConfig, make_mesh
from jaxformer.source import save_pretrained
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.tasks.distill import Distill
from jaxformer.testing import SENTENCES, randomized, tiny_models, with_dropout
from jaxformer.text.corpus import DataConfig
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

TEXTS = [sentence * 3 for sentence in SENTENCES]


def built(name, tokenizer, seed, **changes):
    """A tiny model of the tokenizer's vocabulary, and random parameters."""
    model = Model(dataclasses.replace(tiny_models()[name], vocab=tokenizer.vocab_size, **changes), compute="float32")
    return model, randomized(sharding.abstract_params(model), jax.random.key(seed))


@pytest.fixture(scope="module")
def teacher(plain):
    return built("rotary", plain, 1)


@pytest.fixture(scope="module")
def student(plain):
    return built("learned", plain, 2)


@pytest.fixture(scope="module")
def folder(teacher, plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    save_pretrained(folder, *teacher, plain)
    return str(folder)


@pytest.fixture(scope="module")
def data(kit, plain):
    return kit.batch(Distill(), TEXTS, plain, 24)


def held(teacher):
    model, params = teacher
    return {"teacher": FrozenModel(params, model)}


def test_the_teacher_is_loaded_as_an_argument_of_the_loss(folder, student, plain, teacher):
    found = Distill(folder).frozen(student[0], plain, None)["teacher"]
    assert found.model.config == teacher[0].config
    jax.tree.map(np.testing.assert_array_equal, found.params, teacher[1])
    leaves, structure = jax.tree.flatten(found)
    assert len(leaves) == len(tree.flatten(teacher[1]))
    assert structure == jax.tree.structure(FrozenModel(teacher[1], found.model))
    placed = Distill(folder).frozen(student[0], plain, make_mesh(MeshConfig(fsdp=4)))["teacher"].params
    assert len(placed["embed"]["embedding"].sharding.device_set) == 8


def test_the_step_holds_no_teacher_of_its_own(data, student, teacher):
    loss = Distill("x").loss(student[0], train=True)
    program = jax.make_jaxpr(loss)(student[1], held(teacher), data, jax.random.key(0))
    assert all(np.size(constant) < 100 for constant in program.consts)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_of_it(kit, data, teacher):
    model, params = teacher
    task = Distill("x", temperature=2.0, weight=0.0)
    (loss, metrics), gradients = kit.gradients(task, model, params, data, held(teacher))
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert float(metrics["agreement"][0]) == float(metrics["agreement"][1]) == data["weights"].sum()
    (_, whole), plain = kit.gradients(CausalLM(), model, params, data)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    assert all(float(jnp.abs(leaf).max()) < 1e-5 * largest for leaf in jax.tree.leaves(gradients))
    assert float(metrics["loss"][0]) == pytest.approx(float(whole["loss"][0]), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_the_divergence_and_the_weighted_cross_entropy(kit, data, student, teacher, temperature):
    task = Distill("x", temperature, weight=0.25)
    (loss, metrics), _ = kit.gradients(task, *student, data, held(teacher))
    given = {name: data[name][:, :-1] for name in ("tokens", "segments", "positions")}
    p, q = (
        jax.nn.log_softmax(kit.apply(model, params, **given).logits / temperature)
        for model, params in (teacher, student)
    )
    weights = data["weights"]
    divergence = temperature**2 * float(((jnp.exp(p) * (p - q)).sum(-1) * weights).sum() / weights.sum())
    (text, plain), _ = kit.gradients(CausalLM(), *student, data)
    assert float(metrics["divergence"][0] / metrics["divergence"][1]) == pytest.approx(divergence, rel=1e-4)
    assert float(loss) == pytest.approx(divergence + 0.25 * float(text), rel=1e-4)
    for name, pair in plain.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5)


def test_the_teacher_has_no_gradient(data, student, teacher):
    loss = Distill("x").loss(student[0], train=True)
    gradients = jax.grad(lambda frozen: loss(student[1], frozen, data, jax.random.key(0))[0])(held(teacher))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


def test_dropout_is_the_students_alone(data, plain, teacher):
    model, params = built("learned", plain, 2)
    model = Model(with_dropout(model.config, 0.3), compute="float32")
    losses = jax.jit(lambda p, key: Distill("x", weight=0.0).loss(model, train=True)(p, held(teacher), data, key)[0])
    assert losses(params, jax.random.key(0)) != losses(params, jax.random.key(1))
    dropping = Model(with_dropout(teacher[0].config, 0.3), compute="float32"), teacher[1]
    still = jax.jit(lambda t, key: Distill("x").loss(teacher[0], train=True)(teacher[1], t, data, key)[0])
    assert still(held(dropping), jax.random.key(0)) == still(held(dropping), jax.random.key(1))


def test_padding_and_rows_of_weight_zero_change_nothing(kit, plain, student, teacher):
    task = Distill("x")
    one, other = (kit.batch(task, TEXTS, plain, 24, size=size) for size in (None, 9))
    (_, first), ours = kit.gradients(task, *student, one, held(teacher))
    (_, second), theirs = kit.gradients(task, *student, other, held(teacher))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max())), ours, theirs)


def test_a_student_comes_near_its_teacher(data, student, teacher):
    loss, (_, params) = Distill("x", weight=0.0).loss(student[0], train=True), student
    optimizer = optax.adam(3e-2)

    @jax.jit
    def step(params, state, frozen):
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params, frozen, data, jax.random.key(0))
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, metrics["divergence"][0] / metrics["divergence"][1]

    state, seen = optimizer.init(params), []
    for _ in range(60):
        params, state, divergence = step(params, state, held(teacher))
        seen.append(float(divergence))
    assert seen[-1] < seen[0] / 3


def test_other_vocabularies_are_refused(folder, plain, student, tmp_path):
    task = Distill(folder)
    small = built("learned", train_tokenizer(TokenizerConfig("sentencepiece", 300), TEXTS), 0)[0]
    with pytest.raises(ValueError, match=rf"its vocabulary has {plain.vocab_size} tokens, the student's 300"):
        task.frozen(small, None, None)
    other = train_tokenizer(TokenizerConfig("sentencepiece", 320), ["entirely other words stand here, many of them"])
    with pytest.raises(ValueError, match=r"its tokenizer is another: token \d+ is '.*', the student's '.*'"):
        task.frozen(student[0], other, None)
    assert task.frozen(student[0], None, None)
    save_pretrained(tmp_path / "encoder", *built("encoder_decoder", plain, 0, head=HeadConfig(bias=True)), plain)
    with pytest.raises(ValueError, match=r"cannot teach this model:\n  - model\.encoder is set"):
        Distill(str(tmp_path / "encoder")).frozen(student[0], plain, None)


def test_a_teacher_without_positions_for_a_row_is_refused(kit, plain, student):
    data = kit.batch(Distill("x"), TEXTS * 3, plain, 70)
    with pytest.raises(ValueError, match="rows of 70 tokens: the model's decoder has learned positions for 64"):
        Distill("x").loss(built("rotary", plain, 0)[0], train=True)(None, held(student), data, jax.random.key(0))


def test_problems_and_metrics(student):
    config = student[0].config
    assert Distill("x").problems(config, 64) == []
    assert len(Distill("", temperature=0.0, weight=-1.0).problems(config, 65)) == 4
    sums = {"loss": (4.0, 2.0), "divergence": (1.0, 2.0)}
    values = Distill("x").metrics(sums, 1)
    bits = 4 / math.log(2)
    assert values == {"loss": 2, "divergence": 0.5, "perplexity": pytest.approx(math.exp(2)), "bits_per_byte": bits}


@pytest.mark.usefixtures("fresh_caches")
def test_a_run_learns_from_a_teacher(folder, plain, student, tmp_path):
    save_pretrained(tmp_path / "student", *student, plain)
    experiment = Experiment(
        name="tiny",
        start=str(tmp_path / "student"),
        task=Distill(folder, weight=0.0),
        steps=6,
        rows=8,
        length=16,
        optimizer=OptimizerConfig(warmup_steps=1, peak_lr=0.05, schedule="constant"),
        data=DataConfig(held_out=9),
        evaluate_every=3,
        save_every=3,
        folder=str(tmp_path / "runs"),
    )
    seen = []
    run = fitting.fit(
        experiment,
        [text for text in TEXTS for _ in range(3)],
        progress=False,
        on_metrics=lambda *call: seen.append(call),
    )
    divergences = [values["divergence"] for _, values in seen if "divergence" in values]
    assert divergences[-1] < divergences[0] / 2
    assert {"divergence", "agreement", "bits_per_byte"} <= run.evaluation.keys()
    assert "teacher" not in run.state.params
