"""How sentences are made into vectors, in and out."""

import json

import pytest

from jaxformer.config import Sentences
from jaxformer.weights import hub, sentence_transformers
from jaxformer.weights.sentence_transformers import POOLING

EVERY = [
    Sentences(),
    Sentences("first", normalize=True, length=128),
    Sentences("last", lowercase=True),
    Sentences("max", about={"prompts": {"query": "query: "}, "default_prompt_name": None}),
]


def written(folder, sentences=EVERY[1], **pooling):
    """A folder of a model's, with some entries of the pooling's file in place of its own."""
    sentence_transformers.write(folder, sentences, 24)
    if pooling:
        hub.write_json(folder / POOLING / "config.json", pooling)
    return folder


@pytest.mark.parametrize("sentences", EVERY, ids=lambda sentences: sentences.pooling)
def test_what_is_written_is_read(sentences, tmp_path):
    assert sentence_transformers.read(written(tmp_path, sentences)) == sentences


def test_a_folder_that_says_nothing_of_sentences_is_none(tmp_path):
    assert sentence_transformers.read(tmp_path) is None


def test_every_file_that_is_written_is_part_of_a_published_model(tmp_path):
    (tmp_path / "model").mkdir()
    written(tmp_path / "model", Sentences(normalize=True, about={"prompts": {}}))
    with hub.replacing(tmp_path / "model") as new:
        assert not any(new.iterdir())


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": ["lasttoken"], "include_prompt": True}, "last"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "max"),
        ({"word_embedding_dimension": 24}, "mean"),
    ],
    ids=str,
)
def test_every_spelling_of_the_pooling_is_read(pooling, expected, tmp_path):
    assert sentence_transformers.read(written(tmp_path, **pooling)).pooling == expected


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["cls", "mean"]}, "cls and mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "pooling_mode_mean_sqrt_len_tokens"),
        ({"pooling_mode_new_kind": True}, "pooling_mode_new_kind"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt=False"),
    ],
    ids=str,
)
def test_a_pooling_that_cannot_be_expressed_is_refused_by_name(pooling, named, tmp_path):
    with pytest.raises(ValueError, match=rf"1_Pooling/config.json: .*{named}.* is not supported"):
        sentence_transformers.read(written(tmp_path, **pooling))


@pytest.mark.parametrize(
    ("modules", "problem"),
    [
        ([("models.Transformer", ""), ("models.Dense", "2_Dense")], "found Transformer in '', Dense in '2_Dense'"),
        ([("models.Transformer", "0_Transformer"), ("models.Pooling", "1_Pooling")], "Transformer in '0_Transf"),
        ([("models.Transformer", ""), ("models.Pooling", "../1_Pooling")], "'../1_Pooling' is not the name"),
        ([("models.Transformer", ""), ("models.Pooling", "..")], "'..' is not the name"),
        ({"type": "models.Transformer"}, "expected a list of modules"),
        ([{"path": ""}], "expected a list of modules"),
    ],
    ids=str,
)
def test_modules_that_cannot_be_expressed_are_refused(modules, problem, tmp_path):
    written(tmp_path)
    listed = [{"type": one[0], "path": one[1]} if isinstance(one, tuple) else one for one in modules]
    (tmp_path / "modules.json").write_text(json.dumps(modules if isinstance(modules, dict) else listed))
    with pytest.raises(ValueError, match=f"modules.json: .*{problem}"):
        sentence_transformers.read(tmp_path)


def test_normalizing_anything_but_the_sentence_is_refused(tmp_path):
    (written(tmp_path) / "2_Normalize").mkdir()
    config = {"module_input_name": "token_embeddings"}
    hub.write_json(tmp_path / "2_Normalize" / "config.json", config)
    with pytest.raises(ValueError, match="module_input_name='token_embeddings' is not supported"):
        sentence_transformers.read(tmp_path)
