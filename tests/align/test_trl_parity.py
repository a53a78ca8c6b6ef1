"""Losses, advantages and their gradients beside trl's, whole: the same weights of a tiny model and the same tokens.

Where trl does otherwise by choice:

- its IPO divides log-probabilities by the length of an answer, which is `mean=True` here; equation 17 of Azar et al.
  (2023) has none of that, as without `mean`;
- its ORPO adds the likelihood of the prompt, too, and counts tokens of a batch, not answers: Hong et al. (2024),
  section 4.2, want that of the chosen answer. Prompts of one token and answers of one length make both equal;
- its RLOO clips a ratio of whole answers, the product over their tokens; here tokens are clipped, as PPO does, and
  divided by the room of an answer. At ratio 1, where Ahmadian et al. (2024) stand, only the scale differs;
- it has no conservative DPO under that name: "aot" of a single pair is that loss;
- its GRPO weighs the k3 estimate with the ratio unless told otherwise (a later correction); equation 4 of Shao et al.
  (2024) does not.

It has no PPO any more: generalized advantages stand beside the paper's sums in test_advantage.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import families, sharding
from jaxformer.align import GRPO, RLOO, FunctionReward, Prefer, Reward
from jaxformer.align.exchange import Exchange, row
from jaxformer.align.learner import prepared
from jaxformer.align.pairs import SIDES
from jaxformer.config import ExtraHeadConfig
from jaxformer.families import llama
from jaxformer.nn.model import Model
from jaxformer.objective import BEGINNING
from jaxformer.source import save_pretrained
from jaxformer.testing import randomized
from jaxformer.text.index import stack
from jaxformer.weights.convert import export

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers"),
]

KEY, RANDOM = jax.random.key(0), np.random.default_rng(7)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
PROMPT, ANSWER, GROUP = 5, 6, 3
BETA = 0.3


def ids(size):
    return RANDOM.integers(10, 200, size).astype(np.int32)


def pair(prompt, chosen, rejected):
    prompt = ids(prompt)
    sides = zip(SIDES, (chosen, rejected), strict=True)
    return {f"{side}_{part}": x for side, n in sides for part, x in (("prompt", prompt), ("answer", ids(n)))}


PAIRS = [pair(3, 4, 2), pair(5, 1, 6), pair(2, 5, 5)]
EVEN = [pair(1, 4, 6), pair(1, 4, 3)]
ASKED = [ids(3), ids(5)]
DRAWN = [Exchange(ASKED[i // 3], ids(size)) for i, size in enumerate((6, 2, 4, 1, 5, 3))]
REWARDS = [1.0, 0.0, 0.5, 2.0, -1.0, 2.0]


@pytest.fixture(scope="module")
def policy(tokenizer, tmp_path_factory):
    """(model, {who: (params, their folder)}): what is trained, what it once was, and its reference."""
    model = Model(llama.config({"vocab_size": tokenizer.vocab_size} | SIZES), compute="float32")
    found = {}
    for seed, who in enumerate(("now", "old", "reference")):
        apart = randomized(sharding.abstract_params(model), jax.random.key(seed))
        scale = 1.0 if who == "now" else 0.05  # near enough that some ratios are clipped, and some are not
        params = jax.tree.map(lambda a, b: a + scale * b, found["now"][0], apart) if found else apart
        folder = tmp_path_factory.mktemp(who)
        save_pretrained(folder, model, params, tokenizer)
        found[who] = params, folder
    return model, found


def opened(folder, kind="CausalLM"):
    """(the reference's model, its tokenizer)."""
    import transformers

    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def trainer(name, records, model, tokenizer, where, given=None, **options):
    """One of trl's trainers, made as a user would; `given` beside what its config holds."""
    home = pytest.importorskip(f"trl.experimental.{name.lower()}" if name in ("CPO", "ORPO") else "trl")
    from datasets import Dataset

    config = getattr(home, f"{name}Config")(
        str(where), use_cpu=True, report_to="none", bf16=False, activation_checkpointing=False, **options
    )
    parts = {"args": config, "train_dataset": Dataset.from_list(records), "processing_class": tokenizer}
    return getattr(home, f"{name}Trainer")(model, **parts | (given or {}))


def padded(rows, fill=0):
    import torch

    width = max(map(len, rows))
    return torch.tensor([[*map(int, each)] + [fill] * (width - len(each)) for each in rows])


def answered(each, side):
    return each[f"{side}_prompt"], each[f"{side}_answer"]


def joined(sides, prefix=""):
    """Prompts and answers as trl's collators put them, padded right."""
    parts = {
        "input_ids": padded([[*p, *a] for p, a in sides]),
        "attention_mask": padded([[1] * (len(p) + len(a)) for p, a in sides]),
        "completion_mask": padded([[0] * len(p) + [1] * len(a) for p, a in sides]),
    }
    return {prefix + name: x for name, x in parts.items()}


def agree(model, ours, theirs, loss, scale=1.0):
    """Loss and gradient of both: ours (loss, gradient), theirs the model that `loss` is of."""
    value, pull = ours
    loss.backward()
    if scale == 1.0:
        assert float(value) == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    found = export(families.family("llama").names(model.config), pull)
    wanted = {name: np.asarray(p.grad) for name, p in theirs.named_parameters() if p.grad is not None}
    assert wanted.keys() == found.keys()
    size = max(np.abs(each).max() for each in wanted.values())
    assert size > 1e-3
    for name, want in wanted.items():
        np.testing.assert_allclose(scale * found[name], want, rtol=2e-3, atol=1e-4 * size, err_msg=name)


@functools.cache
def compiled(task, model):
    loss_fn = task.loss(model, train=False)
    return jax.jit(jax.value_and_grad(lambda p, f, b: loss_fn(p, f, b, KEY)[0]))


def learned(task, model, params, frozen, batch):
    """(loss, gradient) of ours."""
    return compiled(task, model)(params, frozen, batch)


KINDS = {
    "dpo": (Prefer(beta=BETA), {"loss_type": ["sigmoid"]}, PAIRS),
    "by the token": (Prefer(beta=BETA, mean=True), {"loss_type": ["sigmoid_norm"]}, PAIRS),
    "ipo": (Prefer(kind="ipo", beta=BETA, mean=True), {"loss_type": ["ipo"]}, PAIRS),
    "hinge": (Prefer(kind="hinge", beta=BETA), {"loss_type": ["hinge"]}, PAIRS),
    "cdpo": (Prefer(beta=BETA, label_smoothing=0.2), {"loss_type": ["aot"], "label_smoothing": 0.2}, PAIRS[:1]),
    "with likelihood": (
        Prefer(beta=BETA, likelihood=0.5),
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        PAIRS[:1],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_preferences_are_learned_as_trl_learns_them(policy, tmp_path, kind):
    model, found = policy
    (params, folder), (reference, beneath) = found["now"], found["reference"]
    task, options, records = KINDS[kind]
    task = dataclasses.replace(task, answer_length=ANSWER)
    batch = stack([task.row(each, PROMPT + ANSWER) for each in records])
    ours = learned(task, model, params, {BEGINNING: reference}, batch)
    theirs, tokenizer = opened(folder)
    given = {"ref_model": opened(beneath)[0]}
    texts = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    made = trainer("DPO", texts, theirs, tokenizer, tmp_path, given, beta=BETA, **options)
    agree(
        model,
        ours,
        theirs,
        made.compute_loss(theirs, joined([answered(each, side) for side in SIDES for each in records])),
    )


def test_kto_is_trls(policy, tmp_path):
    import torch

    model, found = policy
    (params, folder), (reference, beneath) = found["now"], found["reference"]
    task = Prefer(kind="kto", beta=BETA, answer_length=ANSWER)
    ours = learned(
        task, model, params, {BEGINNING: reference}, stack([task.row(each, PROMPT + ANSWER) for each in PAIRS])
    )
    theirs, tokenizer = opened(folder)
    texts = [{"prompt": "a", "completion": x, "label": x == "b"} for x in "bc"]
    given = {"ref_model": opened(beneath)[0]}
    made = trainer("KTO", texts, theirs, tokenizer, tmp_path, given, beta=BETA)
    sides = [answered(each, side) for each in PAIRS for side in SIDES]
    crossed = [(prompt, sides[i - 2][1]) for i, (prompt, _) in enumerate(sides)]
    batch = joined(sides) | joined(crossed, "KL_") | {"label": torch.tensor([True, False] * len(PAIRS))}
    agree(model, ours, theirs, made.compute_loss(theirs, batch))
    assert made._metrics["eval"]["kl"][-1] > 0.01  # the baseline is there


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("simpo", "CPO", {"loss_type": "simpo", "simpo_gamma": 0.7, "cpo_alpha": 0.0}),
        ("orpo", "ORPO", {}),
    ],
)
def test_what_takes_no_reference_is_trls(policy, tmp_path, monkeypatch, kind, name, options):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    model, found = policy
    params, folder = found["now"]
    task = Prefer(kind=kind, beta=BETA, gamma=0.7, answer_length=ANSWER)
    batch = stack([task.row(each, PROMPT + ANSWER) for each in EVEN])
    ours = learned(task, model, params, {}, batch)
    theirs, tokenizer = opened(folder)
    texts = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    made = trainer(name, texts, theirs, tokenizer, tmp_path, beta=BETA, **options)
    data = {}
    for side in SIDES:
        parts = joined([answered(each, side) for each in EVEN])
        labels = parts["input_ids"].masked_fill(parts["completion_mask"] == 0, -100)
        data |= {f"{side}_input_ids": parts["input_ids"], f"{side}_attention_mask": parts["attention_mask"]}
        data[f"{side}_labels"] = labels
    agree(model, ours, theirs, made.compute_loss(theirs, data))


@pytest.mark.parametrize("margins", [None, [0.5, 0.0, 1.5]])
def test_rewards_are_learned_as_trl_learns_them(policy, tokenizer, tmp_path, margins):
    import torch

    config = dataclasses.replace(
        policy[0].config, head=None, extra=(ExtraHeadConfig("classify", 1, reads="last", bias=False),)
    )
    model = Model(config, compute="float32")
    params = randomized(sharding.abstract_params(model), jax.random.key(5))
    save_pretrained(tmp_path / "judge", model, params, tokenizer)
    theirs, tokenizer = opened(tmp_path / "judge", "SequenceClassification")
    texts = [{"chosen": "b", "rejected": "c"}]
    made = trainer("Reward", texts, theirs, tokenizer, tmp_path / "out", center_rewards_coefficient=0.1)
    data = joined([answered(each, side) for side in SIDES for each in PAIRS])
    del data["completion_mask"]
    data["input_ids"][data["attention_mask"] == 0] = tokenizer.pad_token_id
    width = data["input_ids"].shape[1]
    ours = {name: np.asarray(x).reshape(2, -1, width).swapaxes(0, 1) for name, x in data.items()}
    batch = {
        "tokens": ours["input_ids"],
        "mask": ours["attention_mask"].astype(bool),
        "token_types": np.zeros((len(PAIRS), 2, width), np.int32),
        "margin": np.asarray(margins or [0.0] * len(PAIRS), np.float32),
        "weights": np.ones(len(PAIRS), np.float32),
    }
    ours = learned(Reward(center=0.1), model, params, {}, batch)
    more = {} if margins is None else {"margin": torch.tensor(margins)}
    agree(model, ours, theirs, made.compute_loss(theirs, data | more))


STYLE = {"rewards": (FunctionReward("exact"),), "group": GROUP, "answer_length": ANSWER}
AS_IT_WAS = {"use_bias_correction_kl": False}
VARIANTS = {
    "grpo": (GRPO(**STYLE), {"loss_type": "grpo"}),
    "with a divergence": (GRPO(**STYLE, beta=BETA), {"loss_type": "grpo", "beta": BETA} | AS_IT_WAS),
    "dr_grpo": (
        GRPO(**STYLE, scale=False, reduction="constant"),
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
    ),
    "bnpo": (GRPO(**STYLE, reduction="token"), {"loss_type": "bnpo"}),
    "dapo": (GRPO(**STYLE, high=0.28, reduction="token"), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        GRPO(**STYLE, sequence=True, low=0.02, high=0.03),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03},
    ),
    "cool": (
        GRPO(**STYLE, temperature=0.7, beta=BETA),
        {"loss_type": "grpo", "temperature": 0.7, "beta": BETA} | AS_IT_WAS,
    ),
}


