"""What every notebook keeps to, and what each one claims, run from top to bottom at a small size."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import jax
import nbformat
import pytest

import jaxformer
from jaxformer import testing
from jaxformer.families import bert
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer
from jaxformer.train.metrics import read_metrics

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SMALL = {
    "01_train_on_colab": """
import inspect, json.decoder, json.encoder, textwrap
TEXTS = [inspect.getsource(module) for module in (json, json.decoder, json.encoder, textwrap)]
CHANGES = {"vocab": 512, "width": 64, "layers": 1, "rows": 8, "length": 32, "steps": 12}
""",
    "02_import_a_block": 'CHANGES = {"rows": 16, "steps": 250, "seeds": 2}',
    "03_load_and_generate": 'SOURCE, PROMPT, NEW = "published", "The quick brown", 12',
    "04_encoder_decoder_and_both": 'CHANGES = {"sentences": 1500, "steps": 300}',
    "06_fine_tune": 'START, CHANGES = "published", {"steps": 80, "full_lr": 3e-3, "adapter_lr": 1e-2}',
    "07_align": """
CHANGES = {"people": 6, "pages": 200, "width": 64, "layers": 2, "rows": 8, "length": 64}
CHANGES |= {"pretraining": 120, "instruction": 100, "preference": 8, "talks": 20, "draws": 16}
""",
}
"""What is put behind the cell tagged "parameters"."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_run_by_a_test_and_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) < 20
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == tags.count("install") == 1
    opening = " ".join(notebook.cells[0].source.split())
    assert "you will have" in opening
    assert "executed from top to bottom on a CPU" in opening
    tests = [file.read_text() for file in Path(__file__).parent.glob("test_*notebooks.py")]
    assert any(f'"{path.stem}": ' in text and f'executed("{path.stem}", ' in text for text in tests)


def shows(picture):
    """Whether it is more of a picture than an empty frame."""
    return picture.startswith(b"\x89PNG") and len(picture) > 10_000


@pytest.mark.slow
def test_training_on_colab_is_cut_off_goes_on_draws_and_writes(executed):
    ran = executed("01_train_on_colab", SMALL["01_train_on_colab"])
    assert "the runtime went away at step 8" in ran.text("train")
    assert "going on from step 6" in ran.text("resume")
    assert "bits_per_byte" in ran.text("resume")
    assert len(ran.pictures("train")) == len(ran.pictures("resume")) == 1
    (curve,) = ran.pictures("curve")
    assert shows(curve)
    assert curve == (ran.place / "runs/colab/curves.png").read_bytes()
    for tag in ("samples", "reload"):
        assert len(ran.text(tag)) > 12


def value(text):
    """The dict that a cell ends with."""
    return ast.literal_eval(text[text.index("{") :])


@pytest.mark.slow
def test_the_parts_are_the_formula_and_only_with_positions_is_the_task_learned(executed):
    ran = executed("02_import_a_block", SMALL["02_import_a_block"])
    told = ran.text("attention") + ran.text("stack") + ran.text("shuffle")
    differences = [float(number) for number in re.findall(r": (\d\.\de[-+]\d\d)$", told, re.MULTILINE)]
    assert len(differences) == 3
    assert max(differences) < 1e-5
    assert all(shape == (2, 250) for shape in value(ran.text("train")).values())
    for tag in ("curves", "learned"):
        assert [shows(picture) for picture in ran.pictures(tag)] == [True]
    nothing, buckets, ours = value(ran.text("learned")).values()
    assert nothing[0] > 1.5
    assert max(ours[0], buckets[0]) < 0.5
    assert ours[2] < 0.5 < nothing[2]


def published(place):
    """A tiny checkpoint in the published layout, as a hub would give it."""
    tokenizer = testing.tiny_tokenizer()
    config = testing.tiny_models()["rotary"]
    model = jaxformer.Model(replace(config, vocab=tokenizer.vocab_size))
    params = testing.randomized(jaxformer.init(model, jax.random.key(0)), jax.random.key(1))
    jaxformer.save_pretrained(place / "published", model, params, tokenizer)


