"""Learn a teacher's whole distribution over the next token. B batch, T length."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jax import Array
from jax.sharding import Mesh

from jaxformer.config import ModelConfig
from jaxformer.losses import Metrics, cross_entropy, distillation
from jaxformer.nn.model import Model
from jaxformer.objective import FrozenModel, needs, run, too_long, unembedded, variables, with_aux
from jaxformer.source import from_pretrained
from jaxformer.tasks.causal_lm import CausalLM
from jaxformer.text.prepare import Example, Store
from jaxformer.text.records import Document
from jaxformer.text.rows import Rows
from jaxformer.text.tokenizer import Tokenizer
from jaxformer.train.step import LossFn


@dataclass(frozen=True)
class Distill:
    """Language modelling from left to right, on packed documents, that follows a teacher (Hinton et al., 2015).

    The loss is KL(teacher || student) of both distributions at a temperature, times its square, and `weight` times
    the cross-entropy with the text. Student and teacher have one vocabulary: begin from a student that has the
    teacher's tokenizer.
    """

    teacher: str = ""
    """The model to learn from: whatever from_pretrained reads."""
    temperature: float = 1.0
    """Both logits are divided by it: above 1 more is learned of what the teacher finds unlikely."""
    weight: float = 1.0
    """Of the cross-entropy with the text, beside 1 for the teacher's distribution."""

    columns: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[None] = None
    specials: ClassVar[tuple[str, ...]] = ()

    def problems(self, model: ModelConfig, length: int) -> list[str]:
        """It needs a teacher, and a decoder alone, with positions for a row."""
        found = [] if self.teacher else ["task.teacher is empty: give the folder or hub id of a model to learn from"]
        if self.temperature <= 0:
            found.append(f"task.temperature is {self.temperature}: it must be above zero")
        if self.weight < 0:
            found.append(f"task.weight is {self.weight}: it must be at least zero")
        return found + CausalLM().problems(model, length)

    def frozen(self, model: Model, tokenizer: Tokenizer | None, mesh: Mesh | None) -> dict[str, Any]:
        """{"teacher": FrozenModel}, on the mesh; what it is stored as stays as published.

        Raises ValueError where it cannot teach this model: another kind of model, or other tokens.
        """
        teacher, params, its_tokenizer = from_pretrained(self.teacher, mesh=mesh)
        found = needs(teacher.config, encoder=False, decoder=True)
        if teacher.config.vocab != model.config.vocab:
            found.append(f"its vocabulary has {teacher.config.vocab} tokens, the student's {model.config.vocab}")
        elif tokenizer is not None and its_tokenizer is not None:
            found += _other_tokens(tokenizer, its_tokenizer)
        if found:
            listed = "\n".join(f"  - {line}" for line in found)
            raise ValueError(f"task.teacher {self.teacher} cannot teach this model:\n{listed}")
        return {"teacher": FrozenModel(params, teacher)}

    def fields(self, vocab: int) -> dict[str, int]:
        """Tokens."""
        return CausalLM().fields(vocab)

    def examples(self, document: Document, tokenizer: Tokenizer | None) -> Iterable[Example]:
        """A document's tokens between the tokenizer's beginning and end marks, where there are such."""
        return CausalLM().examples(document, tokenizer)

    def rows(self, store: Store, tokenizer: Tokenizer | None, length: int, seed: int | None) -> Rows:
        """Documents on end."""
        return CausalLM().rows(store, tokenizer, length, seed)

    def loss(self, model: Model, *, train: bool) -> LossFn:
        """loss_fn(params, frozen, batch, key), frozen["teacher"] a FrozenModel; in training the student has dropout.

        batch: as in CausalLM. The metrics "loss" and "accuracy" are of the text; "divergence" is of the teacher.
        """

        def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            teacher = frozen["teacher"]
            if wrong := too_long(teacher.model.config, decoder=batch["weights"].shape[1]):
                raise ValueError(f"task.teacher {self.teacher}: {wrong[0]}")
            held = variables(params, frozen)
            given = {name: batch[name][:, :-1] for name in ("tokens", "segments", "positions")}
            out = run(model, held, key, train, **given)
            ours = unembedded(model, held, out)
            its = {"params": teacher.params}
            theirs = unembedded(teacher.model, its, run(teacher.model, its, key, False, **given))
            targets, weights = batch["tokens"][:, 1:], batch["weights"]
            loss, metrics = cross_entropy(*ours, targets, weights)
            divergence, more = distillation(*ours, *theirs, weights, temperature=self.temperature)
            metrics |= {"divergence": more["loss"], "agreement": more["agreement"]}
            return with_aux(divergence + self.weight * loss, out, train), metrics

        return loss_fn

    def metrics(self, sums: Mapping[str, tuple[Any, float]], size: int) -> dict[str, float]:
        """Those of CausalLM, the divergence from the teacher in nats a token, and how often both agree."""
        return CausalLM().metrics(sums, size)


def _other_tokens(ours: Tokenizer, theirs: Tokenizer) -> list[str]:
    """The first id that stands for another piece in each of two tokenizers."""
    for id in range(min(ours.vocab_size, theirs.vocab_size)):
        if (one := ours.piece(id)) != (other := theirs.piece(id)):
            return [f"its tokenizer is another: token {id} is {other!r}, the student's {one!r}"]
    return []
