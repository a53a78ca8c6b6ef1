"""Text to text: what stands in a row, what the decoder reads, and what is learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import Card
from jaxformer.nn.model import Model
from jaxformer.tasks import Seq2Seq
from jaxformer.tasks.seq2seq import cut, shifted
from jaxformer.testing import tiny_models
from jaxformer.text.records import Document
from jaxformer.text.turns import ended

TEXTS = (("a b", "b a"), ("the cat", "cat the"), ("one", "o n e"), ("x", "y"))
PAIRS = [{"source": source, "target": target} for source, target in TEXTS]
TASK = Seq2Seq(target_length=16)


def model_of(tokenizer):
    config = dataclasses.replace(tiny_models()["encoder_decoder"], vocab=tokenizer.vocab_size)
    card = Card(config={"decoder_start_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos})
    return Model(config, compute="float32", card=card)


def test_both_sides_end_with_an_eos_and_the_source_begins_with_the_prefix(plain):
    (example,) = Seq2Seq(prefix="say: ").examples(Document("here", record=PAIRS[0]), plain)
    assert example["source"].tolist() == [*plain.encode("say: a b"), plain.eos]
    assert example["target"].tolist() == [*plain.encode("b a"), plain.eos]


def test_the_template_of_a_tokenizer_stands_around_a_text_once(wordpiece):
    ids = ended(wordpiece, "the dog")
    assert ids.tolist()[-1] == wordpiece.eos or wordpiece.eos is None


def test_pairs_are_packed_on_both_sides_alike(kit, plain):
    rows = kit.rows(TASK, PAIRS, plain, 24)
    assert rows.count < len(PAIRS)
    for number in range(rows.count):
        row = rows.row(number)
        assert set(row["segments"]) - {0} == set(row["decoder_segments"]) - {0}
        np.testing.assert_array_equal(row["weights"], row["decoder_segments"] > 0)
        for segment in set(row["segments"]) - {0}:
            source = plain.decode(row["tokens"][row["segments"] == segment].tolist())
            target = plain.decode(row["targets"][row["decoder_segments"] == segment].tolist())
            assert {"source": source, "target": target} in PAIRS


def test_a_long_text_is_cut_and_keeps_its_end():
    assert cut(np.arange(5), 3).tolist() == [0, 1, 4]
    assert cut(np.arange(3), 3).tolist() == [0, 1, 2]


def test_the_decoder_reads_each_tokens_predecessor_within_its_segment():
    targets, positions = jnp.array([[5, 6, 7, 8, 9, 0]]), jnp.array([[0, 1, 2, 0, 1, 0]])
    assert shifted(targets, positions, 3).tolist() == [[3, 5, 6, 3, 8, 3]]


def test_packed_pairs_give_the_sums_and_gradients_of_separate_rows(kit, plain):
    model = model_of(plain)
    params = kit.random_params(model)
    packed = kit.batch(TASK, PAIRS, plain, 48)
    longest = max(len(ended(plain, text)) for text in sum(TEXTS, ()))
    alone = kit.batch(dataclasses.replace(TASK, target_length=longest), PAIRS, plain, longest)
    assert packed["tokens"].shape[0] < alone["tokens"].shape[0]
    kit.assert_equal_sums(TASK, model, params, alone, packed)


def test_a_model_learns_to_write_the_targets(kit, plain):
    model = model_of(plain)
    data = kit.batch(TASK, PAIRS, plain, 24)
    params, loss = kit.overfit(TASK, model, data, steps=150, rate=1e-2)
    assert loss < 0.05
    task = dataclasses.replace(TASK, measures=("exact",))
    documents = kit.documents(task, PAIRS)
    written = task.predict(model, {"params": params}, plain, documents, 3, 24)
    assert written == [pair["target"] for pair in PAIRS]
    assert task.score(written, documents) == {"exact": 1.0}


def test_a_score_carries_its_signature(kit):
    pytest.importorskip("sacrebleu", reason="not installed: sacrebleu")
    task = dataclasses.replace(TASK, measures=("chrf",))
    ((name, value),) = task.score([pair["target"] for pair in PAIRS], kit.documents(task, PAIRS)).items()
    assert name.startswith("chrf|nrefs:1|")
    assert value == pytest.approx(100)


def test_smoothing_acts_in_training_alone(kit, plain):
    model, data = model_of(plain), kit.batch(TASK, PAIRS, plain, 24)
    params, smooth = kit.random_params(model), dataclasses.replace(TASK, label_smoothing=0.2)
    losses = [
        float(jax.jit(task.loss(model, train=train))(params, None, data, jax.random.key(0))[0])
        for task in (TASK, smooth)
        for train in (False, True)
    ]
    assert losses[0] == losses[1] == losses[2] != losses[3]


def test_a_model_without_a_start_token_or_an_encoder_is_refused(plain):
    model = model_of(plain)
    with pytest.raises(ValueError, match="names no decoder_start_token_id"):
        TASK.loss(model.clone(card=Card()), train=True)
    assert TASK.problems(model.config, 16) == []
    assert "the task needs a model with one" in TASK.problems(tiny_models()["rotary"], 16)[0]
