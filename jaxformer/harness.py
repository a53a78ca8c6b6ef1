"""Models under EleutherAI's lm-evaluation-harness, the package lm-eval: pip install "jaxformer[harness]".

B batch, T length, C scored tokens, D width, V vocabulary.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console
from rich.progress import track

from jaxformer.config import LearnedConfig
from jaxformer.generation import Greedy, Sample, Strategy, prompts, stream_tokens
from jaxformer.losses import CHUNK_ELEMENTS
from jaxformer.nn.model import Model
from jaxformer.text import chat
from jaxformer.text.tokenizer import Tokenizer

LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
"""How config.json calls the longest text, in the order in which the harness looks."""
UNKNOWN = 2048
"""Tokens of the longest text where nothing tells it: the harness's own default."""
LOOK = 8
"""New tokens between two looks for a stop string."""

T = TypeVar("T")
Inputs = tuple[tuple[int, ...], tuple[int, ...]]
"""What an encoder reads, () where there is none; what the decoder reads."""


def lm_eval_model(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    add_bos: bool | None = None,
    adapter: Any = None,
) -> Any:
    """The model as an `LM` of lm-eval: `lm_eval.simple_evaluate(lm_eval_model(...), tasks=[...])`.

    Texts become ids as in the harness's own backend "hf". max_length: tokens that a text is cut to, from the left;
    None is what the model's card says, else its learned positions, else 2048. add_bos: None puts the special tokens
    around a text that the tokenizer's template does, True a bos before it, False nothing. `adapter`: the collection
    "lora" (nn/linear.py). Of the settings for generation it knows until, max_gen_toks and its other names, do_sample,
    temperature, top_k and top_p; each other one is a ValueError.

    Raises ImportError without lm-eval, and ValueError for a model that gives no next token, or a tokenizer without
    bos and eos: nothing could stand before a text.
    """
    try:
        from lm_eval import utils
        from lm_eval.api.model import TemplateLM
        from lm_eval.models.utils import normalize_gen_kwargs
    except ImportError:
        raise ImportError('the harness is the package lm-eval: pip install "jaxformer[harness]"') from None
    asked = Asked(model, params, tokenizer, batch_size, max_length or longest(model), add_bos, adapter)

    class JaxformerLM(TemplateLM):
        backend = "seq2seq" if asked.start else "causal"
        eot_token_id = tokenizer.eos
        prefix_token_id = asked.prefix
        max_length = asked.max_length
        tokenizer_name = tokenizer.fingerprint()

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return asked.encode(string, add_special_tokens)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return asked.log_likelihoods([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            cut = functools.partial(utils.get_rolling_token_windows, max_seq_len=asked.max_length, context_len=1)
            texts = [cut(asked.encode(request.args[0]), prefix_token=asked.prefix) for request in requests]
            windows = [[utils.make_disjoint_window(window) for window in text] for text in texts]
            scored = iter(asked.log_likelihoods(list(itertools.chain(*windows))))
            return [sum((score for score, _ in itertools.islice(scored, len(each))), 0.0) for each in windows]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            settings = [normalize_gen_kwargs(r.args[1], default_max_gen_toks=256) for r in requests]
            return asked.continuations([r.args[0] for r in requests], settings)

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return chat_text(tokenizer, chat_history, add_generation_prompt)

    lm = JaxformerLM()
    lm.tokenizer = tokenizer
    return lm


def longest(model: Model) -> int:
    """Tokens of the longest text that the model reads."""
    published = [model.card.config[name] for name in LENGTHS if model.card.config.get(name) is not None]
    stack = model.config.decoder or model.config.encoder
    learned = stack.input.positions if stack is not None else None
    return int(published[0]) if published else learned.length if isinstance(learned, LearnedConfig) else UNKNOWN


def chat_text(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
    """The text of a chat, that ends with the beginning of an answer, or else where the last message ends."""
    text = chat.prompt(tokenizer, messages, add_generation_prompt)
    if add_generation_prompt:
        return text
    said = messages[-1]["content"].strip()
    return text[: text.rindex(said) + len(said)]


@dataclass(frozen=True)
class Asked:
    """A model that is asked how probable texts are, and how they go on."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    batch_size: int
    max_length: int
    add_bos: bool | None
    adapter: Any

    @functools.cached_property
    def prefix(self) -> int:
        """The id that a text without a context follows."""
        for id in (self.tokenizer.bos, self.tokenizer.eos):
            if id is not None:
                return id
        raise ValueError("this tokenizer has neither bos nor eos: the first word of a text has nothing to follow")

    @functools.cached_property
    def start(self) -> tuple[int, ...]:
        """What the decoder behind an encoder begins with; () where there is no encoder."""
        read, (row,) = prompts.read_and_continued(self.model, [np.zeros(1, np.int64)], None)
        return () if read is None else tuple(row.tolist())

    @functools.cached_property
    def eos(self) -> tuple[int, ...]:
        """Ids that end a continuation."""
        return self.model.card.special("eos") or tuple(id for id in (self.tokenizer.eos,) if id is not None)

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """Ids, with special tokens around them; None adds none to a text that begins with one already."""
        ids = self.tokenizer.encode(text)
        if special is None:
            special = not text.startswith(self.tokenizer.piece(self.prefix))
        if not special or self.add_bos is False:
            return ids
        return [self.prefix, *ids] if self.add_bos else self.tokenizer.template(ids)[0]

    def log_likelihoods(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether each token is the likeliest) of each continuation of a context.

        What is read for several requests is read once: for choices of one token each, the question.
        """
        rows: dict[Inputs, list[tuple[int, int]]] = {}
        places = []
        for context, continuation in requests:
            inputs = self._inputs(context, continuation)
            pairs = rows.setdefault(inputs, [])
            places.append((inputs, slice(len(pairs), len(pairs) + len(continuation))))
            pairs += enumerate(continuation, len(inputs[1]) - len(continuation))
        found: dict[Inputs, np.ndarray] = {}
        for batch in _tracked(_batches(rows, self.batch_size, length=lambda inputs: (*map(len, inputs),))):
            found |= zip(batch, self._score(batch, [rows[inputs] for inputs in batch]), strict=False)
        answers = [found[inputs][place] for inputs, place in places]
        return [(float(each[:, 0].sum()), bool(each[:, 1].all())) for each in answers]

    def _inputs(self, context: Sequence[int], continuation: Sequence[int]) -> Inputs:
        if not 0 < len(continuation) <= self.max_length:
            raise ValueError(f"a continuation of {len(continuation)} tokens: expected 1 to {self.max_length}")
        if self.start:
            return tuple(context[-self.max_length :]), (*self.start, *continuation[:-1])
        return (), tuple([*context, *continuation][-self.max_length - 1 : -1])

    def _score(self, batch: Sequence[Inputs], pairs: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
        """float64 [B, C, 2] for the (position, target) of each row: what `next_tokens` gives."""
        columns = 1 << (max(map(len, pairs)) - 1).bit_length()
        wanted = [[*row, *[(0, 0)] * (columns - len(row))] for row in _filled(pairs, self.batch_size)]
        source, tokens = (_padded(_filled(side, self.batch_size)) for side in zip(*batch, strict=True))
        variables = {"params": self.params} | ({} if self.adapter is None else {"lora": self.adapter})
        read = (source, tokens) if self.start else (tokens,)
        return np.asarray(next_tokens(self.model, variables, read, np.array(wanted, np.int32)), np.float64)

    def continuations(self, texts: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
        """What follows each text, up to the first stop string of "until", an eos, or "max_gen_toks" tokens."""
        rows = [self._prompt(text, given["max_gen_toks"]) for text, given in zip(texts, settings, strict=True)]
        kind = lambda i: repr(sorted(settings[i].items()))
        batches = _batches(range(len(rows)), self.batch_size, lambda i: len(rows[i]), kind)
        found: dict[int, str] = {}
        for number, batch in enumerate(_tracked(batches)):
            key = jax.random.fold_in(jax.random.key(0), number)
            filled = _filled([rows[i] for i in batch], self.batch_size)
            found |= zip(batch, self._continued(filled, settings[batch[0]], key), strict=False)
        return [found[i] for i in range(len(rows))]

    def _prompt(self, text: str, new: int) -> list[int]:
        room = self.max_length if self.start else self.max_length - new
        if room < 1:
            raise ValueError(f"max_gen_toks is {new}: expected less than the {self.max_length} tokens of the model")
        return self.encode(text)[-room:] or [self.prefix]

    def _continued(self, rows: Sequence[list[int]], settings: Mapping[str, Any], key: Array) -> list[str]:
        count, strategy = settings["max_gen_toks"], _strategy(settings)
        new = stream_tokens(
            self.model, self.params, rows, count, strategy=strategy, eos=self.eos, key=key, adapter=self.adapter
        )
        columns: list[list[int]] = []
        told = lambda: [self._told(row, settings) for row in zip(*columns, strict=True)]
        for column in new:
            columns.append(column.tolist())
            if len(columns) % LOOK == 0 and all(ended for _, ended in told()):
                break
        return [text for text, _ in told()]

    def _told(self, ids: Sequence[int], settings: Mapping[str, Any]) -> tuple[str, bool]:
        """(the text of new ids up to what stops it, whether anything does)."""
        kept = list(itertools.takewhile(lambda id: id not in self.eos, ids))
        whole = text = self.tokenizer.decode(kept)
        for term in filter(None, settings["until"]):
            text = text.split(term)[0]
        return text, text != whole or len(kept) < len(ids)


@functools.partial(jax.jit, static_argnames="model")
def next_tokens(model: Model, variables: Any, read: Sequence[tuple[Array, Array]], wanted: Array) -> Array:
    """Each target's log-probability after its position, in nats, and 1 where it is the likeliest: float32 [B, C, 2].

    read: (tokens int [B, T], lengths int [B]) of the decoder, before them those of an encoder where there is one.
    wanted: (position, target), int [B, C, 2].
    """
    *_, (tokens_BT, lengths_B) = read
    slots_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    # Padding stands right, where no causal row sees it; its positions stay within those that are learned.
    positions_BT = jnp.minimum(slots_BT, lengths_B[:, None] - 1)
    out: Any
    if len(read) == 1:
        out = model.apply(variables, tokens_BT, positions=positions_BT, logits=False)
    else:
        source_BS, lengths_B = read[0]
        mask_BS = jnp.arange(source_BS.shape[1])[None] < lengths_B[:, None]
        out = model.apply(variables, source_BS, tokens_BT, mask=mask_BS, decoder_positions=positions_BT, logits=False)
    hidden_BCD = jnp.take_along_axis(out.hidden, wanted[:, :, :1], axis=1)

    def score(pair: tuple[Array, Array]) -> Array:
        hidden_D, target = pair
        logits_V: Any = model.apply(variables, hidden_D, method="unembed")
        return jnp.stack([logits_V[target] - jax.nn.logsumexp(logits_V), jnp.argmax(logits_V) == target])

    flat = hidden_BCD.reshape(-1, hidden_BCD.shape[-1]), wanted[:, :, 1].reshape(-1)
    scores = jax.lax.map(score, flat, batch_size=max(1, CHUNK_ELEMENTS // model.config.vocab))
    return scores.reshape(wanted.shape)


def _strategy(settings: Mapping[str, Any]) -> Strategy:
    """Raises ValueError for a setting that is not known here."""
    known = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")
    if stray := sorted(settings.keys() - known):
        raise ValueError(f"generation: {', '.join(stray)} cannot be set here: expected {', '.join(known)}")
    if not settings["do_sample"]:
        return Greedy()
    return Sample(settings.get("temperature", 1.0), settings.get("top_k", 0), settings.get("top_p", 1.0))


def _batches(
    rows: Iterable[T], size: int, length: Callable[[T], Any], kind: Callable[[T], str] = lambda row: ""
) -> list[list[T]]:
    """At most `size` rows of one kind and about one length, long ones first: what fills memory does so at once."""
    groups = itertools.groupby(sorted(rows, key=lambda row: (kind(row), length(row)), reverse=True), kind)
    lists = [list(group) for _, group in groups]
    return [group[at : at + size] for group in lists for at in range(0, len(group), size)]


def _filled(rows: Sequence[T], size: int) -> list[T]:
    """The last row fills the batch, so that every batch has one shape."""
    return [*rows, *[rows[-1]] * (size - len(rows))]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [B, T] with zeros on the right, lengths int32 [B])."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), prompts.bucket(int(lengths.max()))), np.int32)
    for out, row in zip(ids, rows, strict=True):
        out[: len(row)] = row
    return ids, lengths


def _tracked(batches: Sequence[T]) -> Iterable[T]:
    """The batches, with a bar on a terminal."""
    console = Console(stderr=True)
    return track(batches, "asking the model", console=console, disable=not console.is_terminal)