def drawn():
    rows = stack([row(each, PROMPT, ANSWER) for each in DRAWN])
    rows |= {"rewards": np.array(REWARDS, np.float32), "weights": np.ones(len(DRAWN), np.float32)}
    return jax.tree.map(jnp.asarray, rows | {"drawn": np.zeros((len(DRAWN), ANSWER), np.float32)})


def sampled(name, found, where, **options):
    """(trainer, its model as it was when answers were drawn); of sampling alone we say what comes of it."""
    theirs, tokenizer = opened(found["old"][1])
    options |= {"num_generations": GROUP, "max_completion_length": ANSWER, "num_iterations": 2}
    options["per_device_train_batch_size"] = options["per_device_eval_batch_size"] = len(DRAWN)
    given = {"reward_funcs": lambda prompts, **rest: REWARDS}
    made = trainer(name, [{"prompt": "a"}], theirs, tokenizer, where, given, **options)
    if made.ref_model is not None:
        made.ref_model.load_state_dict(opened(found["reference"][1])[0].state_dict())
    made._tokenize_prompts = lambda prompts: ([each.prompt.tolist() for each in DRAWN], None, {})
    said = [each.answer.tolist() for each in DRAWN]
    made._generate_single_turn = lambda *given: (said, None) if name == "GRPO" else said
    made.model.eval()
    return made, theirs


