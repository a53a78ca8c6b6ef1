"""Learning from pairs: rows, references, and what each kind of loss is of."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer import lora, tree
from jaxformer.align import Prefer, answers, preference
from jaxformer.align.dpo import WITHOUT_REFERENCE, reference_log_probs
from jaxformer.objective import ADAPTER, BEGINNING, FrozenModel
from jaxformer.source import save_pretrained
from jaxformer.text.corpus import open_documents

KEY = jax.random.key(0)
RECORDS = [
    {"prompt": "the quick brown", "chosen": " fox jumps", "rejected": " dog"},
    {"prompt": "anna", "chosen": " lives in rome", "rejected": " is red or blue"},
    {"prompt": "where is it ?", "chosen": " here", "rejected": " who knows , and who asks ?"},
]
KINDS = ("sigmoid", "ipo", "hinge", "kto", "simpo", "orpo")


@functools.cache
def compiled(task, model):
    loss_fn = task.loss(model, train=False)
    return jax.jit(jax.value_and_grad(lambda p, f, b: loss_fn(p, f, b, KEY), has_aux=True))


def valued(task, model, params, frozen, batch):
    """(loss, means of metrics, gradient)."""
    (loss, metrics), pull = compiled(task, model)(params, frozen, batch)
    return float(loss), {name: float(total / weight) for name, (total, weight) in metrics.items()}, pull


@functools.partial(jax.jit, static_argnames="model")
def totals(model, params, batch):
    """Sums and means [B, 2] of each answer's log-probabilities."""
    flat = {name: jnp.asarray(batch[name]).reshape(-1, batch[name].shape[-1]) for name in batch if name != "weights"}
    held = {"params": params}
    tokens = answers.log_probs(model, held, answers.read(model, held, KEY, False, flat), flat["answers"])
    return tuple(f(tokens, flat["written"]).reshape(-1, 2) for f in (answers.summed, answers.averaged))


@pytest.fixture(scope="module")
def policy(made):
    return made("rotary")


@pytest.fixture(scope="module")
def other(made):
    return made("rotary", seed=5)[1]


