import numpy as np
import pytest

from jaxformer.config import Card, HeadConfig
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.tasks.infill import SENTINELS, Infill, complete, infill_prompt
from jaxformer.text.index import Batches, EvaluationBatches, stack
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

TURNED, SUFFIX_FIRST = Infill(rate=1.0, spm=0.0), Infill(rate=1.0, spm=1.0)
TEXTS = [
    "def double(x):\n    y = 2 * x\n    return y\n",
    "def half(n):\n    m = n / 2\n    return m\n",
    "def join(a, b):\n    c = a + b\n    return c\n",
]


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer that was trained for the task."""
    return train_tokenizer(TokenizerConfig("sentencepiece", 350, specials=SENTINELS), TEXTS * 3)


def model(kit, tokenizer):
    made = kit.model("rotary", tokenizer, head=HeadConfig())
    return made.clone(card=Card(config={"eos_token_id": tokenizer.eos}))


def parts(tokens, tokenizer):
    """{sentinel: what follows it} of a turned piece."""
    prefix, suffix, middle = (tokenizer.id(name) for name in SENTINELS)
    found = {}
    for token in tokens:
        if token in (prefix, suffix, middle):
            current = found[token] = []
        else:
            current.append(int(token))
    assert [*found] == [prefix, suffix, middle]
    return found.values()


def test_without_turning_the_rows_are_those_of_language_modelling(kit, tokenizer):
    ours, theirs = (kit.rows(task, TEXTS, tokenizer, 20, seed=2) for task in (Infill(rate=0.0), CausalLM()))
    assert ours.count == theirs.count
    for number in range(2 * ours.count):
        one, other = ours.row(number), theirs.row(number)
        assert one.keys() == other.keys()
        assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize("task", [TURNED, SUFFIX_FIRST], ids=["prefix first", "suffix first"])
def test_the_middle_comes_last_and_nothing_else_changes(kit, tokenizer, task):
    bos, eos = tokenizer.bos, tokenizer.eos
    first, second = [bos, *range(20, 30), eos], [bos, *range(40, 45), eos]
    rows = kit.rows(task, [np.array(first), np.array(second)], tokenizer, 19, seed=0)
    plain = kit.rows(CausalLM(), [np.array(first), np.array(second)], tokenizer, 19, seed=0)
    for number in range(50):
        row, was = rows.row(number), plain.row(number)
        assert all((row[name] == was[name]).all() for name in ("segments", "positions", "weights"))
        for segment in (1, 2):
            begin, *piece, end = row["tokens"][row["segments"] == segment].tolist()
            _, *text, _ = was["tokens"][was["segments"] == segment].tolist()
            one, two, three = parts(piece, tokenizer)
            turned = one + three + two if task is TURNED else [*three, *two]
            assert (begin, end) == (bos, eos)
            assert task is TURNED or one == []
            assert len(piece) == len(text)
            if task is TURNED:
                assert turned == text[:-3]
            else:
                assert sorted(turned) == sorted(text[:-3])
                assert sum(a > b for a, b in zip(three + two, (three + two)[1:], strict=False)) <= 1


def test_a_part_of_a_document_is_turned_by_itself_and_ended(kit, tokenizer):
    rows = kit.rows(TURNED, [np.arange(20, 60)], tokenizer, 9, seed=0)
    for number in range(rows.count):
        row, was = rows.row(number), kit.rows(CausalLM(), [np.arange(20, 60)], tokenizer, 9, seed=0).row(number)
        there = row["segments"] > 0
        *piece, end = row["tokens"][there].tolist()
        assert (row["weights"] == was["weights"]).all()
        if there.sum() > 4:
            one, two, three = parts(piece, tokenizer)
            assert [*one, *three, *two] == was["tokens"][there].tolist()[:-4]
            assert end == tokenizer.eos
        else:
            assert (row["tokens"] == was["tokens"]).all()


@pytest.mark.parametrize("lines", [1, 2])
def test_a_middle_of_lines_begins_with_a_newline_and_so_does_what_follows(kit, tokenizer, lines):
    texts = ["".join(f"def f{i}{k}(x):\n    return {i}\n\n" for k in range(4)) for i in range(4)]
    rows, found = kit.rows(Infill(rate=1.0, spm=0.0, lines=lines), texts, tokenizer, 160, seed=1), set()
    for number in range(20 * rows.count):
        row = rows.row(number)
        for segment in range(1, row["segments"].max() + 1):
            piece = row["tokens"][row["segments"] == segment].tolist()
            if tokenizer.id(SENTINELS[2]) in piece:
                _, two, three = parts(piece[piece[0] == tokenizer.bos :], tokenizer)
                middle, after = tokenizer.decode(three), tokenizer.decode(two)
                assert middle[0] == after[0] == "\n"
                found.add(middle.count("\n"))
    assert found == {*range(1, lines + 1)}


def test_half_of_the_documents_are_turned_by_default(kit, tokenizer):
    rows = kit.rows(Infill(), TEXTS, tokenizer, 120, seed=1)
    middle, turned, whole = tokenizer.id(SENTINELS[2]), 0, 0
    for number in range(100 * rows.count):
        row = rows.row(number)
        turned += (row["tokens"] == middle).sum()
        whole += row["segments"].max()
    assert 0.4 < turned / whole < 0.6


def test_rows_are_functions_of_their_number_and_new_in_each_epoch(kit, tokenizer):
    rows, again = (kit.rows(Infill(), TEXTS, tokenizer, 24, seed=3) for _ in range(2))
    threes, ones = Batches(rows, 3), Batches(again, 1)
    for number in (4, 0, 2):
        batch = threes.batch(number)
        for i in range(3):
            alone = ones.batch(3 * number + i)
            assert all((batch[name][i] == alone[name][0]).all() for name in batch)
    one = kit.rows(Infill(), TEXTS[:1], tokenizer, 100, seed=3)
    assert len({tuple(one.row(i)["tokens"].tolist()) for i in range(12)}) > 4
    fixed = (EvaluationBatches(kit.rows(Infill(), TEXTS, tokenizer, 24), 2) for _ in range(2))
    for first, second in zip(*fixed, strict=True):
        assert all((first[name] == second[name]).all() for name in first)


def test_rows_of_weight_zero_change_nothing(kit, tokenizer):
    made, batch = model(kit, tokenizer), kit.batch(TURNED, TEXTS, tokenizer, 40)
    noise = {name: np.concatenate([value, value[:1]]) for name, value in batch.items()}
    noise["weights"][-1] = 0
    kit.assert_equal_sums(TURNED, made, kit.random_params(made), batch, noise)


@pytest.mark.parametrize(("task", "spm"), [(TURNED, False), (SUFFIX_FIRST, True)])
def test_the_middle_of_texts_that_were_learnt_is_completed(kit, task, spm):
    texts = ["the red fox runs over the hill", "a blue dog sits in his house", "my old cat eats all her fish"]
    tokenizer = train_tokenizer(TokenizerConfig("sentencepiece", 400, specials=SENTINELS), texts * 3)
    made, rows = model(kit, tokenizer), kit.rows(task, texts, tokenizer, 40, seed=0)
    batch = stack([rows.row(number) for number in range(48 * rows.count)])
    params, _ = kit.overfit(task, made, batch, steps=300)
    gaps = [("the red", " runs"), ("a blue", " sits"), ("my old", " eats")]
    assert complete(made, {"params": params}, tokenizer, gaps, 2, 8, spm=spm) == [" fox", " dog", " cat"]


def test_a_prompt_by_hand(tokenizer):
    prefix, suffix, middle = (tokenizer.id(name) for name in SENTINELS)
    before, after = tokenizer.encode("def f"), tokenizer.encode("return")
    wanted = [tokenizer.bos, prefix, *before, suffix, *after, middle]
    assert infill_prompt(tokenizer, "def f", "return").tolist() == wanted
    wanted = [tokenizer.bos, prefix, suffix, *after, middle, *before]
    assert infill_prompt(tokenizer, "def f", "return", spm=True).tolist() == wanted


def test_problems_say_what_a_model_or_tokenizer_lacks(kit, tokenizer, plain):
    good = model(kit, tokenizer).config
    assert Infill().problems(good, 64) == []
    assert len(Infill(rate=1.5, spm=-1, lines=0).problems(good, 64)) == 3
    assert len(Infill().problems(kit.model("encoder", tokenizer).config, 64)) == 3
    with pytest.raises(ValueError, match=r"train one with tokenizer\.specials that name them, or start from a model"):
        kit.rows(Infill(), TEXTS, plain, 24)
    assert Infill().specials == SENTINELS


def test_metrics_are_those_of_tokens():
    values = Infill().metrics({"loss": (0.0, 4.0), "accuracy": (1.0, 4.0)}, 100)
    assert values == {"loss": 0.0, "accuracy": 0.25, "perplexity": 1.0}
