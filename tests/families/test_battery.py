"""Every row of every family beside the reference implementation: one battery, a new family is a file of rows."""

import functools
import inspect
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxformer import families, sharding, source, testing
from jaxformer.config import Card
from jaxformer.generation.decode import generate
from jaxformer.inspect.taps import look
from jaxformer.nn.model import Model
from jaxformer.weights import convert

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("fresh_caches")]

FILES = [runpy.run_path(str(path)) for path in sorted(Path(__file__).parent.glob("rows_*.py"))]
ROWS = {name: hf for file in FILES for name, hf in file["ROWS"].items()}
MUTATIONS = {name: mutation for file in FILES for name, mutation in file["MUTATIONS"].items()}
every_row = pytest.mark.parametrize("name", ROWS)
NEW = 20


def _writes(name):
    """Whether this row's class continues text."""
    kinds = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel")
    return ROWS[name]["architectures"][0].endswith(kinds)


@functools.cache
def reference(name):
    """A model of the reference with every parameter drawn at random."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    hf = ROWS[name]
    config = transformers.AutoConfig.for_model(**hf)
    config._attn_implementation = "eager"
    model = getattr(transformers, hf["architectures"][0])(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if not parameter.requires_grad and path != "final_logits_bias":  # tables of sinusoids
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 + (1.0 if bool((parameter == 1).all()) else 0.0))  # about where scales begin
    return model


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder that the reference wrote of a row."""

    @functools.cache
    def folder(name):
        path = tmp_path_factory.mktemp("published")
        reference(name).save_pretrained(path)
        return path

    return folder


@functools.cache
def loaded(folder):
    """(model, parameters) of a folder."""
    return source.from_pretrained(folder)[:2]


def examples(name, padded):
    """(inputs of the reference, ours) as numpy arrays: three rows, where `padded` two of them shorter."""
    hf, model = ROWS[name], reference(name)
    config = families.family(hf["model_type"]).config(hf)
    two = config.encoder is not None and config.decoder is not None
    random, pad, eos = np.random.default_rng(0), model.config.pad_token_id or 0, model.config.eos_token_id
    tokens, mask = random.integers(5, config.vocab, (3, 9)), np.ones((3, 9), bool)
    if padded:
        mask[1, 6:], mask[2, 3:] = False, False
        if config.encoder is None and "Classification" not in hf["architectures"][0]:
            mask[1] = mask[1, ::-1]
    if two and isinstance(eos, int):
        tokens[np.arange(3), 8 - np.argmax(mask[:, ::-1], 1)] = eos
    tokens = np.where(mask, tokens, pad)
    theirs, ours = {"input_ids": tokens, "attention_mask": mask.astype(int)}, {"tokens": tokens, "mask": mask}
    takes = inspect.signature(model.forward).parameters
    if "token_type_ids" in takes and config.encoder and config.encoder.input.segments > 1:
        theirs["token_type_ids"] = ours["token_types"] = random.integers(0, config.encoder.input.segments, (3, 9))
    if "position_ids" in takes and config.encoder is None:
        theirs["position_ids"] = np.maximum(np.cumsum(mask, 1) - 1, 0)
    if two and config.head is not None:
        decoder_tokens = random.integers(5, config.vocab, (3, 7))
        theirs["decoder_input_ids"] = ours["decoder_tokens"] = decoder_tokens
    elif two:
        begin = np.full((3, 1), model.config.decoder_start_token_id)
        ours |= {"decoder_tokens": np.concatenate([begin, tokens[:, :-1]], 1), "decoder_mask": mask}
        theirs["decoder_input_ids"] = ours["decoder_tokens"]
    return theirs, ours


def reference_outputs(out):
    """What the reference computes, in one order for all classes."""
    import torch

    if "start_logits" in out:
        return [torch.stack([out.start_logits, out.end_logits], -1)]
    for keys in (
        ("prediction_logits", "seq_relationship_logits"),
        ("prediction_logits", "sop_logits"),
        ("logits",),
        ("last_hidden_state", "pooler_output"),
        ("last_hidden_state",),
    ):
        if all(out.get(key) is not None for key in keys):
            return [out[key] for key in keys]
    raise AssertionError(f"outputs {list(out)}")


def our_outputs(out):
    """What the model computes, in the same order."""
    heads = [out.logits, *(out.extra or {}).values()]
    found = [value for value in heads if value is not None]
    return found or [value for value in (out.hidden, out.pooled) if value is not None]