def test_a_policy_that_is_its_reference_prefers_nothing(policy, batch):
    model, params = policy
    data = batch(Prefer(answer_length=12), RECORDS, 24)
    loss, means, pull = valued(Prefer(answer_length=12), model, params, {BEGINNING: params}, data)
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    assert means["margin"] == pytest.approx(0, abs=1e-5)
    assert optax.tree.norm(pull) > 1e-3  # and yet it learns


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_its_loss_of_whole_answers(policy, other, batch, kind, mean):
    model, params = policy
    task = Prefer(kind=kind, beta=0.3, mean=mean, answer_length=12)
    data = batch(task, RECORDS, 24)
    loss, means, _ = valued(task, model, params, {BEGINNING: other}, data)
    (ours, our_mean), (theirs, their_mean) = totals(model, params, data), totals(model, other, data)
    gained = our_mean - their_mean if mean else ours - theirs
    margin = gained[:, 0] - gained[:, 1]
    if kind == "simpo":
        want = preference.simpo(our_mean[:, 0], our_mean[:, 1], 0.3, 1.0)
    elif kind == "orpo":
        want = -our_mean[:, 0] + 0.3 * preference.odds_ratio(our_mean[:, 0], our_mean[:, 1])
    elif kind == "kto":
        crossed = dict(data) | {name: np.roll(data[name], 1, axis=0) for name in ("answers", "written")}
        apart = [a - b for a, b in zip(totals(model, params, crossed), totals(model, other, crossed), strict=True)]
        baseline = jnp.maximum(0.0, apart[mean].mean())
        want = preference.kto(gained, jnp.array([True, False]), baseline, 0.3).mean(1)
    else:
        want = getattr(preference, kind)(margin, 0.3)
    assert loss == pytest.approx(float(want.mean()), rel=1e-4)
    if kind not in WITHOUT_REFERENCE:
        assert means["margin"] == pytest.approx(float(0.3 * margin.mean()), rel=1e-3)
        assert means["accuracy"] == pytest.approx(float((margin > 0).mean()))
    assert means["chosen_log_prob"] == pytest.approx(float(ours[:, 0].mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["rotary", "encoder_decoder"])
def test_training_makes_the_better_answer_the_likelier_one(made, batch, name):
    model, params = made(name)
    task = Prefer(answer_length=12, encoder=name == "encoder_decoder")
    data, rule = batch(task, RECORDS, 24), optax.adam(3e-3)
    loss_fn, state = task.loss(model, train=True), rule.init(params)
    frozen = {BEGINNING: params}

    @jax.jit
    def step(params, state):
        pull, metrics = jax.grad(lambda p: loss_fn(p, frozen, data, KEY), has_aux=True)(params)
        updates, state = rule.update(pull, state)
        return optax.apply_updates(params, updates), state, metrics

    for _ in range(30):
        params, state, metrics = step(params, state)
    means = task.metrics(jax.tree.map(float, metrics), 0)
    assert means["accuracy"] == 1.0
    assert means["loss"] < 0.3


def test_beneath_an_adapter_the_base_is_the_reference(policy, batch):
    """It costs no copy, and it moves not when the adapter does."""
    model, params = policy
    task = Prefer(answer_length=12)
    data = batch(task, RECORDS, 24)
    moved, fixed = lora.split_scale(lora.init(lora.LoraConfig(rank=2), params, KEY))
    moved = jax.tree.map(lambda leaf: leaf + 0.1, moved)
    loss, _, pull = valued(task, model, {ADAPTER: moved}, {"params": params, ADAPTER: fixed}, data)
    merged = lora.merge(params, lora.join_scale(moved, fixed))
    want, _, _ = valued(task, model, merged, {BEGINNING: params}, data)
    assert loss == pytest.approx(want, rel=1e-4)
    assert set(pull) == {ADAPTER}


def test_a_named_model_and_numbers_computed_beforehand_say_the_same(policy, other, batch, tokenizer, tmp_path):
    model, params = policy
    plain = Prefer(answer_length=12)
    want, _, pull = valued(plain, model, params, {BEGINNING: other}, batch(plain, RECORDS, 24))
    save_pretrained(tmp_path / "other", model, other, tokenizer)
    named = dataclasses.replace(plain, reference=str(tmp_path / "other"))
    frozen = named.frozen(model, tokenizer, None)
    assert isinstance(frozen["reference"], FrozenModel)
    found, _, pulled = valued(named, model, params, frozen, batch(named, RECORDS, 24))
    assert found == pytest.approx(want, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), pulled, pull)
    before = dataclasses.replace(plain, reference_columns=("a", "b"))
    numbers = reference_log_probs(before, model, other, tokenizer, open_documents(RECORDS, plain.columns), 2, 24)
    records = [each | {"a": float(a), "b": float(b)} for each, (a, b) in zip(RECORDS, numbers, strict=True)]
    found, _, pulled = valued(before, model, params, {}, batch(before, records, 24))
    assert found == pytest.approx(want, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), pulled, pull)


def test_the_reference_has_no_gradient(policy, other, batch):
    model, params = policy
    task = Prefer(answer_length=12)
    data = batch(task, RECORDS, 24)
    pull = jax.grad(lambda f: task.loss(model, train=True)(params, f, data, KEY)[0])({BEGINNING: other})
    assert optax.tree.norm(pull) == 0