@pytest.mark.slow
def test_a_published_model_is_opened_and_continues_a_prompt_by_every_strategy(executed):
    ran = executed("03_load_and_generate", SMALL["03_load_and_generate"], published)
    assert "parameters, " in ran.text("load")
    assert [shows(picture) for picture in ran.pictures("next")] == [True]
    scores = value(ran.text("again"))
    assert len(scores) == len(ran.text("strategies").splitlines()) - 1 == 5
    # What greedy search takes is likelier than what is drawn from all tokens.
    assert scores["greedy"]["nats a token"] < scores["sample, all"]["nats a token"]
    assert ran.text("stream").count("|") > 1
    assert value(ran.text("pipeline"))["generated_text"].startswith("The quick brown")


@pytest.mark.slow
def test_an_encoder_and_both_tell_what_a_decoder_cannot_see(executed):
    ran = executed("04_encoder_decoder_and_both", SMALL["04_encoder_decoder_and_both"])
    for tag in ("visibility", "losses", "word"):
        assert [shows(picture) for picture in ran.pictures(tag)] == [True]
    objectives = ran.text("objectives")
    assert [objectives.count(name) for name in (" in : ", " out: ")] == [3, 3]
    assert "[MASK]" in objectives
    assert "<extra_id_0>" in objectives
    right = value(ran.text("mean"))
    assert min(right["BERT"], right["T5"], right["GPT, the sound"]) > 0.6
    assert right["GPT"] < 0.3
    assert "<extra_id_1>" in ran.text("write")


def encoder(place):
    """A tiny encoder that knows the words of the notebook and nothing more, in the published layout."""
    notebook = nbformat.read(NOTEBOOKS[0].with_name("06_fine_tune.ipynb"), as_version=4)
    (words,) = (cell.source for cell in notebook.cells if cell.metadata.get("tags") == ["data"])
    there = {"CHANGES": {}}
    exec(compile(words, "06_fine_tune", "exec"), there)
    tokenizer = train_tokenizer(TokenizerConfig("wordpiece", 300), [record["text"] for record in there["every"]])
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = bert.config({"vocab_size": 300, "max_position_embeddings": 64} | sizes)
    model = jaxformer.Model(config)
    jaxformer.save_pretrained(place / "published", model, jaxformer.init(model, jax.random.key(0)), tokenizer)


@pytest.mark.slow
def test_fine_tuning_whole_or_by_an_adapter_beats_the_start_and_the_adapter_trains_less(executed):
    ran = executed("06_fine_tune", SMALL["06_fine_tune"], encoder)
    before, full, adapter = value(ran.text("compare")).values()
    assert before["accuracy"] < 0.7
    assert min(full["accuracy"], adapter["accuracy"]) > 0.9
    assert 0 < adapter["trained"] < full["trained"] / 4
    assert min(full["ms a step"], adapter["ms a step"]) > 0
    assert [shows(picture) for picture in ran.pictures("compare")] == [True]
    of_full, of_adapter = (float(size) for size in re.findall(r"([\d.]+) MB", ran.text("kept")))
    assert of_adapter < of_full / 2
    assert "superb. [{'label': 'positive'" in ran.text("kept")
    assert "awful. [{'label': 'negative'" in ran.text("kept")


@pytest.mark.slow
def test_from_pretraining_to_chat_each_stage_shows_what_it_changed(executed):
    ran = executed("07_align", SMALL["07_align"])
    runs = ran.place / "runs/village"
    for name, tag in (("pretraining", "pretrain"), ("instruction", "instruct")):
        assert ran.pictures(tag) == [(runs / name / "curves.png").read_bytes()]
        losses = [line["values"]["loss"] for line in read_metrics(runs / name) if "loss" in line["values"]]
        assert losses[-1] < losses[0]
    first, *_, last = (line["values"] for line in read_metrics(runs / "preference") if "margin" in line["values"])
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert last["margin"] > 0
    for tag in ("prefer", "stages"):
        (picture,) = ran.pictures(tag)
        assert shows(picture)
    table = value(ran.text("stages"))
    assert [*table] == ["pretraining", "instruction", "preference"]
    assert table["instruction"]["ended"] > table["pretraining"]["ended"]
    talk = ran.text("chat").splitlines()
    asked = [i for i, line in enumerate(talk) if line.startswith("> ")]
    assert len(asked) == 4
    assert any(talk[i + 1] for i in asked)
    assert talk[-1] == f"Go on in a terminal: jaxformer chat {runs / 'preference'}"