def counted(value, mask):
    """A loss: every number that speaks of a real token, or of a row, by a weight of its own."""
    weights = np.random.default_rng(1).normal(size=value.shape).astype(np.float32)
    if value.ndim == 3 and value.shape[:2] == mask.shape:
        weights *= mask[:, :, None]
    return weights / weights.size


def run_reference(name, padded):
    """(outputs, gradients by name) as numpy arrays."""
    import torch

    model, (theirs, ours) = reference(name), examples(name, padded)
    model.zero_grad()
    outputs = reference_outputs(model(**{key: torch.tensor(value) for key, value in theirs.items()}))
    mask = ours["mask"]
    # A head of one number a token has no last axis there.
    outputs = [out[..., None] if out.shape == mask.shape else out for out in outputs]
    sum((out * torch.tensor(counted(out, mask))).sum() for out in outputs).backward()
    gradients = {path: leaf.grad.numpy() for path, leaf in model.named_parameters() if leaf.grad is not None}
    return [out.detach().numpy() for out in outputs], gradients


@functools.partial(jax.jit, static_argnames="model")
def run_ours(model, params, given):
    """((loss, outputs), gradients)."""

    def loss(params):
        outputs = our_outputs(model.apply({"params": params}, **given))
        mask = np.ones(given["mask"].shape)
        weights = [counted(out, mask) for out in outputs]
        real = given["mask"].astype(jnp.float32)
        spoken = [
            out * w * real[:, :, None] if out.ndim == 3 and out.shape[:2] == mask.shape else out * w
            for out, w in zip(outputs, weights, strict=True)
        ]
        return sum(jnp.sum(each) for each in spoken), outputs

    with jax.default_matmul_precision("highest"):
        return jax.value_and_grad(loss, has_aux=True)(params)


def errors(name, model, params, padded=True):
    """[(largest error at real positions, the error allowed)] of each output, and both gradients."""
    expected, their_gradients = run_reference(name, padded)
    (_, outputs), gradients = run_ours(model, params, examples(name, padded)[1])
    assert [out.shape for out in outputs] == [out.shape for out in expected]
    mask, found = examples(name, padded)[1]["mask"], []
    for ours, theirs in zip(outputs, expected, strict=True):
        real = mask if theirs.ndim == 3 and theirs.shape[:2] == mask.shape else slice(None)
        allowed = 1e-4 * max(1, np.abs(theirs[real]).max() / 30)
        found.append((np.abs(np.asarray(ours) - theirs)[real].max(), allowed))
    return found, gradients, their_gradients


@every_row
def test_outputs_and_gradients_are_those_of_the_reference(name, published):
    model, params = loaded(published(name))
    for padded in (False, True):
        found, gradients, expected = errors(name, model, params, padded)
        assert all(error < allowed for error, allowed in found), found
    ours = families.as_published(
        model.card.config, convert.export(families.family(model.card.model_type).names(model.config), gradients)
    )
    shared = expected.keys() & ours.keys()
    assert len(shared) >= min(len(expected), len(ours)) / 2
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    padding = {f"{path}.weight": getattr(part, "padding_idx", None) for path, part in reference(name).named_modules()}
    wrong = {}
    for path in shared:
        found, their = np.array(ours[path]), expected[path]
        if padding.get(path) is not None:  # it gives the row of padding no gradient, whoever reads it
            found[padding[path]] = their[padding[path]]
        wrong[path] = float(np.abs(found - their).max() / max(np.abs(their).max(), 1e-3 * largest))
    assert {path: error for path, error in wrong.items() if error > 1e-3} == {}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_architecture_is_caught(mutation, published):
    name, change = MUTATIONS[mutation]
    model, params = loaded(published(name))
    wrong = Model(change(model.config), card=model.card)
    found, _, _ = errors(name, wrong, params)
    assert any(error > allowed for error, allowed in found), found


@pytest.mark.parametrize("name", [name for name in ROWS if _writes(name)])
def test_greedy_tokens_are_those_of_the_reference(name, published):
    import torch

    model, params = loaded(published(name))
    theirs, ours = examples(name, padded=True)
    if model.config.encoder is None:  # the reference continues what is padded on the left
        order = np.argsort(ours["mask"], axis=1, kind="stable")
        ours = {key: np.take_along_axis(value, order, 1) for key, value in ours.items()}
        theirs = {"input_ids": ours["tokens"], "attention_mask": ours["mask"].astype(int)}
    given = {key: torch.tensor(theirs[key]) for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 1, "pad_token_id": 0, "eos_token_id": None}
    expected = reference(name).generate(**given, **options).numpy()[:, -NEW:]
    found = generate(model, params, ours["tokens"], NEW, ours["mask"], eos=())
    np.testing.assert_array_equal(found.tokens, expected)
    np.testing.assert_array_equal(uncached(model, params, ours), expected)


