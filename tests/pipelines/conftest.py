"""Tiny published models of random weights, with tokenizers, and what the reference's pipelines say of them."""

import dataclasses
import functools
import json
import os
import subprocess
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxformer import sharding
from jaxformer.config import Card
from jaxformer.nn.model import Model
from jaxformer.testing import randomized, tiny_models
from jaxformer.text.tokenizer import TokenizerConfig, train_tokenizer

TEXTS = [
    "anna lives in paris , the capital of france . bob sees the river thames in london .",
    "where does anna live ? who sees the river ? this example is about sport or politics .",
    "Äpfel und Birnen, naïve cafés: the quick brown fox jumps over the lazy dog.",
]
OLD = os.environ.get("JAXFORMER_REFERENCE_4")
"""A python that has transformers==4.55.4 and torch, for the pipelines that later versions have dropped."""
ENTITIES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
SCRIPT = """
import json, sys, warnings
import transformers
warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
task, folder, made, calls = json.loads(sys.stdin.read())
run = transformers.pipeline(task, model=folder, tokenizer=folder, device="cpu", **made)
print(json.dumps([run(*inputs, **options) for inputs, options in calls]))
"""


@functools.cache
def tokenizers():
    """{kind: (a tokenizer of the tokenizers library, the names of its special tokens)}."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    names = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=[*names.values()], show_progress=False)
    words.train_from_iterator(TEXTS, trainer)
    words.decoder = decoders.WordPiece()
    ids = [(name, words.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    marks = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "cls": "<s>", "sep": "</s>"}
    marks["mask"] = "<mask>"
    pieces = {}
    for kind in ("bytes", "framed"):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        every = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        made.train_from_iterator(TEXTS, every)
        if kind == "framed":
            made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        pieces[kind] = made, marks if kind == "framed" else {key: marks[key] for key in ("bos", "eos", "pad")}
    return {"words": (words, names)} | pieces


def sizes(**more):
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return size | {"max_position_embeddings": 64} | more


def labels(*names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def models(transformers):
    """{name: (kind of tokenizer, how the reference's model is made of a number of ids)}."""
    t = transformers

    def encoder(head, **more):
        return lambda vocab: getattr(t, f"Bert{head}")(t.BertConfig(vocab_size=vocab, **sizes(**more)))

    def roberta(head, **more):
        options = sizes(max_position_embeddings=66, type_vocab_size=1) | more
        return lambda vocab: getattr(t, f"Roberta{head}")(t.RobertaConfig(vocab_size=vocab, **options))

    def gpt(head, **more):
        size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
        return lambda vocab: getattr(t, head)(t.GPT2Config(vocab_size=vocab, **size, **ids, **more))

    def bart(**more):
        size = {
            f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 48))
        }
        size |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 32}
        more = {"max_position_embeddings": 64, "forced_eos_token_id": None} | more
        return lambda vocab: t.BartForConditionalGeneration(t.BartConfig(vocab_size=vocab, **size, **more))

    def t5(vocab):
        size = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        ids = {"decoder_start_token_id": 1, "pad_token_id": 1, "eos_token_id": 2}
        told = {"translation_en_to_fr": {"prefix": "the fox : "}}
        return t.T5ForConditionalGeneration(t.T5Config(vocab_size=vocab, **size, **ids, task_specific_params=told))

    nli = labels("contradiction", "neutral", "entailment")
    return {
        "classify": ("words", encoder("ForSequenceClassification", **labels("bad", "so so", "good"))),
        "multi": ("words", encoder("ForSequenceClassification", problem_type="multi_label_classification")),
        "regression": ("words", encoder("ForSequenceClassification", problem_type="regression", num_labels=1)),
        "one": ("words", encoder("ForSequenceClassification", num_labels=1)),
        "decoder_classify": ("bytes", gpt("GPT2ForSequenceClassification", num_labels=3)),
        "nli": ("words", encoder("ForSequenceClassification", **nli)),
        "tag": ("words", encoder("ForTokenClassification", **labels(*ENTITIES))),
        "byte_tag": ("framed", roberta("ForTokenClassification", **labels(*ENTITIES))),
        "answer": ("words", encoder("ForQuestionAnswering")),
        "byte_answer": ("framed", roberta("ForQuestionAnswering")),
        "lm": ("words", encoder("ForMaskedLM")),
        "byte_lm": ("framed", roberta("ForMaskedLM")),
        "embed": ("words", encoder("Model")),
        "gpt": ("bytes", gpt("GPT2LMHeadModel")),
        "bart": ("framed", bart()),
        "t5": ("framed", t5),
    }


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """published(name): the folder of one of `models`, every parameter drawn at random."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    known = models(transformers)

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        kind, build = known[name]
        inner, marks = tokenizers()[kind]
        random = np.random.default_rng([*name.encode()])  # torch draws others on other processors
        model = build(inner.get_vocab_size()).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                width = 6 if key == "qa_outputs.weight" else 0.3  # near-equal answers would be in any order
                parameter.copy_(torch.asarray(random.normal(0, width, parameter.shape)))
        named = {f"{role}_token": token for role, token in marks.items()}
        limit = {"model_max_length": 64, "chat_template": TEMPLATE}
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named, **limit)
        model.save_pretrained(folder)
        fast.save_pretrained(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # which every version knows
        config["model_input_names"] = ["input_ids", *["token_type_ids"] * (kind == "words"), "attention_mask"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture(scope="session")
def theirs():
    """theirs(task, folder, *calls, **options): what the reference says of calls, each (inputs, options)."""
    transformers = pytest.importorskip("transformers")

    def run(task, folder, *calls, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = transformers.pipeline(task, model=str(folder), tokenizer=str(folder), device="cpu", **options)
            return [made(*inputs, **more) for inputs, more in calls]

    return run


@pytest.fixture(scope="session")
def dropped():
    """As `theirs`, of the version that still had all pipelines."""
    if OLD is None:
        pytest.skip("JAXFORMER_REFERENCE_4 names no python with transformers==4.55.4")

    def run(task, folder, *calls, **options):
        given = json.dumps([task, str(folder), options, calls])
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        done = subprocess.run([OLD, "-c", SCRIPT], input=given, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def assert_same(ours, wanted, at="", close=1e-5):
    """Equal in keys, order, types and values; numbers but for rounding."""
    if isinstance(wanted, dict):
        assert isinstance(ours, dict), at
        assert list(ours) == list(wanted), at
        for key in wanted:
            assert_same(ours[key], wanted[key], f"{at}[{key!r}]", close)
    elif isinstance(wanted, list | tuple):
        assert isinstance(ours, list), at
        assert len(ours) == len(wanted), f"{at}: {ours} for {wanted}"
        for i, pair in enumerate(zip(ours, wanted, strict=True)):
            assert_same(*pair, f"{at}[{i}]", close)
    elif isinstance(wanted, str | int) or wanted is None:
        assert (type(ours), ours) == (type(wanted), wanted), at
    else:
        assert type(ours) is float, at
        assert abs(ours - float(wanted)) <= close, f"{at}: {ours!r} for {wanted!r}"


@functools.cache
def tokenizer(kind):
    """One of ours: "words" with [CLS], [SEP] and [MASK], "bytes" with bos and eos and the marks of a gap."""
    if kind == "words":
        return train_tokenizer(TokenizerConfig("wordpiece", 160), TEXTS)
    marks = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    return train_tokenizer(TokenizerConfig("byte_bpe", 330, specials=marks), TEXTS)


@functools.cache
def parts(name, kind="words", names=(), extra=()):
    """(model, params, tokenizer): a tiny architecture of jaxformer.testing over this vocabulary."""
    made = tokenizer(kind)
    config = dataclasses.replace(tiny_models()[name], vocab=made.vocab_size, extra=extra)
    named = {"id2label": {str(i): label for i, label in enumerate(names)}} if names else {}
    ids = {"decoder_start_token_id": 1, "eos_token_id": made.eos, "pad_token_id": made.pad}
    model = Model(config, compute="float32", card=Card(config=named | ids))
    return model, randomized(sharding.abstract_params(model), jax.random.key(3)), made


@pytest.fixture(scope="session")
def kit():
    """Functions of this file."""
    return SimpleNamespace(assert_same=assert_same, parts=parts, texts=TEXTS)
