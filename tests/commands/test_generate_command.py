"""`jaxformer generate`: text as it is produced, the same for the same seed."""

import io
import itertools
import sys
from dataclasses import replace

import jax
import pytest

from jaxformer import cli, sharding, testing
from jaxformer.commands import generate
from jaxformer.nn.model import Model
from jaxformer.source import save_pretrained

PROMPT = "def double(x):"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder in the published layout, its parameters drawn at random."""
    folder = tmp_path_factory.mktemp("models")
    model = Model(replace(testing.tiny_models()["rotary"], vocab=320))
    params = testing.randomized(sharding.abstract_params(model), jax.random.key(0))
    save_pretrained(folder / "model", model, params, testing.tiny_tokenizer())
    save_pretrained(folder / "mute", model, params)
    return folder


def text(capsys, folder, *options):
    """What is written to standard output, and to standard error."""
    assert generate.main([str(folder / "model"), "--prompt", PROMPT, "--tokens", "8", *options]) == 0
    return capsys.readouterr()


def test_greedy_text_follows_the_prompt_and_is_always_the_same(published, capsys):
    first = text(capsys, published, "--temperature", "0")
    assert first.out.startswith(PROMPT)
    assert len(first.out) > len(PROMPT) + 1
    assert first.out.endswith("\n")
    assert first.err == ""
    assert text(capsys, published, "--temperature", "0") == first
    assert text(capsys, published, "--top-k", "1", "--seed", "5") == first


def test_equal_seeds_give_equal_texts(published, capsys):
    options = ("--temperature", "1.5", "--top-p", "1", "--seed")
    texts = [text(capsys, published, *options, seed).out for seed in ("1", "1", "2", "3")]
    assert texts[0] == texts[1]
    assert len({*texts}) == 3


def test_a_seed_that_was_drawn_is_told_and_gives_the_text_again(published, capsys):
    out, err = text(capsys, published, "--temperature", "1.5")
    name, seed = err.split()
    assert name == "seed"
    assert text(capsys, published, "--temperature", "1.5", "--seed", seed) == (out, "")


def test_text_is_written_as_it_is_produced(published, monkeypatch):
    written = []

    class Output(io.StringIO):
        def flush(self):
            written.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Output())
    generate.main([str(published / "model"), "--prompt", PROMPT, "--tokens", "8", "--temperature", "0"])
    assert len({*written}) >= 4
    assert all(late.startswith(early) for early, late in itertools.pairwise(written))


def test_a_stop_string_ends_the_text_before_it(published, capsys):
    whole = text(capsys, published, "--temperature", "0").out
    new = whole[len(PROMPT) : -1]
    assert len(new) > 3
    assert (
        text(capsys, published, "--temperature", "0", "--stop", new[2]).out
        == PROMPT + new[: new.index(new[2])] + "\n"
    )


def test_the_prompt_may_come_from_standard_input(published, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    generate.main([str(published / "model"), "--prompt", "-", "--tokens", "8", "--temperature", "0"])
    assert capsys.readouterr().out == text(capsys, published, "--temperature", "0").out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["mute"], "has no tokenizer"),
        (["nothing"], "no such folder"),
        (["model", "--tokens", "0"], "max_new_tokens"),
        (["model", "--temperature", "-1"], "temperature"),
        (["model", "--top-p", "1.5"], "top_p"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_cannot_be_done_is_said(published, options, said, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["generate", str(published / options[0]), *options[1:], "--prompt", PROMPT])
    assert exit.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("jaxformer: ")
    assert said in err


def test_a_prompt_is_required(published, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["generate", str(published / "model")])
    assert exit.value.code == 2
    assert "--prompt" in capsys.readouterr().err
