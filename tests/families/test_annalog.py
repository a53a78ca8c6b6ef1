"""Real trained weights of the shape of 2017: the package annalog, which writes molecules like the one it reads."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from jaxformer import pipeline, sharding
from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    Card,
    HeadConfig,
    InputConfig,
    LearnedConfig,
    MlpConfig,
    ModelConfig,
    StackConfig,
)
from jaxformer.generation.decode import generate
from jaxformer.names import linear, norm, table
from jaxformer.nn.model import Model
from jaxformer.text.tokenizer_json import JsonTokenizer
from jaxformer.weights import convert, pickled

pytestmark = pytest.mark.annalog

MOLECULES = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "ibuprofen": "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
    "naproxen": "COc1ccc2cc(C(C)C(=O)O)ccc2c1",
    "nicotinamide": "NC(=O)c1cccnc1",
    "salbutamol": "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1",
}
TOKEN = re.compile(r"\[[^\]]*\]|%\d{2}|Br|Cl|.")
PAD, START, END = 1, 2, 3
VOCAB = 59
# The original reads and writes two vocabularies. Here they are one: what the decoder knows stands behind what the
# encoder knows, and a bias keeps it from writing anything else.
NEVER = -1e9
MARK = "\u2060"
"""Before what the decoder writes, in the vocabulary that is one."""
EVERY = ("query", "key", "value", "out")


def architecture():
    attention = AttentionConfig(8, 8, 32, bias=EVERY)

    def stack(cross):
        block = BlockConfig(attention, MlpConfig(512, "relu"), norms="post", cross=cross)
        return StackConfig((block,), 3, cross is not None, InputConfig(LearnedConfig(102), scale=16.0))

    head = HeadConfig(tied=False, bias=True)
    return ModelConfig(2 * VOCAB, 256, encoder=stack(None), decoder=stack(attention), head=head).validate()


def names():
    rows = table("embed", "both.tok_embedding") + linear("heads/lm", "both.fc_out", bias=True)
    for stack in ("encoder", "decoder"):
        blocks, layer = f"{stack}/blocks", f"{stack}.layers.{{layer}}"
        rows += table(f"{stack}/position", f"{stack}.pos_embedding")
        parts = (("attention", "self_attention", "self_attn"), ("cross", "encoder_attention", "enc_attn"))
        for ours, theirs, short in parts[: 1 if stack == "encoder" else 2]:
            for part in EVERY:
                path, inputs = f"{blocks}/{ours}/{part}", 2 if part == "out" else 1
                rows += linear(path, f"{layer}.{theirs}.fc_{part[0]}", inputs=inputs, bias=True)
            rows += norm(f"{blocks}/{ours}_norm", f"{layer}.{short}_layer_norm", bias=True)
        for ours, theirs in (("up", "fc_1"), ("down", "fc_2")):
            rows += linear(f"{blocks}/mlp/{ours}", f"{layer}.positionwise_feedforward.{theirs}", bias=True)
        rows += norm(f"{blocks}/mlp_norm", f"{layer}.ff_layer_norm", bias=True)
    return rows


@pytest.fixture(scope="module")
def files():
    """(tensors as published, ids by token)."""
    (package,) = importlib.util.find_spec("annalog").submodule_search_locations
    folder = Path(package) / "ckpt_and_vocab"
    vocabulary = pickled.describe((folder / "stereo_experiment_vocab_ttf.pkl").read_bytes())
    return pickled.open_pickled(folder / "Lev_extended.pt"), vocabulary["stoi"]


@pytest.fixture(scope="module")
def loaded(files):
    """(model, parameters)."""
    tensors = dict(files[0])
    two = [np.array(tensors.pop(f"{stack}.tok_embedding.weight")[:, :]) for stack in ("encoder", "decoder")]
    kernel, bias = (np.array(tensors.pop(f"decoder.fc_out.{name}")[:]) for name in ("weight", "bias"))
    tensors["both.tok_embedding.weight"] = np.concatenate(two)
    tensors["both.fc_out.weight"] = np.concatenate([np.zeros_like(kernel), kernel])
    tensors["both.fc_out.bias"] = np.concatenate([np.full_like(bias, NEVER), bias])
    model = Model(architecture(), card=Card(config={"decoder_start_token_id": VOCAB + START}))
    return model, convert.load(names(), sharding.abstract_params(model), tensors)


@pytest.fixture(scope="module")
def prompts(files):
    """The molecules as the ids of their tokens."""
    return [[START, *(files[1][token] for token in TOKEN.findall(each)), END] for each in MOLECULES.values()]


def test_a_drug_is_written_as_it_was_read(files, loaded, prompts):
    model, params = loaded
    tokens = {VOCAB + id: token for token, id in files[1].items()}
    found = generate(model, params, prompts, 40, eos=VOCAB + END, pad=VOCAB + PAD)
    rows = zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)
    written = ["".join(tokens[id] for id in row[: length - 1]) for row, length in rows]
    assert dict(zip(MOLECULES, written, strict=True)) == MOLECULES


@pytest.mark.parametrize("task", ["text2text-generation", "translation", "summarization"])
def test_a_pipeline_reads_and_writes_them_as_text(files, loaded, task):
    ids = dict(files[1])
    inner = Tokenizer(models.WordLevel(ids | {MARK + token: VOCAB + id for token, id in ids.items()}, "<unk>"))
    inner.add_special_tokens([MARK + "<eos>"])
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN.pattern), "isolated")
    inner.decoder = decoders.Sequence([decoders.Replace(MARK, ""), decoders.Fuse()])
    around = [("<sos>", START), ("<eos>", END)]
    inner.post_processor = processors.TemplateProcessing("<sos> $A <eos>", special_tokens=around)
    model, params = loaded
    special = {"decoder_start_token_id": VOCAB + START, "eos_token_id": VOCAB + END, "pad_token_id": VOCAB + PAD}
    run = pipeline(
        task, (model.clone(card=Card(config=special)), params, JsonTokenizer(inner, {})), max_new_tokens=40
    )
    assert [one[run.returns] for one in run(list(MOLECULES.values()))] == list(MOLECULES.values())
    with pytest.raises(ValueError, match="learned positions for 102: give truncation=True"):
        run("C" * 150)
    assert run("C" * 150, truncation=True)


@pytest.mark.parity
def test_its_logits_are_those_of_the_reference_in_float64(files, loaded, prompts):
    import torch
    import transformers

    tensors = files[0]
    sizes = {"vocab_size": VOCAB, "decoder_vocab_size": VOCAB, "d_model": 256, "max_position_embeddings": 102}
    for stack in ("encoder", "decoder"):
        sizes |= {f"{stack}_layers": 3, f"{stack}_ffn_dim": 512, f"{stack}_attention_heads": 8}
    apart = {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False}
    others = {"activation_function": "relu", "scale_embedding": True}
    special = {"pad_token_id": PAD, "decoder_start_token_id": START}
    config = transformers.MarianConfig(**sizes, **apart, **others, **special)
    theirs = transformers.MarianMTModel(config).eval().double()
    state = {_marian(name): torch.tensor(tensor[...]) for name, tensor in tensors.items()}
    state["final_logits_bias"] = state["final_logits_bias"][None]
    theirs.load_state_dict(state)
    read = np.full((len(prompts), max(map(len, prompts))), PAD)
    for row, prompt in zip(read, prompts, strict=True):
        row[: len(prompt)] = prompt
    seen, written = read != PAD, np.random.default_rng(0).integers(4, VOCAB, (len(prompts), 20))
    given = {"input_ids": read, "attention_mask": seen, "decoder_input_ids": written}
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(value) for name, value in given.items()}).logits.numpy()
    model, params = loaded
    with jax.default_matmul_precision("highest"):
        found = model.apply({"params": params}, read, written + VOCAB, mask=seen).logits
    np.testing.assert_allclose(found[..., VOCAB:], expected, atol=1e-4)
    assert np.all(found[..., :VOCAB] == NEVER)


def _marian(name):
    """What the reference's Marian calls a tensor."""
    for ours, theirs in (
        ("tok_embedding", "embed_tokens"),
        ("pos_embedding", "embed_positions"),
        ("self_attention.fc_o", "self_attn.out_proj"),
        ("encoder_attention.fc_o", "encoder_attn.out_proj"),
        ("self_attention.fc_", "self_attn.proj_"),
        ("encoder_attention.fc_", "encoder_attn.proj_"),
        ("positionwise_feedforward.fc_", "fc"),
        ("enc_attn_layer_norm", "encoder_attn_layer_norm"),
        ("ff_layer_norm", "final_layer_norm"),
        ("decoder.fc_out.weight", "lm_head.weight"),
        ("decoder.fc_out.bias", "final_logits_bias"),
    ):
        name = name.replace(ours, theirs)
    name = re.sub(r"proj_([qkv])", r"\1_proj", name)
    return name if name.startswith(("lm_head", "final_logits")) else f"model.{name}"
