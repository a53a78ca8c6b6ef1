"""Publishing on the hub, through a fake of its client that keeps repositories in folders."""

import dataclasses
import functools
import shutil
from fnmatch import fnmatchcase
from types import SimpleNamespace

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import families, sharding, source
from jaxformer.config import Card, Sentences
from jaxformer.nn.model import Model
from jaxformer.weights import hub

ENCODER = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 48,
}
DECODER = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 48,
}


def small(hf=DECODER, **card):
    model = Model(families.family(hf["model_type"]).config(hf), card=Card(**card))
    shapes, random = sharding.abstract_params(model), np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.fixture
def hub_of_folders(tmp_path, monkeypatch):
    """The folder in which the fake client keeps each repository's branches."""
    kept = tmp_path / "hub"

    class Client:
        def create_repo(self, repo_id, *, private, exist_ok):
            assert exist_ok
            (kept / repo_id / "main").mkdir(parents=True, exist_ok=True)
            (kept / repo_id / "private").write_text(str(private))

        def create_branch(self, repo_id, *, branch, exist_ok):
            assert exist_ok
            (kept / repo_id / branch).mkdir(exist_ok=True)

        def file_exists(self, repo_id, filename, *, revision):
            return (kept / repo_id / (revision or "main") / filename).is_file()

        def upload_folder(self, *, repo_id, folder_path, commit_message, revision, delete_patterns):
            branch = kept / repo_id / (revision or "main")
            for path in list(branch.iterdir()):
                if any(fnmatchcase(path.name, pattern) for pattern in delete_patterns):
                    path.unlink()
            shutil.copytree(folder_path, branch, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"https://example.org/{repo_id}/{commit_message}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    return kept


def test_what_is_pushed_is_what_is_saved_and_a_card(hub_of_folders, tmp_path):
    model, params = small()
    address = source.push_to_hub("who/what", model, params, about="Trained on sums.", license="mit", message="One")
    assert address == "https://example.org/who/what/One"
    source.save_pretrained(tmp_path / "saved", model, params)
    pushed = hub_of_folders / "who/what/main"
    saved = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert {path.name: path.read_bytes() for path in pushed.iterdir() if path.name != "README.md"} == saved
    _, again, _ = source.from_pretrained(pushed)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_the_card_says_what_the_model_is_and_how_it_is_opened(hub_of_folders):
    model, params = small()
    source.push_to_hub("who/what", model, params, about="Trained on sums.", license="mit")
    text = (hub_of_folders / "who/what/main/README.md").read_text()
    assert huggingface_hub.ModelCard(text).data.to_dict() == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["jaxformer", "jax", "llama"],
    }
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"| parameters | {count:,} |" in text
    assert "Trained on sums." in text
    assert 'jaxformer.from_pretrained("who/what")' in text
    assert 'transformers.LlamaForCausalLM.from_pretrained("who/what")' in text


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForMaskedLM", "fill-mask"),
        ("BertForSequenceClassification", "text-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("BertModel", "feature-extraction"),
    ],
)
def test_the_card_names_the_task_of_the_head(architecture, task, hub_of_folders):
    source.push_to_hub("what", *small(ENCODER | {"architectures": [architecture]}))
    text = (hub_of_folders / "what/main/README.md").read_text()
    assert huggingface_hub.ModelCard(text).data.pipeline_tag == task


def test_how_sentences_are_made_is_pushed_with_the_model(hub_of_folders):
    model, params = small(ENCODER, sentences=Sentences("first", normalize=True))
    source.push_to_hub("who/vectors", model, params)
    pushed = hub_of_folders / "who/vectors/main"
    assert huggingface_hub.ModelCard((pushed / "README.md").read_text()).data.pipeline_tag == "sentence-similarity"
    assert source.from_pretrained(pushed)[0].card.sentences == model.card.sentences


def test_a_card_that_stands_there_stays_and_old_shards_go(hub_of_folders):
    model, params = small()
    source.push_to_hub("who/what", model, params, max_shard_size="5KB", private=True)
    pushed = hub_of_folders / "who/what/main"
    assert (pushed / hub.INDEX).is_file()
    assert (hub_of_folders / "who/what/private").read_text() == "True"
    (pushed / "README.md").write_text("by hand")
    source.push_to_hub("who/what", model, params)
    assert (pushed / "README.md").read_text() == "by hand"
    assert sorted(path.name for path in pushed.glob("model*")) == ["model.safetensors"]


def test_a_branch_is_made_and_main_left_alone(hub_of_folders):
    source.push_to_hub("who/what", *small(), revision="trial")
    assert (hub_of_folders / "who/what/trial/README.md").is_file()
    assert list((hub_of_folders / "who/what/main").iterdir()) == []


def test_a_bad_name_or_a_bad_model_is_refused_before_anything_is_sent(hub_of_folders):
    model, params = small()
    with pytest.raises(ValueError, match="'a/b/c': expected a hub id of the form owner/name"):
        source.push_to_hub("a/b/c", model, params)
    odd = dataclasses.replace(model.config, head=dataclasses.replace(model.config.head, softcap=3.0))
    with pytest.raises(ValueError, match="softcap"):
        source.push_to_hub("a/b", Model(odd), params)
    assert not hub_of_folders.exists()


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    nobody = functools.partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9", token="hf_none")
    monkeypatch.setattr(huggingface_hub, "HfApi", nobody)
    with pytest.raises(ConnectionError, match=r"who/what: nothing was published: .*hf auth login"):
        source.push_to_hub("who/what", *small())