@pytest.mark.parametrize("kind", ["sigmoid", "kto", "orpo"])
def test_rows_that_fill_a_batch_up_count_for_nothing(policy, other, batch, kind):
    model, params = policy
    task = Prefer(kind=kind, answer_length=12)
    one = valued(task, model, params, {BEGINNING: other}, batch(task, RECORDS, 24))
    longer = valued(task, model, params, {BEGINNING: other}, batch(task, RECORDS, 30))
    assert longer[0] == pytest.approx(one[0], rel=1e-5)
    if kind != "kto":  # whose baseline is of the answers next to each other
        filled = valued(task, model, params, {BEGINNING: other}, batch(task, RECORDS, 24, size=5))
        assert filled[0] == pytest.approx(one[0], rel=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), filled[2], one[2])


def test_conversations_that_hold_their_prompt_are_the_same_pairs(tokenizer):
    asked = [{"role": "user", "content": "anna ?"}]
    said = [{"role": "assistant", "content": text} for text in ("yes", "no")]
    split = {"prompt": asked, "chosen": "yes", "rejected": [said[1]]}
    whole = {"chosen": [*asked, said[0]], "rejected": [*asked, said[1]]}
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"
    template = template.replace("<assistant>", "{% if add_generation_prompt %}<assistant>{% endif %}")
    tasks = Prefer(template=template), Prefer(prompt="", template=template)
    examples = []
    for task, record in zip(tasks, (split, whole), strict=True):
        (document,) = open_documents([record], task.columns)
        examples += task.examples(document, tokenizer)
    for name in examples[0]:
        np.testing.assert_array_equal(examples[0][name], examples[1][name])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are equal"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected: expected a text"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "expected a text, or messages"),
        ({"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}, "chosen: expected a text"),
    ],
)
def test_records_that_are_no_pair_are_refused(tokenizer, record, said):
    task = Prefer()
    (document,) = open_documents([record], task.columns)
    with pytest.raises(ValueError, match=said):
        list(task.examples(document, tokenizer))


def test_long_prompts_are_left_out_and_told(batch, caplog):
    records = [*RECORDS, {"prompt": "the quick brown fox " * 9, "chosen": " a", "rejected": " b"}]
    data = batch(Prefer(answer_length=8), records, 24)
    assert len(data["weights"]) == 3
    assert "1 of 4 pairs have more than 16 tokens of a prompt" in caplog.text
    with pytest.raises(ValueError, match="longer --length"):
        batch(Prefer(answer_length=8), records[3:], 24)


def test_what_cannot_be_learned_is_told_at_once(policy, made):
    config = policy[0].config
    wrong = Prefer(kind="kto", beta=0, label_smoothing=0.1, answer_length=30, likelihood=-1, encoder=True)
    said = "\n".join(dataclasses.replace(wrong, reference="x", reference_columns=("a", "b")).problems(config, 24))
    for part in ("beta", "label_smoothing", "likelihood", "give one, or neither", "kto", "encoder is missing"):
        assert part in said
    assert "leave no room" in Prefer(answer_length=24).problems(config, 24)[0]
    assert not Prefer(answer_length=8).problems(config, 24)
    assert not Prefer(answer_length=8, encoder=True).problems(made("encoder_decoder")[0].config, 24)


def test_it_is_anchored_where_nothing_else_is_the_reference():
    assert Prefer().anchored
    for other in (Prefer(reference="x"), Prefer(reference_columns=("a", "b")), Prefer(kind="simpo")):
        assert not other.anchored


def test_it_compares_tokens_that_mean_the_same(policy, made, tokenizer, tmp_path):
    model = made("encoder_decoder")[0]
    save_pretrained(tmp_path / "m", policy[0], policy[1], tokenizer)
    with pytest.raises(ValueError, match="encoder is missing"):
        Prefer(reference=str(tmp_path / "m"), encoder=True).frozen(model, tokenizer, None)


def test_every_parameter_of_a_policy_is_trained(policy, batch):
    model, params = policy
    task = Prefer(answer_length=12)
    _, _, pull = valued(task, model, params, {BEGINNING: params}, batch(task, RECORDS, 24))
    still = [path for path, leaf in tree.flatten(pull).items() if not np.abs(leaf).max()]
    assert not still
