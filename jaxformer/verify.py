"""A published model looked over: its files, its numbers, and layer by layer beside the reference implementation.

B batch, T length, D width.
"""

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer import families
from jaxformer.config import InputConfig, ModelConfig, StackConfig
from jaxformer.families import heads
from jaxformer.nn.model import Model
from jaxformer.source import from_pretrained
from jaxformer.weights import hub

TOLERANCE = 1e-4
"""Of the largest number, or of 30 where that is more: what float32 leaves of an exact computation."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool | None
    """None: it could not be looked at."""
    detail: str


def verify(folder: str | Path, reference: bool | None = None) -> Iterator[Check]:
    """Each check as it is made; it ends with the first that makes the next ones pointless.

    reference: compare with transformers; None does where torch and transformers are installed.
    """
    folder = hub.resolve(folder)
    try:
        model, params, tokenizer = from_pretrained(folder, dtype="float32")
    except (ValueError, OSError) as error:
        yield Check("files, names and shapes", False, str(error))
        return
    leaves = jax.tree.leaves(params)
    count = sum(leaf.size for leaf in leaves)
    yield Check(
        "files, names and shapes", True, f"{model.card.model_type}, {count:,} parameters in {len(leaves)} leaves"
    )
    bad = list(_not_finite(hub.open_tensors(folder)))
    yield Check("finite values", not bad, ", ".join(bad) or "every tensor")
    yield _tokenizer_check(tokenizer, model)
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if reference or (reference is None and not missing):
        yield from _beside_reference(folder, model, params)
    elif reference is None:
        yield Check("beside the reference", None, f"not installed: {', '.join(missing)}")


def _not_finite(tensors: Mapping[str, Any]) -> Iterator[str]:
    for name, tensor in sorted(tensors.items()):
        values = np.asarray(tensor[(slice(None),) * len(tensor.shape)])
        lost = values.size - int(np.isfinite(values.astype(np.float32)).sum())
        if lost:
            yield f"{name}: {lost} of {values.size} are not"


def _tokenizer_check(tokenizer: Any, model: Model) -> Check:
    if tokenizer is None:
        return Check("tokenizer", None, "there is none of a known kind")
    fits = tokenizer.vocab_size <= model.config.vocab
    return Check("tokenizer", fits, f"{tokenizer.vocab_size} pieces, the model knows {model.config.vocab} ids")


def _beside_reference(folder: Path, model: Model, params: Any) -> Iterator[Check]:
    """Hidden vectors after each layer of a stack, up to the first that parts; then what each head gives."""
    import torch
    import transformers

    classes = families.family(model.card.model_type).ARCHITECTURES
    name = classes[heads.kind(model.card.config, classes)]
    theirs = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    model, config = dataclasses.replace(model, compute="float32"), model.config
    given = _example(config, theirs.config)
    with torch.no_grad():
        tensors = {key: torch.tensor(value) for key, value in given.items()}
        expected = theirs(**tensors, output_hidden_states=True, return_dict=True)
    with jax.default_matmul_precision("highest"):
        out = jax.jit(model.apply)({"params": params}, *given.values())
        for stack in ("encoder", "decoder"):
            if getattr(config, stack) is None:
                continue
            states = expected[f"{stack}_hidden_states" if len(given) > 1 else "hidden_states"]
            wanted = [state.numpy() for state in states]
            yield _compare_layers(stack, layers(model, params, stack, *given.values()), wanted)
    yield from _compare_heads(out, expected)


def _example(config: ModelConfig, theirs: Any) -> dict[str, np.ndarray]:
    """Inputs by the reference's names: a row of tokens; with two stacks another, which is the same backwards.

    No token is what the reference takes for padding. Where there are two stacks its heads read at the end of the
    text, which is the last token, and at no other.
    """
    special: list[int | None] = []
    for name in ("pad", "eos"):
        value = getattr(theirs, f"{name}_token_id", None)
        special += value if isinstance(value, list) else [value]
    usual = np.setdiff1d(np.arange(config.vocab), [id for id in special if id is not None])
    tokens = np.random.default_rng(0).choice(usual, (1, 16))
    if config.encoder is None or config.decoder is None:
        return {"input_ids": tokens}
    tokens[:, -1] = usual[-1] if special[-1] is None else special[-1]
    return {"input_ids": tokens, "decoder_input_ids": tokens[:, ::-1].copy()}


def layers(model: Model, params: Any, name: str, tokens: Any, decoder_tokens: Any = None) -> Iterator[np.ndarray]:
    """What goes into a stack's first block, then what comes out of each, of the last one normalised: [B, T, D]."""
    config, variables = model.config, {"params": params}
    stack: StackConfig = getattr(config, name)
    seen = lambda module, method: method == "_input"
    given = (tokens,) if decoder_tokens is None else (tokens, decoder_tokens)
    out, kept = model.apply(variables, *given, logits=False, capture_intermediates=seen, mutable=["intermediates"])
    h_BTD = kept["intermediates"][name]["_input"][0]
    yield np.asarray(h_BTD)
    more = {"encoder_hidden": out.encoder_hidden} if name == "decoder" and config.encoder is not None else {}
    run = jax.jit(Model.apply, static_argnames=("self", "method"))
    for i in range(stack.layers):
        last = i == stack.layers - 1
        single, own = _one_layer(config, params, name, i, stack.final_norm if last else None)
        alone = dataclasses.replace(model, config=single)
        h_BTD = run(alone, {"params": own}, None, embeddings=h_BTD, method=name.removesuffix("r"), **more)
        h_BTD = getattr(h_BTD, "hidden", h_BTD)
        yield np.asarray(h_BTD)