@pytest.mark.parametrize("kind", VARIANTS)
def test_grpo_and_its_corrections_are_trls(policy, tmp_path, kind):
    """After an update, when ratios are no longer 1 and some of them are clipped."""
    model, found = policy
    task, options = VARIANTS[kind]
    made, theirs = sampled("GRPO", found, tmp_path, **{"beta": 0.0} | options)
    inputs = made._generate_and_score_completions([{"prompt": "a"}] * len(DRAWN))
    theirs.load_state_dict(opened(found["now"][1])[0].state_dict())
    loss = made.compute_loss(theirs, inputs)
    frozen = {BEGINNING: found["reference"][0]}
    ready = functools.partial(prepared, task, model, parts=1)
    batch, _ = jax.jit(ready)(found["old"][0], frozen, drawn(), jnp.float32(task.beta))
    np.testing.assert_allclose(batch["advantages"][:, 0], inputs["advantages"], rtol=1e-5, atol=1e-6)
    agree(model, learned(task, model, found["now"][0], frozen, batch), theirs, loss)
    clipped = made._metrics["eval"]["clip_ratio/region_mean"][-1]
    assert 0 < clipped < 1


def test_rloo_is_trls_where_nothing_has_moved(policy, tmp_path):
    model, found = policy
    task = RLOO(**STYLE, beta=BETA)
    made, theirs = sampled("RLOO", found, tmp_path, beta=BETA)
    inputs = made._generate_and_score_completions([{"prompt": "a"}] * len(DRAWN))
    loss = made.compute_loss(theirs, inputs)
    params, frozen = found["old"][0], {BEGINNING: found["reference"][0]}
    batch, _ = jax.jit(functools.partial(prepared, task, model, parts=1))(params, frozen, drawn(), jnp.float32(BETA))
    np.testing.assert_allclose(batch["advantages"][:, 0], inputs["advantages"], rtol=1e-4, atol=1e-4)
    agree(model, learned(task, model, params, frozen, batch), theirs, loss, scale=ANSWER)