def uncached(model, params, given):
    """Greedy tokens by a full pass for each."""
    two, tokens, mask = model.config.encoder is not None, given["tokens"], given["mask"]
    written = np.tile(model.card.special("decoder_start")[:1], (len(tokens), 1)) if two else tokens
    end = written.shape[1]
    written, seen = np.pad(written, ((0, 0), (0, NEW))), np.pad(mask, ((0, 0), (0, NEW)), constant_values=True)

    @jax.jit
    def best(written):
        inputs = (tokens, written) if two else (written,)
        out = model.apply({"params": params}, *inputs, mask=mask if two else seen)
        return jnp.argmax(out.logits, -1)

    forced = model.card.special("forced_bos"), model.card.special("forced_eos")
    for place in range(end, end + NEW):
        written[:, place] = best(written)[:, place - 1]
        if forced[0] and place == end == 1:
            written[:, place] = forced[0][0]
        if forced[1] and place == end + NEW - 1:
            written[:, place] = forced[1][0]
    return written[:, end:]


@every_row
def test_published_in_equals_published_out(name, published, tmp_path):
    model, params = loaded(published(name))
    source.save_pretrained(tmp_path / "ours", model, params)
    theirs, ours = (load_file(path / "model.safetensors") for path in (published(name), tmp_path / "ours"))
    assert theirs.keys() == ours.keys()
    for path, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, ours[path])
    for file in ("config.json", "generation_config.json"):
        if (published(name) / file).exists():
            assert (tmp_path / "ours" / file).read_bytes() == (published(name) / file).read_bytes()


@every_row
def test_the_reference_opens_what_is_published_from_scratch(name, tmp_path):
    import torch
    import transformers

    config = families.family(ROWS[name]["model_type"]).config(ROWS[name])
    _, written = families.publish(config)
    params = jax.tree.map(jnp.asarray, loaded_like(config))
    model = Model(config, card=Card(config={"pad_token_id": ROWS[name].get("pad_token_id", 0)}))
    source.save_pretrained(tmp_path / "model", model, params, max_shard_size="20KB")
    cls = getattr(transformers, written["architectures"][0])
    theirs, report = cls.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    if cls is type(reference(name)):
        ours = examples(name, padded=False)
        with torch.no_grad():
            expected = reference_outputs(theirs.eval()(**{k: torch.tensor(v) for k, v in ours[0].items()}))
        (_, outputs), _ = run_ours(model, params, ours[1])
        for out, their in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(
                out, their.numpy().reshape(out.shape), atol=1e-4 * max(1, np.abs(out).max() / 30)
            )


def loaded_like(config):
    """Parameters of this architecture, every one drawn at random."""
    return testing.randomized(sharding.abstract_params(Model(config)), jax.random.key(0))


ATTENTIONS = {
    "encoder/blocks/attention": ("encoder_attentions", "attentions"),
    "decoder/blocks/attention": ("decoder_attentions", "attentions"),
    "decoder/blocks/cross": ("cross_attentions",),
}


@pytest.mark.parametrize("name", ["gpt2", "bert", "albert", "t5", "bart", "gemma3", "qwen3", "bloom"])
def test_attention_probabilities_are_those_of_the_reference(name, published):
    import torch

    (model, params), (theirs, ours) = loaded(published(name)), examples(name, False)
    given = {key: torch.tensor(value) for key, value in theirs.items()}
    expected = reference(name)(**given, output_attentions=True)
    with jax.default_matmul_precision("highest"):
        tokens = [ours.pop(key) for key in ("tokens", "decoder_tokens") if key in ours]
        _, found = look(model, params, *tokens, taps=["**/probabilities"], **ours)
    assert len(found) == (3 if len(tokens) > 1 else 1)
    for path, p_LBHTS in found.items():
        (layers,) = [expected[key] for key in ATTENTIONS[path.removesuffix("/probabilities")] if expected.get(key)]
        np.testing.assert_allclose(p_LBHTS, np.stack([layer.detach().numpy() for layer in layers]), rtol=0, atol=1e-5)