def _one_layer(config: ModelConfig, params: Any, name: str, i: int, norm: Any) -> tuple[ModelConfig, Any]:
    """The model with one layer of a stack, which takes embeddings as they come; and its parameters."""
    stack: StackConfig = getattr(config, name)
    place = i * stack.leading // stack.layers
    blocks = jax.tree.map(lambda leaf: leaf[place : place + 1], params[name]["blocks"])
    single = dataclasses.replace(
        stack,
        pattern=(stack.pattern[i % len(stack.pattern)],),
        layers=1,
        groups=None,
        input=InputConfig(),
        final_norm=norm,
    )
    held = {key: value for key, value in params[name].items() if key in ("relative", "norm")}
    bare = dataclasses.replace(config, embedding_width=None, head=None, extra=(), pooler=None)
    alone = (
        dataclasses.replace(bare, encoder=single) if name == "encoder" else dataclasses.replace(bare, decoder=single)
    )
    return alone, params | {name: held | {"blocks": blocks}}


def _compare_layers(name: str, ours: Iterator[np.ndarray], theirs: list[np.ndarray]) -> Check:
    worst = 0.0
    for i, (found, wanted) in enumerate(zip(ours, theirs, strict=True)):
        check = _compare(f"{name} after layer {i}" if i else f"the {name}'s input", found, wanted)
        if not check.passed:
            return check
        worst = max(worst, float(np.abs(found - wanted).max()))
    return Check(f"{name}, layer by layer", True, f"{len(theirs) - 1} layers, largest difference {worst:.1e}")


def _compare_heads(out: Any, expected: Mapping[str, Any]) -> Iterator[Check]:
    """The outputs of heads and the pooled vector, as far as the reference gives them too."""
    if out.logits is not None:
        yield _compare("logits", np.asarray(out.logits), _first(expected, "prediction_logits", "logits"))
    for name, numbers in (out.extra or {}).items():
        if name == "answer":
            wanted = np.stack([_first(expected, "start_logits"), _first(expected, "end_logits")], -1)
        else:
            wanted = _first(expected, "seq_relationship_logits", "sop_logits", "logits")
        # Of a head with one number a token the reference leaves the last axis out.
        wanted = wanted[..., None] if wanted.ndim < numbers.ndim else wanted
        yield _compare(f"the {name} head", np.asarray(numbers), wanted)
    if out.pooled is not None and expected.get("pooler_output") is not None:
        yield _compare("the pooled vector", np.asarray(out.pooled), _first(expected, "pooler_output"))


def _first(expected: Mapping[str, Any], *names: str) -> np.ndarray:
    return next(expected[name] for name in names if expected.get(name) is not None).numpy()


def _compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> Check:
    if ours.shape != theirs.shape:
        return Check(name, False, f"shape {ours.shape}, the reference's is {theirs.shape}")
    allowed = TOLERANCE * max(1.0, float(np.abs(theirs).max()) / 30)
    error = float(np.abs(ours - theirs).max())
    place = np.unravel_index(int(np.abs(ours - theirs).argmax()), ours.shape)
    detail = f"largest difference {error:.1e}, allowed {allowed:.1e}"
    return Check(name, error < allowed, detail if error < allowed else f"{detail}, at {tuple(map(int, place))}")
