import numpy as np
import pytest

from jaxformer.config import Card, HeadConfig
from jaxformer.tasks.denoise import Denoise, fill, framed
from jaxformer.testing import SENTENCES
from jaxformer.text.corrupt import DenoiseConfig
from jaxformer.text.index import Batches, EvaluationBatches, stack
from jaxformer.text.template import Template
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer
from jaxformer.text.turns import ended

NOTHING = Denoise(permute_sentences=False, infill=0.0)
TEXTS = ["The dog sees a fox. It runs. Good.", "A fox jumps. The dog sleeps.", "def double(x):\n    return 2 * x"]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer that was trained for the task."""
    texts = [text * 3 for text in (*SENTENCES, *TEXTS)]
    return train_tokenizer(TokenizerConfig("sentencepiece", 350, specials=Denoise.specials), texts)


def model(kit, tokenizer):
    made = kit.model("encoder_decoder", tokenizer, head=HeadConfig())
    ids = {"decoder_start_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    return made.clone(card=Card(config=ids))


def test_a_row_by_hand(kit, tokenizer):
    mask, eos = tokenizer.specials["mask"], tokenizer.eos
    documents = [np.arange(20, 26), np.arange(30, 33)]
    row = kit.rows(Denoise(permute_sentences=False, infill=0.0, mask=1.0), documents, tokenizer, 12).row(0)
    assert sorted(row["tokens"].tolist()) == sorted([*[mask] * 9, eos, eos, 0])
    first, second = documents if row["targets"][0] == 20 else documents[::-1]  # the order of packing
    a, b = len(first) + 1, len(second) + 1
    assert {name: value.tolist() for name, value in row.items()} == {
        "tokens": [*[mask] * (a - 1), eos, *[mask] * (b - 1), eos, 0],
        "segments": [*[1] * a, *[2] * b, 0],
        "positions": [*range(a), *range(b), 0],
        "targets": [*first, eos, *second, eos, 0],
        "decoder_segments": [*[1] * a, *[2] * b, 0],
        "decoder_positions": [*range(a), *range(b), 0],
        "weights": [*[1.0] * (a + b), 0.0],
    }
    assert row["weights"].dtype == np.float32


def test_without_damage_both_sides_are_the_text(kit, tokenizer):
    rows = kit.rows(NOTHING, TEXTS, tokenizer, 80)
    for number in range(rows.count):
        row = rows.row(number)
        assert (row["tokens"] == row["targets"]).all()
        assert (row["segments"] == row["decoder_segments"]).all()


def test_sentences_change_places_within_their_document(kit, tokenizer):
    task, seen = Denoise(infill=0.0), set()
    rows = kit.rows(task, TEXTS[:1], tokenizer, 80, seed=0)
    for number in range(40):
        row = rows.row(number)
        seen.add(tokenizer.decode(row["tokens"][row["segments"] == 1].tolist()))
        assert tokenizer.decode(row["targets"][row["weights"] > 0].tolist()) == TEXTS[0]
    sentences = ["The dog sees a fox.", " It runs.", " Good."]
    assert seen == {a + b + c for a in sentences for b in sentences for c in sentences if len({a, b, c}) == 3}


def test_long_documents_are_several_texts_and_nothing_is_lost(kit, tokenizer):
    documents = [np.arange(20, 20 + size) for size in (40, 9, 3)]
    rows = kit.rows(Denoise(), documents, tokenizer, 16, seed=1)
    parts = []
    for number in range(rows.count):
        row = rows.row(number)
        for segment in range(1, row["decoder_segments"].max() + 1):
            part = row["targets"][row["decoder_segments"] == segment].tolist()
            assert part.pop() == tokenizer.eos
            assert row["tokens"][row["segments"] == segment][-1] == tokenizer.eos
            parts.append(part)
    assert sorted(token for part in parts for token in part) == sorted(np.concatenate(documents).tolist())
    assert max(map(len, parts)) == 15


def test_a_text_that_grows_loses_its_end_and_keeps_its_eos(kit, tokenizer):
    rows = kit.rows(Denoise(span=0.01), [np.arange(20, 22)], tokenizer, 8, seed=0)
    for number in range(20):
        row = rows.row(number)
        source = row["tokens"][row["segments"] == 1]
        assert source[-1] == tokenizer.eos
        assert len(source) <= 3


def test_special_tokens_stand_as_in_sequence_to_sequence(tokenizer, wordpiece):
    for each in (tokenizer, wordpiece):
        assert framed(each, each.encode("a dog")).tolist() == ended(each, "a dog").tolist()
    inner = {"specials": {"mask": 9}, "eos": 2, "template": Template((((1,), 0), ("A", 0), ((2,), 0)))}
    assert framed(type("", (), inner)(), [7, 8]).tolist() == [1, 7, 8, 2]


def test_rows_are_functions_of_their_number_and_new_in_each_epoch(kit, tokenizer):
    rows, again = (kit.rows(Denoise(), TEXTS, tokenizer, 48, seed=3) for _ in range(2))
    threes, ones = Batches(rows, 3), Batches(again, 1)
    for number in (4, 0, 2):
        batch = threes.batch(number)
        for i in range(3):
            alone = ones.batch(3 * number + i)
            assert all((batch[name][i] == alone[name][0]).all() for name in batch)
    one = kit.rows(Denoise(), TEXTS[:1], tokenizer, 100, seed=3)
    assert len({tuple(one.row(i)["tokens"].tolist()) for i in range(8)}) == 8


def test_evaluation_sees_the_same_rows_each_time(kit, tokenizer):
    one, other = (EvaluationBatches(kit.rows(Denoise(), TEXTS, tokenizer, 48), 2) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        assert all((first[name] == second[name]).all() for name in first)


def test_packed_texts_padding_and_rows_of_weight_zero_change_nothing(kit, tokenizer):
    made = model(kit, tokenizer)
    params, packed = kit.random_params(made), kit.batch(NOTHING, TEXTS, tokenizer, 96, size=3)
    apart = stack([kit.rows(NOTHING, [text], tokenizer, 96).row(0) for text in TEXTS])
    assert packed["segments"].max() > 1
    kit.assert_equal_sums(NOTHING, made, params, packed, apart)
    noise = {name: value.copy() for name, value in packed.items()}
    blank = noise["weights"].sum(1) == 0
    assert blank.any()
    for name in noise.keys() - {"weights"}:
        noise[name][blank] = packed[name][0]
    kit.assert_equal_sums(NOTHING, made, params, packed, noise)


def test_masked_spans_are_filled_in_after_some_steps(kit, tokenizer):
    texts = ["The dog sees a fox.", "A fox jumps.", "It runs. Good."]
    made, rows = model(kit, tokenizer), kit.rows(Denoise(), texts, tokenizer, 32, seed=0)
    batch = stack([rows.row(number) for number in range(16 * rows.count)])
    params, loss = kit.overfit(Denoise(), made, batch, steps=250)
    assert loss < 0.1
    holes = ["The dog <mask> a fox.", "A fox<mask>", "It <mask>. Good."]
    assert fill(made, {"params": params}, tokenizer, holes, 2, 20) == texts


def test_problems_say_what_a_model_or_tokenizer_lacks(kit, tokenizer, plain):
    good = model(kit, tokenizer).config
    assert Denoise().problems(good, 64) == []
    assert len(Denoise().problems(kit.model("encoder", tokenizer).config, 64)) == 2
    assert len(Denoise(delete=-0.1, rotate=2.0, span=0.0).problems(good, 64)) == 3
    with pytest.raises(ValueError, match="has no mask: train one with"):
        kit.rows(Denoise(), TEXTS, plain, 24)
    with pytest.raises(ValueError, match="length is 1"):
        kit.rows(Denoise(), TEXTS, tokenizer, 1)
    with pytest.raises(ValueError, match="give texts"):
        Denoise().rows(kit.store(Denoise(), TEXTS, tokenizer), None, 12, None)
    assert isinstance(Denoise(), DenoiseConfig)
